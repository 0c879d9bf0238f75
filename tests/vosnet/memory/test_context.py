"""The context rules against what the papers' code does."""

import pytest

from vosnet.memory import CONTEXT_RULES, context_frames


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
