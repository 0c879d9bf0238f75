"""Whole clips against their rules written plainly: DINO's, masks merged softly, decoding with two objects."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from tests.vosnet.models.test_segmenter import TINY
from tests.vosnet.propagation.helpers import make_mask, make_propagator, make_scene
from vosnet.matching import Neighborhood, nearest_readout
from vosnet.memory import context_frames
from vosnet.models import MaskSegmenter, build_encoder, save_encoder
from vosnet.models.segmenter import soft_aggregate
from vosnet.propagation import Propagator
from vosnet.propagation.masks import mask_to_values


class CoarseEncoder(nn.Module):
    """A fixed random mixture of each 32x32 patch."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(5))

    def forward(self, images: Tensor) -> Tensor:
        return functional.conv2d(images, self.mix, stride=32)


def dinos_rule(frames: np.ndarray, mask: np.ndarray, encoder: nn.Module) -> list[np.ndarray]:
    """Caron et al. 2021, eval_video_segmentation, with a float64 affinity of all pairs of cells.

    Short side 480, both sides floored to multiples of 64; the first and the last seven frames; a square of
    25 x 25 cells in all of them; the five best of exp(cos / 0.1) divided by their sum; labels by the nearest
    pixel; bilinear to the network's size, each map stretched to 0..1, argmax, nearest to the source's size.
    """
    height, width = frames.shape[1:3]
    scale = 480 / min(height, width)
    seen = (round(height * scale) // 64 * 64, round(width * scale) // 64 * 64)
    rows, columns = seen[0] // 32, seen[1] // 32
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.228, 0.224, 0.225])
    features = []
    for frame in frames:
        image = torch.from_numpy(frame).permute(2, 0, 1).float() / 255
        image = functional.interpolate(image[None], seen, mode="bilinear", antialias=True)
        grid = encoder((image - mean[:, None, None]) / std[:, None, None])[0].double()
        features.append(functional.normalize(grid.flatten(1), dim=0))  # [C, h * w]
    y, x = (
        part.flatten() for part in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    )
    near = ((y[:, None] - y).abs() <= 12) & ((x[:, None] - x).abs() <= 12)  # [h * w, h * w]
    small = np.asarray(Image.fromarray(mask).resize((columns, rows), Image.Resampling.NEAREST))
    ids = [0, *(int(i) for i in np.unique(mask) if i)]
    memory = [torch.stack([torch.from_numpy(small == i) for i in ids]).double().flatten(1)]
    answers = []
    for t in range(1, len(frames)):
        context = [0, *range(max(1, t - 7), t)]
        scores = torch.cat([(features[t].T @ features[i]).div(0.1).exp() * near for i in context], dim=1)
        best, cells = scores.topk(5, dim=1)
        values = torch.cat([memory[i] for i in context], dim=1)[:, cells]  # [K, h * w, 5]
        memory.append((values * (best / best.sum(1, keepdim=True))).sum(2))
        grid = memory[t].view(1, -1, rows, columns).float()
        large = functional.interpolate(grid, seen, mode="bilinear", align_corners=False)[0]
        low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
        decided = np.array(ids, np.uint8)[((large - low) / (high - low)).argmax(0)]
        resized = Image.fromarray(decided).resize((width, height), Image.Resampling.NEAREST)
        answers.append(np.asarray(resized))
    return answers


def test_preset_dino_follows_its_rule_from_frames_to_masks() -> None:
    frames = make_scene(11, size=(54, 101))
    mask = make_mask({2: (4, 6, 33, 47), 5: (20, 52, 54, 90)}, (54, 101))
    encoder = CoarseEncoder()
    results = list(Propagator.from_encoder(encoder, 32, "dino", "cpu").propagate(frames, {0: mask}))
    for result, expected in zip(results[1:], dinos_rule(frames, mask, encoder), strict=True):
        assert set(np.unique(expected)) == {0, 2, 5}
        assert (result.mask != expected).mean() < 0.002  # float32 ties at the borders


