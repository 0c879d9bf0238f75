"""Where the clusters of a video lie: label maps of its frames, cut and mirrored as clips are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NO_LABEL = 255  # in the files; -1 for those who read them
LabelMaps = npt.NDArray[np.uint8]
Shares = npt.NDArray[np.float64]


@dataclass(frozen=True)
class VideoMaps:
    """The label maps of one video.

    Args:
        labels: cluster of every cell, [T, h, w] uint8, `NO_LABEL` for none.
        cell: height and width of a cell as shares of the frame's; the last row and column may stick out.
    """

    labels: LabelMaps
    cell: tuple[float, float]


def cut_map(
    maps: VideoMaps, t: int, box: Sequence[int], size: Sequence[int], grid: tuple[int, int]
) -> LabelMaps:
    """The labels under the middles of the cells of one square crop of a frame.

    Args:
        maps: of the video; beyond the last cell, the last one's label.
        t: which frame.
        box: top, left and side of the square in pixels of the frame as it was read.
        size: height and width of that frame.
        grid: h and w, the cells of the crop.
    """
    top, left, side = box
    rows = (top + (np.arange(grid[0]) + 0.5) * side / grid[0]) / size[0]
    columns = (left + (np.arange(grid[1]) + 0.5) * side / grid[1]) / size[1]
    return labels_at(maps, t, rows, columns)


def labels_at(maps: VideoMaps, t: int, rows: Shares, columns: Shares) -> LabelMaps:
    """The labels of frame `t` at shares of its height and of its width, [rows, columns]."""
    places = []
    for axis, shares in enumerate((rows, columns)):
        # 1e-6: a middle on the line between two cells belongs to the second, whatever the rounding
        cell = np.floor(shares / maps.cell[axis] + 1e-6).astype(np.int64)
        places.append(np.clip(cell, 0, maps.labels.shape[1 + axis] - 1))
    labels: LabelMaps = maps.labels[t][np.ix_(*places)]
    return labels


def cut_clip(
    maps: VideoMaps | None,
    frame_ids: Sequence[int],
    boxes: Sequence[Sequence[int]],
    size: Sequence[int],
    grid: tuple[int, int],
    *,
    flip: bool,
) -> npt.NDArray[np.int64]:
    """The labels of one clip, cut and mirrored as its frames were, [T, h, w]; -1 where there is none."""
    if maps is None:
        return np.full((len(frame_ids), *grid), -1, np.int64)
    frames = [cut_map(maps, t, box, size, grid) for t, box in zip(frame_ids, boxes, strict=True)]
    label = np.stack(frames).astype(np.int64)[:, :, :: -1 if flip else 1]
    return np.where(label == NO_LABEL, -1, label)
