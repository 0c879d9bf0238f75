"""The tracker: several objects, objects that join later, any ids, against the plain definition."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.vosnet.propagation.helpers import make_mask, make_propagator, make_scene
from vosnet.errors import InputError
from vosnet.matching import Neighborhood, nearest_readout
from vosnet.memory import context_frames
from vosnet.propagation.masks import mask_to_values
from vosnet.propagation.tracker import Tracker

LEFT, RIGHT = (8, 8, 32, 32), (16, 40, 40, 64)


def youtube_vos_rule(frames: np.ndarray, masks: dict[int, np.ndarray], tracker: Tracker) -> list[Tensor]:
    """DUL's rule written plainly: one context per first frame, all channels, valid ones summed."""
    protocol, extractor = tracker.protocol, tracker.extractor
    ids = list(dict.fromkeys(int(i) for t in sorted(masks) for i in np.unique(masks[t]) if i))
    features = [functional.normalize(extractor(frame[None])[0], dim=0) for frame in frames]
    grid = features[0].shape[1:]
    first = {i: min(t for t in masks if (masks[t] == i).any()) for i in ids}
    given = {
        t: mask_to_values(mask, [0, *ids], grid, protocol, 8)
        * torch.tensor([float(t == 0), *(float(first[i] == t) for i in ids)])[:, None, None]
        for t, mask in masks.items()
    }
    merged = [given[0]]
    for t in range(1, len(frames)):
        total = torch.zeros_like(merged[0])
        for start in sorted({0, *first.values()}):
            if start >= t:
                continue
            context = context_frames(t, protocol.num_recent, protocol.context, start)
            valid = torch.tensor([float(start == 0), *(float(first[i] == start) for i in ids)])
            readout = nearest_readout(
                features[t],
                torch.stack([features[i] for i in context]),
                torch.stack([merged[i] for i in context]),
                k=protocol.k,
                temperature=protocol.temperature,
                neighborhood=Neighborhood("disc", protocol.radius, 1),
            )
            total += readout * valid[:, None, None]
        if t in masks:
            new = given[t]
            covered = new.sum(0)
            total = (1 - covered) * total + covered * new
        merged.append(total)
    return merged


@pytest.mark.parametrize("num_recent", [2, 20])
def test_f20_objects_that_join_later_follow_the_youtube_vos_rule(num_recent: int) -> None:
    frames = make_scene(9)
    masks = {0: make_mask({1: LEFT}), 3: make_mask({2: RIGHT}), 5: make_mask({7: (0, 0, 8, 72)})}
    tracker = make_propagator(num_recent=num_recent, radius=3, k=5).tracker()
    expected = youtube_vos_rule(frames, masks, tracker)
    for t, frame in enumerate(frames):
        probs = tracker.step(frame, masks.get(t))
        torch.testing.assert_close(probs, expected[t][: len(probs)], rtol=0, atol=1e-5)
    assert tracker.ids == [1, 2, 7]


def test_f20_where_masks_overlap_the_later_one_wins() -> None:
    frames = make_scene(4)
    masks = {0: make_mask({1: (0, 0, 48, 72)}), 2: make_mask({2: RIGHT})}
    results = list(make_propagator().propagate(frames, masks))
    top, left, bottom, right = RIGHT
    assert (results[1].mask == 1).all()
    assert (results[2].mask[top:bottom, left:right] == 2).all()
    assert (results[2].mask[:, :left] == 1).all()
    assert {1, 2} <= set(np.unique(results[3].mask))


def test_an_object_that_is_annotated_again_starts_anew() -> None:
    frames = make_scene(6)
    masks = {0: make_mask({1: LEFT, 2: RIGHT}), 3: make_mask({1: (0, 48, 16, 72)})}
    results = list(make_propagator().propagate(frames, masks))
    assert np.array_equal(results[3].mask == 1, masks[3] == 1)
    assert (results[3].mask == 2).any()
    assert not (results[5].mask[20:, :32] == 1).any()
    assert (results[5].mask[:16, 40:] == 1).any()


def test_annotating_every_object_again_forgets_the_first_mask() -> None:
    frames = make_scene(6)
    tracker = make_propagator().tracker()
    for t, frame in enumerate(frames):
        mask = {0: make_mask({1: LEFT}), 3: make_mask({1: RIGHT})}.get(t)
        probs = tracker.step(frame, mask)
    assert [context.start for context in tracker.bank.contexts] == [3]
    torch.testing.assert_close(
        probs.sum(0), torch.ones(6, 9), rtol=0, atol=0.6
    )  # soft edges: s * (1 - s) is lost


def test_f18_ids_with_holes_come_back_exactly() -> None:
    mask = make_mask({1: LEFT, 7: (0, 40, 16, 56), 200: (24, 40, 48, 72)})
    results = list(make_propagator().propagate(make_scene(5), {0: mask}))
    assert np.array_equal(results[0].mask, mask)
    assert results[-1].mask.dtype == np.uint8
    assert set(np.unique(results[-1].mask)) == {0, 1, 7, 200}
    assert results[-1].ids == (1, 7, 200)


