"""Presets that read a few spaced frames through windows: mast and memory_tracker."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.vosnet.propagation.helpers import PatchEncoder, make_mask, make_propagator, make_scene
from vosnet import matching
from vosnet.errors import InputError
from vosnet.matching import window_readout
from vosnet.memory import spaced_frames
from vosnet.propagation import PRESETS, Propagator
from vosnet.propagation.masks import mask_to_values
from vosnet.propagation.tracker import Tracker
from vosnet_kernels.widened_readout.reference import widened_readout_reference

# What suits encoders whose features are no good unnormalized, such as random ones.
COSINES = {"normalize": True, "temperature": 0.02}
LEFT, RIGHT = (8, 8, 32, 32), (16, 40, 40, 64)


def masts_rule(frames: np.ndarray, masks: dict[int, np.ndarray], tracker: Tracker) -> list[Tensor]:
    """The rule written plainly in float64: one context per first frame, each for its own objects."""
    protocol, extractor = tracker.protocol, tracker.extractor
    ids = list(dict.fromkeys(int(i) for t in sorted(masks) for i in np.unique(masks[t]) if i))
    first = {i: min(t for t in masks if (masks[t] == i).any()) for i in ids}
    features = [extractor(frame[None])[0].double() for frame in frames]
    grid = tuple(features[0].shape[1:])
    memory = [mask_to_values(masks[0], [0, *ids], grid, protocol, 8).double()]
    probs = [memory[0]]
    for t in range(1, len(frames)):
        total = torch.zeros_like(memory[0])
        for start in sorted({0, *first.values()} - set(range(t, len(frames)))):
            context = spaced_frames(t, 5, start)
            readout = widened_readout_reference(
                features[t][None],
                torch.stack([features[i] for i in context])[None],
                torch.stack([memory[i] for i in context])[None],
                radius=protocol.radius,
                dilations=[protocol.dilation(t - i) for i in context],
                temperature=features[t].shape[0] ** 0.5,
                outside=protocol.outside,
            )[0]
            valid = [float(start == 0), *(float(first[i] == start) for i in ids)]
            total += readout * torch.tensor(valid)[:, None, None]
        if t in masks:
            new = mask_to_values(masks[t], [0, *ids], grid, protocol, 8).double()
            new[0] = 0
            total = (1 - new.sum(0)) * total + new.sum(0) * new
        probs.append(total)
        tracker.ids, known = ids, tracker.ids
        decided = tracker.decide(total.float())
        tracker.ids = known
        decided = np.where(masks[t] > 0, masks[t], decided) if t in masks else decided
        memory.append(mask_to_values(decided, [0, *ids], grid, protocol, 8).double())
    return probs


@pytest.mark.parametrize(("preset", "outside"), [("mast", "zero"), ("memory_tracker", "exclude")])
def test_a_clip_follows_the_rule_with_an_object_that_joins_later(preset: str, outside: str) -> None:
    frames = make_scene(12)
    masks = {0: make_mask({1: LEFT}), 3: make_mask({7: RIGHT})}
    tracker = make_propagator(preset, radius=3, far_after=4, outside=outside).tracker()
    got = [tracker.step(frame, masks.get(t)) for t, frame in enumerate(frames)]
    expected = masts_rule(frames, masks, tracker)
    for a, b in zip(got, expected):
        torch.testing.assert_close(a.double(), b[: len(a)], rtol=0, atol=1e-4)
    assert tracker.ids == [1, 7]


def test_every_frame_is_encoded_once_and_memory_is_bounded() -> None:
    propagator = make_propagator("mast", radius=3)
    held = []
    tracker = propagator.tracker()
    for t, frame in enumerate(make_scene(30)):
        tracker.step(frame, make_mask({1: LEFT}) if t == 0 else None)
        held.append(tracker.bank.num_bytes)
    assert propagator.extractor.encoder.function.calls == 30
    assert len(set(held[10:])) == 1


def test_features_are_not_normalized_and_divided_by_the_root_of_their_channels() -> None:
    frames, mask = make_scene(2), make_mask({1: LEFT})
    tracker = make_propagator("memory_tracker", radius=2).tracker()
    values = tracker.step(frames[0], mask)
    features = [tracker.extractor(frame[None])[0] for frame in frames]
    expected = window_readout(
        features[1],
        features[0][None],
        values[None],
        temperature=12**0.5,
        radius=2,
        dilations=[1],
        outside="zero",
    )
    assert torch.equal(tracker.step(frames[1]), expected)


def test_hard_memory_keeps_annotated_pixels_as_they_were_given() -> None:
    tracker = make_propagator("mast").tracker()
    mask = make_mask({1: (0, 0, 8, 8), 2: (24, 40, 48, 72)})  # one cell would not survive the way up and down
    tracker.step(make_scene(1)[0], mask)
    values = tracker.bank.read(tracker.bank.contexts[0]).values
    assert np.array_equal(values[0].argmax(0).numpy(), mask[::8, ::8])


@pytest.mark.parametrize("stop", [3, 8])
def test_a_resumed_clip_equals_the_uninterrupted_one(tmp_path: Path, stop: int) -> None:
    frames, masks = make_scene(11), {0: make_mask({1: LEFT}), 4: make_mask({9: RIGHT})}
    propagator = make_propagator("mast", radius=3, far_after=3)
    expected = [result.mask for result in propagator.propagate(frames, masks)]
    options = {"spill": tmp_path / "state.safetensors", "spill_every": 2}
    got = {}
    for result in propagator.propagate(frames, masks, **options):
        got[result.index] = result.mask
        if result.index == stop:
            break
    propagator.extractor.encoder.function.calls = 0
    got |= {result.index: result.mask for result in propagator.propagate(frames, masks, **options)}
    assert propagator.extractor.encoder.function.calls < len(frames)
    assert all(np.array_equal(got[t], mask) for t, mask in enumerate(expected))


@pytest.mark.parametrize("references", [1, 3, "all"])
def test_other_numbers_of_references_carry_a_mask_too(references: object) -> None:
    frames = np.repeat(make_scene(1), 8, axis=0)
    propagator = make_propagator("memory_tracker", references=references, radius=3, **COSINES)
    mask = make_mask({1: LEFT, 2: RIGHT})
    last = list(propagator.propagate(frames, {0: mask}))[-1].mask
    assert (last == mask).mean() > 0.95


def iou(found: np.ndarray, true: np.ndarray) -> float:
    return float((found & true).sum() / max(1, (found | true).sum()))


def textured(places: list[tuple[int, int] | None], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Frames and masks of a textured square of 40 pixels with its corner at each place, over another."""
    rng = np.random.default_rng(0)
    patch, ground = rng.integers(0, 256, (40, 40, 3)), rng.integers(0, 256, (*size, 3))
    frames = np.repeat(ground[None].astype(np.uint8), len(places), axis=0)
    masks = np.zeros(frames.shape[:3], np.uint8)
    for frame, mask, place in zip(frames, masks, places):
        if place is not None:
            inside = slice(place[0], place[0] + 40), slice(place[1], place[1] + 40)
            frame[inside], mask[inside] = patch, 1
    return frames, masks


