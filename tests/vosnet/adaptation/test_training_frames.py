"""Which frames are kept, how often each is drawn, and what augmentation leaves intact."""

import numpy as np
import pytest
import torch

from vosnet.adaptation.training_frames import Batches, TrainingFrames, frame_weights, known_ids
from vosnet.transforms.photometric import ColorJitter

CPU = torch.device("cpu")


def filled(count: int, capacity: int, given: tuple[int, ...] = (0,), size: int = 8) -> TrainingFrames:
    """Frames whose red value is the index, and whose left half is object 7."""
    kept = TrainingFrames([3, 7], size, capacity)
    for index in range(count):
        frame = np.zeros((16, 16, 3), np.uint8)
        frame[:, :8] = index % 256
        mask = np.zeros((16, 16), np.uint8)
        mask[:, :8] = 7
        kept.add(index, frame, mask, {7}, keep=index in given)
    return kept


def batches(kept: TrainingFrames, *, seed: int = 0, zoom: tuple[float, float] = (1.0, 1.0)) -> Batches:
    weights = torch.ones(len(kept.indices), dtype=torch.float64)
    return Batches(
        kept, weights, {0}, given_share=0.5, jitter=ColorJitter(), flip_probability=0.5, zoom=zoom, seed=seed
    )


@pytest.mark.parametrize("count", [5, 40, 333])
def test_the_sample_is_bounded_even_and_keeps_annotated_frames(count: int) -> None:
    kept = filled(count, 10, given=(0, 4)).indices
    assert {0, 4} <= set(kept)
    assert len(kept) <= 12
    gaps = np.diff([i for i in kept if i not in {0, 4}] or [0, 1])
    assert gaps.max() <= max(2, 2 * gaps.min())
    assert count <= 12 or kept[-1] >= count - gaps.max() - 1


def test_labels_are_channels_and_unknown_objects_are_marked() -> None:
    images, labels, known = filled(3, 10).read([2], CPU)
    assert images.shape == (1, 3, 8, 8)
    assert images.max() == pytest.approx(2 / 255)
    assert labels[0, 0].tolist() == [2] * 4 + [0] * 4
    assert known.tolist() == [[True, False, True]]


@pytest.mark.parametrize("zoom", [(1.0, 1.0), (0.5, 0.9)])
def test_labels_move_with_the_pixels(zoom: tuple[float, float]) -> None:
    kept = TrainingFrames([1], 16, 4)
    square = np.zeros((16, 16), np.uint8)
    square[3:12, 2:9] = 1
    kept.add(0, np.repeat(square[..., None] * 255, 3, 2), square, {1}, keep=True)
    images, labels, _ = batches(kept, zoom=zoom).draw(16, CPU)
    bright = images[:, 0] > 0.5
    assert (bright == (labels == 1)).float().mean() > (0.999 if zoom == (1.0, 1.0) else 0.93)
    assert len({tuple(label.flatten().tolist()) for label in labels}) > 1


def test_annotated_frames_get_their_share_and_the_seed_decides() -> None:
    kept = filled(9, 20)
    one, same, other = (batches(kept, seed=seed).draw(400, CPU)[0] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    annotated = (one.amax((1, 2, 3)) == 0).float().mean()
    assert 0.4 < annotated < 0.6


@pytest.mark.parametrize("decay", ["exponential", "linear"])
def test_weights_fall_from_one_to_the_last(decay: str) -> None:
    weights = frame_weights([0, 5, 10], decay=decay, last_weight=0.25)  # type: ignore[arg-type]
    assert weights[0] == 1
    assert weights[2] == pytest.approx(0.25)
    assert weights[1] == pytest.approx(0.5 if decay == "exponential" else 0.625)
    assert frame_weights([0], decay=decay, last_weight=0.25).tolist() == [1]  # type: ignore[arg-type]


def test_objects_are_known_from_their_annotation_on_in_the_direction_of_travel() -> None:
    given = {4: [1], 8: [2]}
    assert [known_ids(given, i, "forward") for i in (4, 7, 8)] == [{1}, {1}, {1, 2}]
    assert [known_ids(given, i, "backward") for i in (8, 5, 4, 0)] == [{2}, {2}, {1, 2}, {1, 2}]
    assert [known_ids(given, i, "both") for i in (0, 5, 9)] == [{1}, {1}, {1, 2}]