def test_f18_a_vanished_object_leaves_the_other_ids_alone() -> None:
    frames = make_scene(2)
    frames = np.concatenate([frames, np.full((3, *frames.shape[1:]), 128, np.uint8)])
    mask = make_mask({3: LEFT, 9: RIGHT})
    assert set(np.unique(list(make_propagator().propagate(frames, {0: mask}))[-1].mask)) <= {0, 3, 9}


def test_f19_more_objects_than_one_kernel_call_takes() -> None:
    boxes = {i + 1: (8 * (i // 9), 8 * (i % 9), 8 * (i // 9) + 8, 8 * (i % 9) + 8) for i in range(54)}
    mask, frames = make_mask(boxes), make_scene(3)
    frames[:] = frames[0]
    few, many = make_propagator().tracker(), make_propagator().tracker()
    few.chunks.channels, many.chunks.channels = 5, 256
    for t, frame in enumerate(frames):
        a, b = few.step(frame, mask if t == 0 else None), many.step(frame, mask if t == 0 else None)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        assert np.array_equal(few.decide(a), many.decide(b))
    assert len(np.unique(few.decide(a))) == 54


@pytest.mark.parametrize("bad", [256, 300, -1])
def test_f19_ids_beyond_a_byte_are_refused(bad: int) -> None:
    mask = make_mask({1: LEFT}).astype(np.int32)
    mask[0, 0] = bad
    with pytest.raises(InputError, match=rf"E282 .*1\.\.255, got {bad}"):
        make_propagator().tracker().step(make_scene(1)[0], mask)


def test_f16_a_mask_of_another_size_is_refused_naming_both() -> None:
    with pytest.raises(InputError, match="E204 mask size 70x48 does not match the frame's 72x48"):
        list(make_propagator().propagate(make_scene(2), {0: np.ones((48, 70), np.uint8)}))


def test_f18_an_empty_first_mask_is_refused() -> None:
    with pytest.raises(InputError, match="E283 the first mask holds no object"):
        list(make_propagator().propagate(make_scene(2), {0: np.zeros((48, 72), np.uint8)}))


def test_an_empty_later_mask_says_nothing_new() -> None:
    frames, first = make_scene(4), make_mask({1: LEFT})
    plain = [r.mask for r in make_propagator().propagate(frames, {0: first})]
    with_empty = [r.mask for r in make_propagator().propagate(frames, {0: first, 2: first * 0})]
    assert np.array_equal(plain, with_empty)


@pytest.mark.parametrize("mask", [np.ones((48, 72, 3), np.uint8), np.ones((48, 72), np.float32)])
def test_a_mask_must_be_a_label_map(mask: np.ndarray) -> None:
    with pytest.raises(InputError, match="E282"):
        make_propagator().tracker().step(make_scene(1)[0], mask)


def test_frames_of_changing_size_or_kind_are_refused() -> None:
    tracker = make_propagator().tracker()
    tracker.step(make_scene(1)[0], make_mask({1: LEFT}))
    with pytest.raises(InputError, match="E281 frame size changes from 72x48 to 64x48"):
        tracker.step(np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(InputError, match="E280"):
        tracker.step(np.zeros((48, 72, 3), np.float32))
    with pytest.raises(InputError, match="E280"):
        tracker.step(np.zeros((48, 72), np.uint8))


def test_a_still_scene_keeps_its_mask() -> None:
    frames = np.repeat(make_scene(1), 12, axis=0)
    mask = make_mask({1: LEFT, 2: RIGHT})
    last = list(make_propagator(num_recent=5, k=1).propagate(frames, {0: mask}, keep_annotations=False))
    assert np.array_equal(last[-1].mask, last[0].mask)


def test_each_frame_is_encoded_once() -> None:
    propagator = make_propagator(num_recent=3)
    masks = {0: make_mask({1: LEFT}), 4: make_mask({2: RIGHT})}
    assert len(list(propagator.propagate(make_scene(12), masks))) == 12
    assert propagator.extractor.encoder.function.calls == 12


def test_hard_memory_stores_the_decided_mask() -> None:
    tracker = make_propagator(memory_values="hard", mask_down="slice").tracker()
    for t, frame in enumerate(make_scene(4)):
        probs = tracker.step(frame, make_mask({1: LEFT, 2: RIGHT}) if t == 0 else None)
    values = tracker.bank.read(tracker.bank.contexts[0]).values
    assert set(values.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(values.sum(1), torch.ones_like(values[:, 0]))
    decided = tracker.decide(probs)[::8, ::8]
    newest = values[3].argmax(0).numpy()  # while the video is young, recent frames lie in their order
    assert np.array_equal(newest, decided)
