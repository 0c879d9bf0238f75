"""The context rules against what the papers' code does."""

import pytest

from vosnet.memory import CONTEXT_RULES, REFERENCES, References, context_frames, spaced_frames


@pytest.mark.parametrize(
    ("t", "expected"),
    [
        pytest.param(1, [0] * 21, id="all-copies"),
        pytest.param(3, [0] + [0] * 17 + [0, 1, 2], id="young"),
        pytest.param(21, [0, *range(1, 21)], id="no-copies-left"),
        pytest.param(50, [0, *range(30, 50)], id="old"),
    ],
)
def test_dul_repeats_the_reference_frame_until_there_are_twenty_recent_frames(
    t: int, expected: list[int]
) -> None:
    assert sorted(context_frames(t, 20, "replicate")) == sorted(expected)
    assert len(context_frames(t, 20, "replicate")) == 21


@pytest.mark.parametrize("t", [1, 5, 20, 21, 40])
def test_dul_restricts_21_minus_t_copies_of_the_reference_frame(t: int) -> None:
    assert context_frames(t, 20, "replicate")[1:].count(0) == max(0, 21 - t)


def test_a_later_reference_frame_has_a_context_of_its_own() -> None:
    assert context_frames(9, 4, "replicate", start=7) == [7, 7, 7, 7, 8]
    assert context_frames(9, 4, "clamp", start=7) == [7, 7, 8]
    assert context_frames(9, 4, "queue", start=7) == [7, 8]


def test_vfs_takes_only_frames_that_exist() -> None:
    assert context_frames(1, 20, "clamp") == [0, 0]
    assert context_frames(3, 20, "clamp") == [0, 0, 1, 2]
    assert context_frames(30, 20, "clamp") == [0, *range(10, 30)]


def test_dino_queues_the_frames_after_the_first() -> None:
    assert context_frames(1, 7, "queue") == [0]
    assert context_frames(3, 7, "queue") == [0, 1, 2]
    assert context_frames(30, 7, "queue") == [0, *range(23, 30)]


@pytest.mark.parametrize("rule", CONTEXT_RULES)
def test_no_frame_after_the_query_is_read(rule: str) -> None:
    for t in range(1, 60):
        frames = context_frames(t, 5, rule)
        assert max(frames) < t
        assert frames[0] == 0
        assert len(frames) <= 6


@pytest.mark.parametrize(
    ("t", "expected"),
    [
        pytest.param(1, [0], id="second-frame"),
        pytest.param(2, [0, 1], id="t-3-is-not-there"),
        pytest.param(5, [0, 2, 4], id="frame-5-is-the-query"),
        pytest.param(6, [0, 1, 3, 5], id="frame-5-is-recent-too"),
        pytest.param(10, [0, 5, 7, 9], id="frame-5-is-t-5-too"),
        pytest.param(11, [0, 5, 6, 8, 10], id="five"),
        pytest.param(90, [0, 5, 85, 87, 89], id="old"),
    ],
)
def test_mast_reads_two_old_and_three_recent_frames(t: int, expected: list[int]) -> None:
    assert spaced_frames(t, 5) == expected
    assert spaced_frames(t + 7, 5, start=7) == [7 + frame for frame in expected]


def test_table_2_of_zhu_has_one_three_five_and_all_references() -> None:
    assert spaced_frames(30, 1) == [29]
    assert spaced_frames(30, 3) == [0, 27, 29]
    assert spaced_frames(30, "all", start=4) == list(range(4, 30))


@pytest.mark.parametrize("references", REFERENCES)
def test_spaced_frames_exist_come_once_and_lie_before_the_query(references: References) -> None:
    for start in (0, 6):
        for t in range(start + 1, 60):
            frames = spaced_frames(t, references, start)
            assert frames == sorted(set(frames))
            assert start <= frames[0] <= frames[-1] == t - 1
            assert references == "all" or len(frames) <= references


@pytest.mark.parametrize("rule", CONTEXT_RULES)
def test_without_recent_frames_only_the_reference_frame_is_read(rule: str) -> None:
    assert {tuple(context_frames(t, 0, rule, start=2)) for t in range(3, 9)} == {(2,)}


@pytest.mark.parametrize(
    ("rule", "young", "full", "older"),
    [
        pytest.param("replicate", [0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 3], id="replicate"),
        pytest.param("clamp", [0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 3], id="clamp"),
        pytest.param("queue", [0, 1], [0, 1, 2], [0, 1, 2, 3], id="queue"),
    ],
)
def test_the_rules_agree_once_the_recent_frames_leave_the_reference_frame_behind(
    rule: str, young: list[int], full: list[int], older: list[int]
) -> None:
    assert [context_frames(t, 3, rule) for t in (2, 3, 4)] == [young, full, older]
    assert context_frames(5, 3, rule) == [0, 2, 3, 4]