def test_a_random_encoder_carries_a_moving_textured_object() -> None:
    frames, masks = textured([(8, 8 + 8 * t) for t in range(10)], (64, 128))
    results = list(make_propagator("mast").propagate(frames, {0: masks[0]}))
    scores = [iou(result.mask > 0, mask > 0) for result, mask in zip(results, masks)]
    assert min(scores) > 0.45, scores
    assert iou(masks[0] > 0, masks[-1] > 0) == 0  # what standing still would get


def test_old_references_find_an_object_that_moved_beyond_the_plain_window() -> None:
    """Hidden for as long as the recent frames reach back, it comes out far from where it was last seen."""
    frames, masks = textured([(8, 8)] * 6 + [None] * 13 + [(8, 80)], (56, 160))  # 9 cells; the radius is 4
    found = {}
    for far_after in (6, None):
        propagator = make_propagator("mast", radius=4, far_after=far_after, max_dilation=3)
        result = list(propagator.propagate(frames, {0: masks[0]}))[-1]
        found[far_after] = iou(result.mask > 0, masks[-1] > 0)
    assert found[6] > 0.5, found
    assert found[None] < 0.1, found


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_f08_a_clip_of_one_frame_gives_the_mask_itself_with_every_preset(preset: str) -> None:
    mask = make_mask({3: (9, 11, 30, 29), 5: RIGHT})
    (result,) = make_propagator(preset, rounds=0).propagate(make_scene(1), {0: mask})
    assert np.array_equal(result.mask, mask)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_an_object_that_vanishes_on_the_feature_grid_is_named(preset: str) -> None:
    mask = make_mask({1: LEFT, 4: (41, 66, 42, 67)})  # one pixel that no cell looks at
    propagator = make_propagator(preset, short_side=None, multiple=1, rounds=0)
    with pytest.raises(InputError, match=r"E172 object 4 \(1 pixels\) is empty .* 9x6 cells\. .* larger"):
        list(propagator.propagate(make_scene(2), {0: mask}))
    with pytest.raises(InputError, match="E172 object 9"):
        list(propagator.propagate(make_scene(4), {0: make_mask({1: LEFT}), 2: (mask == 4) * np.uint8(9)}))


def test_an_object_that_vanishes_is_lost_with_a_warning_where_that_is_asked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mask = make_mask({1: LEFT, 4: (41, 66, 42, 67)})
    results = list(make_propagator("mast", empty_objects="lose").propagate(make_scene(3), {0: mask}))
    assert "object 4 (1 pixels) is empty on the feature grid of 9x6 cells: it is lost" in caplog.text
    assert np.array_equal(results[0].mask, mask)
    assert set(np.unique(results[2].mask)) == {0, 1}


def test_fewer_references_are_the_last_thing_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    real = matching.widened_readout

    def fake(query: Tensor, memory: Tensor, value: Tensor, **options: Any) -> Tensor:
        if memory.shape[1] > 3:
            raise torch.OutOfMemoryError("out of memory")
        return real(query, memory, value, **options)

    monkeypatch.setattr(matching, "widened_readout", fake)
    tracker = make_propagator("mast", allow_degrade=True, radius=2).tracker()
    for t, frame in enumerate(make_scene(12)):
        tracker.step(frame, make_mask({1: LEFT}) if t == 0 else None)
    assert tracker.fallbacks.taken[-1] == "3 references instead of 5 (results change)"
    assert all("objects" in said or "workspace" in said for said in tracker.fallbacks.taken[:-1])


def test_any_encoder_and_dimension_runs() -> None:
    propagator = Propagator.from_encoder(PatchEncoder(5), 8, "memory_tracker", "cpu", radius=2)
    assert len(list(propagator.propagate(make_scene(3), {0: make_mask({1: LEFT})}))) == 3
