"""Which frames are kept, how often each is drawn, and what augmentation leaves intact."""

import numpy as np
import pytest
import torch

from vosnet.adaptation.annotations import Annotations
from vosnet.adaptation.settings import make_settings
from vosnet.adaptation.training_frames import Batches, TrainingFrames, frame_weights

CPU = torch.device("cpu")


def label_map(*ids: int) -> np.ndarray:
    """A map that holds these objects."""
    return np.array([ids], np.uint8)


def filled(count: int, capacity: int, given: tuple[int, ...] = (0,), size: int = 8) -> TrainingFrames:
    """Frames whose red value is the index, and whose left half is object 7; object 3 comes in the last."""
    mask = np.zeros((16, 16), np.uint8)
    mask[:, :8] = 7
    late = mask.copy()
    late[0, 0] = 3
    annotations = Annotations({**dict.fromkeys(given, mask), count: late})
    kept = TrainingFrames(annotations, size, capacity)
    for index in range(count):
        frame = np.zeros((16, 16, 3), np.uint8)
        frame[:, :8] = index % 256
        kept.add(index, frame, mask)
    return kept


def batches(kept: TrainingFrames, *, seed: int = 0, zoom: tuple[float, float] = (1.0, 1.0)) -> Batches:
    plain = {"last_weight": 1.0, "jitter_probability": 0.0, "gray_probability": 0.0}
    return Batches(kept, make_settings(given_share=0.5, flip_probability=0.5, zoom=zoom, seed=seed, **plain))


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
    square = np.zeros((16, 16), np.uint8)
    square[3:12, 2:9] = 1
    kept = TrainingFrames(Annotations({0: square}), 16, 4)
    kept.add(0, np.repeat(square[..., None] * 255, 3, 2), square)
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
    masks = {4: label_map(1), 8: label_map(2)}
    forward, backward, both = (Annotations(masks, direction) for direction in ("forward", "backward", "both"))
    assert [forward.known(i) for i in (4, 7, 8)] == [{1}, {1}, {1, 2}]
    assert [backward.known(i) for i in (8, 5, 4, 0)] == [{2}, {2}, {1, 2}, {1, 2}]
    assert [both.known(i) for i in (0, 5, 9)] == [{1}, {1}, {1, 2}]
    assert [[given.distance(i) for i in (4, 6, 8)] for given in (forward, backward, both)] == [
        [0, 2, 4], [4, 2, 0], [0, 2, 4],
    ]  # fmt: skip
    assert forward.objects == [1, 2]
