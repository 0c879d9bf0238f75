"""The frames with the lowest scores, with predicted and true outlines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vosnet.evaluation.results import SequenceResult
from vosnet.export.overlay import contact_sheet, object_colors
from vosnet.files import atomic_path
from vosnet.masks import read_label_map, read_mask

_PER_SEQUENCE = 3
_APART = 5  # frames between two pictures of one sequence: neighbors look alike
_WIDTH = 480


@dataclass(frozen=True)
class WorstFrame:
    """A frame and its scores, averaged over objects."""

    sequence: str
    stem: str
    region: float
    boundary: float


def worst_frames(results: Sequence[SequenceResult], count: int = 12) -> list[WorstFrame]:
    """The frames with the lowest mean of J and F, worst first, at most three of a sequence."""
    ranked = sorted(
        (frame for result in results for frame in _frames(result)),
        key=lambda pair: pair[1].region + pair[1].boundary,
    )
    chosen: list[WorstFrame] = []
    taken: dict[str, list[int]] = {}
    for t, frame in ranked:
        places = taken.setdefault(frame.sequence, [])
        if len(places) < _PER_SEQUENCE and all(abs(t - other) >= _APART for other in places):
            places.append(t)
            chosen.append(frame)
        if len(chosen) == count:
            break
    return chosen


def write_worst_frames(
    path: Path, frames: Sequence[WorstFrame], pictures: Mapping[tuple[str, str], tuple[Path, Path, Path]]
) -> None:
    """Write `frames` side by side in one image, worst first.

    Args:
        path: .png or .jpg.
        frames: see `worst_frames`.
        pictures: (sequence, stem) -> the files of the frame, its result and its annotation.
    """
    tiles = [_tile(frame, *pictures[frame.sequence, frame.stem]) for frame in frames]
    with atomic_path(path) as temporary:
        Image.fromarray(contact_sheet(tiles, columns=3, width=_WIDTH)).save(temporary)


def _frames(result: SequenceResult) -> list[tuple[int, WorstFrame]]:
    values: dict[str, list[tuple[float, float]]] = {}
    for index, scores in result.scores.items():
        for stem, j, f in zip(result.stems[index], scores.region.tolist(), scores.boundary.tolist()):
            values.setdefault(stem, []).append((j, f))
    means = {stem: np.mean(pairs, axis=0).tolist() for stem, pairs in values.items()}
    there = [stem for stem in sorted(means) if stem not in result.missing]
    return [(t, WorstFrame(result.name, stem, *means[stem])) for t, stem in enumerate(there)]


def _tile(frame: WorstFrame, picture: Path, result: Path, annotation: Path) -> NDArray[np.uint8]:
    """One frame at the sheet's width: true outlines white, predicted ones in the objects' colors."""
    with Image.open(picture) as image:
        height = max(1, round(image.height * _WIDTH / image.width))
        tile = np.array(image.convert("RGB").resize((_WIDTH, height)))
    colors = object_colors("okabe-ito")
    pred, true = (
        _resized(mask, (height, _WIDTH)) for mask in (read_label_map(result), read_mask(annotation).ids)
    )
    _outline(tile, true, np.full((256, 3), 255, np.uint8))
    _outline(tile, pred, colors)
    tile[:18] //= 3
    name = frame.sequence if len(frame.sequence) <= 24 else frame.sequence[:21] + "..."
    label = f"{name} {frame.stem}  J {frame.region:.2f}  F {frame.boundary:.2f}"
    text = label.encode("ascii", "replace").decode()  # OpenCV's fonts know no other letters
    cv2.putText(tile, text, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    return tile


def _resized(mask: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.array(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _outline(tile: NDArray[np.uint8], mask: NDArray[np.uint8], colors: NDArray[np.uint8]) -> None:
    inner = cv2.erode(mask, np.ones((3, 3), np.uint8))
    outer = cv2.dilate(mask, np.ones((3, 3), np.uint8))
    edge = (inner != outer) & (mask > 0)
    tile[edge] = colors[mask[edge]]
