"""A contact sheet: frames of a few videos, tinted with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from vosnet import files
from vosnet.masks.palette import DAVIS_PALETTE

PICTURE = (108, 192)  # height and width of one frame, pixels
Picture = npt.NDArray[np.uint8]


def sheet_row(frames: npt.NDArray[np.uint8], labels: Sequence[npt.NDArray[np.uint8]]) -> Picture:
    """Frames side by side, half of each pixel in the color of its label.

    Args:
        frames: of any size, [N, H, W, 3].
        labels: of the frames at the size of PICTURE, N of [H', W']; 0 has the palette's first object color.

    Returns:
        [H', N * W', 3].
    """
    palette = np.frombuffer(DAVIS_PALETTE, np.uint8).reshape(256, 3)[1:]
    height, width = PICTURE
    small = [np.asarray(Image.fromarray(frame).resize((width, height))) for frame in frames]
    return np.concatenate(
        [f // 2 + palette[label] // 2 for f, label in zip(small, labels, strict=True)], axis=1
    )


def write_sheet(path: Path, rows: Sequence[Picture]) -> None:
    """Write rows below each other as one PNG."""
    with files.atomic_path(path) as partial:
        Image.fromarray(np.concatenate(rows)).save(partial)
