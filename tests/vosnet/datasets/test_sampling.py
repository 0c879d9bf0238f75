"""Frames and crops as DUL's loaders draw them."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vosnet.datasets.sampling import (
    epoch_order,
    sample_boxes,
    sample_frames,
    sample_gap,
    sample_generator,
)
from vosnet.datasets.settings import ClipSettings


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=60, deadline=None)
@given(st.integers(5, 200), st.integers(1, 12), st.integers(2, 5), st.integers(0, 1000))
def test_permuted_clips_have_equal_whole_distances_inside_the_video(
    num_frames: int, frame_gap: int, clip_len: int, seed: int
) -> None:
    ids = sample_frames(num_frames, generator(seed), ClipSettings(clip_len=clip_len, frame_gap=frame_gap))
    gap = min(num_frames, frame_gap * clip_len) // clip_len
    assert sorted(ids) == list(range(min(ids), min(ids) + gap * clip_len, gap))
    assert min(ids) >= 0
    assert max(ids) < num_frames


def test_the_anchor_frame_is_any_frame_of_the_window_when_permuted_and_the_first_when_kept() -> None:
    permuted = [sample_frames(10, generator(i), ClipSettings(clip_len=5, frame_gap=2))[0] for i in range(100)]
    assert set(permuted) == {0, 2, 4, 6, 8}
    kept = [
        sample_frames(90, generator(i), ClipSettings(clip_len=5, frame_gap=10, order="kept"))
        for i in range(50)
    ]
    assert all(ids == sorted(ids) for ids in kept)
    assert {b - a for ids in kept for a, b in itertools.pairwise(ids)} == {10}


def test_a_short_kinetics_clip_has_fractional_distances_rounded_down() -> None:
    assert sample_frames(12, generator(), ClipSettings(clip_len=5, frame_gap=10, order="kept")) == [
        0,
        2,
        4,
        7,
        9,
    ]


def test_every_start_that_fits_is_drawn() -> None:
    starts = {min(sample_frames(14, generator(i), ClipSettings(clip_len=5, frame_gap=2))) for i in range(200)}
    assert starts == {0, 1, 2, 3, 4}


def test_a_still_is_repeated_and_a_short_video_refused() -> None:
    assert sample_frames(1, generator(), ClipSettings(clip_len=4, frame_gap=2)) == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="clip of 5 frames"):
        sample_frames(4, generator(), ClipSettings(clip_len=5, frame_gap=2))


@settings(max_examples=60, deadline=None)
@given(st.integers(7, 60), st.integers(2, 4), st.integers(0, 1000))
def test_paired_clips_hold_a_frame_its_successor_and_distant_ones(
    num_frames: int, clip_len: int, seed: int
) -> None:
    clips = ClipSettings(clip_len=clip_len, frame_gap=1, order="paired", distant_gap=(5, 15))
    ids = sample_frames(num_frames, generator(seed), clips)
    assert len(ids) == len(set(ids)) == clip_len
    assert ids == sorted(ids)
    assert ids[0] >= 0
    assert ids[-1] < num_frames
    assert ids[1] == ids[0] + 1
    assert all(5 <= i - ids[0] <= 15 for i in ids[2:])


def test_paired_clips_reach_every_start_and_gap_and_need_a_long_enough_video() -> None:
    clips = [
        sample_frames(9, generator(i), ClipSettings(clip_len=3, frame_gap=1, order="paired"))
        for i in range(300)
    ]
    assert {ids[0] for ids in clips} == {0, 1, 2, 3}
    assert {ids[2] - ids[0] for ids in clips} == {5, 6, 7, 8}
    assert ClipSettings(clip_len=4, frame_gap=1, order="paired").frames_needed == 7
    for num_frames in (1, 6):
        with pytest.raises(ValueError, match="4 frames and the gap of 5"):
            sample_frames(num_frames, generator(), ClipSettings(clip_len=4, frame_gap=1, order="paired"))


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 300), st.integers(20, 300), st.integers(0, 1000), st.booleans())
def test_boxes_lie_inside_the_frame_and_show_the_asked_share(H: int, W: int, seed: int, still: bool) -> None:
    clips = ClipSettings(crop_size=64, short_side=(64, 129))
    boxes = sample_boxes((H, W), 4, generator(seed), clips, jitter=0.15 if still else 0.0)
    top, left, side = boxes.unbind(1)
    assert int(top.min()) >= 0
    assert int(left.min()) >= 0
    assert bool((top + side <= H).all())
    assert bool((left + side <= W).all())
    assert int(side.max()) <= min(H, W)
    assert int(side.min()) >= 0.4 * min(H, W)
    assert still or len(set(map(tuple, boxes.tolist()))) == 1


def test_the_paper_crops_256_of_256_to_319_pixels() -> None:
    sides = [int(sample_boxes((360, 640), 2, generator(i), ClipSettings())[0, 2]) for i in range(300)]
    assert max(sides) == 360
    assert min(sides) == round(360 * 256 / 319)


def test_without_random_crop_the_middle_is_taken() -> None:
    clips = ClipSettings(crop_size=64, short_side=(64, 65), random_crop=False)
    boxes = sample_boxes((100, 200), 2, generator(), clips)
    assert boxes.tolist() == [[0, 50, 100]] * 2


def test_random_numbers_depend_on_seed_epoch_sample_and_attempt_only() -> None:
    draws = {
        key: float(torch.rand((), generator=sample_generator(*key)))
        for key in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 11, 0)]
    }
    assert len(set(draws.values())) == len(draws)
    assert draws[0, 1, 0, 0] == float(torch.rand((), generator=sample_generator(0, 1, 0, 0)))


def test_an_epoch_sees_every_video_once_and_small_sets_several_times() -> None:
    assert sorted(epoch_order(3, 0, 20, 20)) == list(range(20))
    assert epoch_order(3, 0, 20, 20) != epoch_order(3, 1, 20, 20)
    assert sorted(epoch_order(3, 0, 3, 6)) == [0, 0, 1, 1, 2, 2]


def test_gaps_are_drawn_as_often_as_their_weights_say() -> None:
    clips = ClipSettings(frame_gap=7, gap_choices=(2, 5, 8), gap_weights=(0.4, 0.4, 0.2))
    gaps = [sample_gap(sample_generator(0, epoch, 1), clips) for epoch in range(600)]
    shares = [gaps.count(gap) / 600 for gap in (2, 5, 8)]
    assert shares == pytest.approx([0.4, 0.4, 0.2], abs=0.06)
    assert gaps == [sample_gap(sample_generator(0, epoch, 1), clips) for epoch in range(600)]
    assert sample_gap(sample_generator(0, 0, 1), ClipSettings(frame_gap=7)) == 7