@pytest.mark.parametrize("way", ["encoder", "checkpoint"])
def test_a_presets_own_standard_deviation_wins_over_the_checkpoints(way: str, tmp_path: Any) -> None:
    frames = make_scene(1)
    images = {}
    for preset in ("dino", "crw"):
        if way == "encoder":
            propagator = Propagator.from_encoder(CoarseEncoder(), 32, preset, "cpu", std=(0.5, 0.5, 0.5))
        else:
            file = tmp_path / "model.safetensors"
            save_encoder(file, build_encoder(layer="layer2"), {"std": (0.5, 0.5, 0.5)})
            propagator = Propagator.from_checkpoint(file, preset, "cpu", layer="layer2")
        images[preset] = propagator.extractor.images(frames)[0]
    plain = torch.from_numpy(frames[0]).permute(2, 0, 1) / 255
    plain = plain - torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    own = torch.tensor([0.228, 0.224, 0.225])[:, None, None]
    torch.testing.assert_close(images["dino"], plain / own, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(images["crw"], plain / 0.5, rtol=1e-4, atol=1e-4)


def test_a_later_mask_weighs_as_much_as_it_covers() -> None:
    """m <- (1 - s) m + s g, with s the coverage of the new objects together: 0, 1 and all between."""
    frames, first = make_scene(4), make_mask({1: (0, 0, 48, 40)})
    later = make_mask({5: (10, 10, 29, 38), 2: (29, 10, 39, 39)})
    with_later, without = make_propagator().tracker(), make_propagator().tracker()
    for t, frame in enumerate(frames[:3]):
        before = without.step(frame, first if t == 0 else None)
        after = with_later.step(frame, {0: first, 2: later}.get(t))
    given = mask_to_values(later, [2, 5], (6, 9), with_later.protocol, 8)
    covered = given.sum(0)
    assert ((covered > 0.1) & (covered < 0.9)).any()
    assert ((given > 0.1) & (given < 0.9)).flatten(1).any(1).all()
    expected = torch.cat([before, torch.zeros(2, 6, 9)]) * (1 - covered)
    expected[2:] += covered * given
    torch.testing.assert_close(after, expected)


def test_an_object_given_again_leaves_its_old_place_to_the_background() -> None:
    frames, first = make_scene(3), make_mask({3: (8, 8, 32, 32), 4: (16, 40, 40, 64)})
    again = make_mask({3: (10, 34, 29, 53)})
    with_again, without = make_propagator().tracker(), make_propagator().tracker()
    for t, frame in enumerate(frames):
        before = without.step(frame, first if t == 0 else None)
        after = with_again.step(frame, {0: first, 2: again}.get(t))
    given = mask_to_values(again, [3], (6, 9), with_again.protocol, 8)[0]
    expected = torch.stack([before[0] + before[1], torch.zeros(6, 9), before[2]]) * (1 - given)
    expected[1] += given * given
    torch.testing.assert_close(after, expected)


def test_channels_and_ids_keep_the_order_in_which_objects_arrive() -> None:
    frames = np.repeat(make_scene(1), 6, axis=0)
    masks = {
        0: make_mask({9: (8, 8, 32, 32)}),
        2: make_mask({4: (16, 40, 40, 64)}),
        4: make_mask({6: (0, 48, 9, 72)}),
    }
    results = list(make_propagator().propagate(frames, masks))
    assert [result.ids for result in results] == [(9,), (9,), (9, 4), (9, 4), (9, 4, 6), (9, 4, 6)]
    for result in results:
        for index, mask in masks.items():
            if index <= result.index:
                channel = 1 + result.ids.index(int(mask.max()))
                inside = result.probs[channel][mask > 0].mean() - result.probs[channel][mask == 0].mean()
                assert inside > 0.4, (result.index, index)
    assert set(np.unique(results[-1].mask)) == {0, 4, 6, 9}


def test_both_directions_use_later_masks_on_the_way_forward_only() -> None:
    frames = make_scene(8)
    masks = {
        3: make_mask({1: (8, 8, 32, 32)}),
        5: make_mask({2: (16, 40, 40, 64)}),
        6: make_mask({1: (0, 0, 16, 16)}),
    }
    results = list(make_propagator(num_recent=2).propagate(frames, masks, direction="both"))
    forward = list(make_propagator(num_recent=2).propagate(frames, masks))
    backward = list(make_propagator(num_recent=2).propagate(frames, {3: masks[3]}, direction="backward"))[1:]
    assert [result.index for result in results] == [3, 4, 5, 6, 7, 2, 1, 0]
    for got, expected in zip(results, [*forward, *backward], strict=True):
        assert np.array_equal(got.mask, expected.mask)
        assert got.ids == expected.ids


def decoded_rule(frames: np.ndarray, masks: dict[int, np.ndarray], propagator: Propagator) -> list[Tensor]:
    """Li et al. 2023 written plainly for objects 1 and 2, the second from a later frame on, one at a time."""
    protocol, extractor, segmenter = propagator.protocol, propagator.extractor, propagator.segmenter
    assert segmenter is not None
    (later,) = set(masks) - {0}
    images = [extractor.images(frame[None]) for frame in frames]
    features = [functional.normalize(extractor(frame[None])[0], dim=0) for frame in frames]
    grid, fine = (6, 9), (12, 18)
    own = {0: [0, 1], later: [2]}  # channels copied from each reference frame
    kept: list[Tensor] = []
    embedded: list[Tensor] = []  # [2, D, h, w]
    answers: list[Tensor] = []

    def readout(t: int, start: int, value: list[Tensor]) -> Tensor:
        context = context_frames(t, protocol.num_recent, protocol.context, start)
        return nearest_readout(
            features[t],
            torch.stack([features[i] for i in context]),
            torch.stack([value[i] for i in context]),
            k=protocol.k or 0,
            temperature=0.05,
            neighborhood=Neighborhood("disc", protocol.radius, 1),
        )

    def merged(probs: Tensor, given: Tensor) -> Tensor:
        probs = probs * (1 - given)
        probs[2] += given * given
        return probs

    for t in range(len(frames)):
        count = 1 if t < later else 2
        if t == 0:
            given = mask_to_values(masks[0], [0, 1], fine, protocol, 4)
            answer = torch.cat([given, torch.zeros(1, *fine)])
            memory = answer
        else:
            starts = {1: 0, 2: later}
            objects = range(1, 2 if t <= later else 3)
            copied = torch.zeros(3, *grid)
            for start, channels in own.items():
                if start < t:
                    copied[channels] = readout(t, start, kept)[channels]
            support = {i: readout(t, starts[i], [e[i - 1] for e in embedded]) for i in objects}
            probs = copied[None, [*objects]]
            for _ in range(protocol.rounds):
                logits = [
                    segmenter.refine(images[t], support[i][None, None], probs[:, [n]], copied[None, [i]])
                    for n, i in enumerate(objects)
                ]
                soft = soft_aggregate(torch.cat(logits, dim=1)).softmax(1)
                probs = soft[:, 1:]
            answer = torch.cat([soft[0], torch.zeros(3 - soft.shape[1], *fine)])
            memory = copied if protocol.memory_values == "copied" else answer
            if t == later:
                given = mask_to_values(masks[t], [2], fine, protocol, 4)[0]
                answer = merged(answer, given)
                if memory.shape[-2:] != fine:
                    memory = functional.interpolate(memory[None], fine, mode="bilinear")[0]
                memory = merged(memory, given)
        answers.append(answer[: 1 + count])
        if protocol.memory_values == "hard":
            large = functional.interpolate(
                answer[None, : 1 + count], (48, 72), mode="bilinear", align_corners=False
            )
            decided = large[0].argmax(0).numpy().astype(np.uint8)
            if t in masks:
                decided = np.where(masks[t] > 0, masks[t], decided)
            memory = mask_to_values(decided, [0, 1, 2], fine, protocol, 4)
        embedding = segmenter.embed(images[t], memory[None, 1:]).features
        embedding[count:] = 0  # nobody knows the second object yet
        embedded.append(embedding)
        if memory.shape[-2:] != grid:
            memory = functional.interpolate(memory[None], grid, mode="area")[0]
        kept.append(memory)
    return answers


@pytest.mark.parametrize("memory_values", ["soft", "hard", "copied"])
@torch.no_grad()
def test_decoding_follows_its_rule_with_an_object_that_joins_later(memory_values: str) -> None:
    torch.manual_seed(3)
    segmenter = MaskSegmenter(**TINY)
    nn.init.normal_(segmenter.mask_decoder.logit.weight, std=0.3)
    propagator = make_propagator(
        "crw_decoded", segmenter=segmenter, memory_values=memory_values, num_recent=3, rounds=2, radius=4
    )
    frames = make_scene(5)
    masks = {0: make_mask({1: (8, 8, 30, 30)}), 2: make_mask({2: (18, 37, 43, 60)})}
    tracker = propagator.tracker()
    got = [tracker.step(frame, masks.get(t)) for t, frame in enumerate(frames)]
    for probs, expected in zip(got, decoded_rule(frames, masks, propagator), strict=True):
        torch.testing.assert_close(probs, expected, rtol=1e-3, atol=2e-4)
