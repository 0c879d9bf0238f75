"""J and F of every object in every frame of a sequence, with few frames in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vosnet.metrics.similarity import PAIRS, Floats, similarities


@dataclass(frozen=True)
class ObjectScores:
    """One object's scores over the frames that count.

    Attributes:
        region: region similarity J of each frame, [n].
        boundary: boundary accuracy F of each frame, [n].
    """

    region: Floats
    boundary: Floats


def score_frames(
    frames: Iterable[tuple[npt.NDArray[Any], npt.NDArray[Any]]], objects: Sequence[int]
) -> dict[int, ObjectScores]:
    """J and F of `objects` in each (predicted, annotated) pair of label maps.

    Args:
        frames: pairs of label maps, [H, W] each; consumed four at a time.
        objects: the ids to score.

    Returns:
        Scores by object id, one value per frame.

    Raises:
        ValueError: the two label maps of a frame differ in size.
    """
    region: dict[int, list[Floats]] = {index: [] for index in objects}
    boundary: dict[int, list[Floats]] = {index: [] for index in objects}
    for pred, true in _groups(frames):
        for index in objects:
            j, f = similarities(pred == index, true == index)
            region[index].append(j)
            boundary[index].append(f)
    return {i: ObjectScores(_joined(region[i]), _joined(boundary[i])) for i in objects}


def _groups(
    frames: Iterable[tuple[npt.NDArray[Any], npt.NDArray[Any]]],
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Consecutive frames of one size, stacked: [n, H, W] predicted and annotated, n <= 4."""
    group: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
    for pred, true in frames:
        if pred.shape != true.shape:
            raise ValueError(f"label maps of a frame differ in size: {pred.shape} and {true.shape}")
        if group and (len(group) == PAIRS or group[0][0].shape != pred.shape):
            yield np.stack([p for p, _ in group]), np.stack([t for _, t in group])
            group = []
        group.append((pred, true))
    if group:
        yield np.stack([p for p, _ in group]), np.stack([t for _, t in group])


def _joined(parts: list[Floats]) -> Floats:
    return np.concatenate(parts) if parts else np.empty(0)
