"""The DAVIS palette, and writing a label map as a palette PNG."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vosnet.errors import InputError
from vosnet.files import atomic_path

RGB = tuple[int, int, int]


def _davis_palette() -> bytes:
    """Entry i spreads the bits of i over the high bits of red, green and blue, as PASCAL VOC does."""
    entries = np.zeros((256, 3), np.uint8)
    for index in range(256):
        rest = index
        for shift in range(7, -1, -1):
            for channel in range(3):
                entries[index, channel] |= ((rest >> channel) & 1) << shift
            rest >>= 3
    return entries.tobytes()


DAVIS_PALETTE = _davis_palette()


def palette_colors() -> dict[RGB, int]:
    """DAVIS color -> object id, including the 191 that the annotations of DAVIS-2017 hold instead of 192."""
    table = np.frombuffer(DAVIS_PALETTE, np.uint8).reshape(256, 3).tolist()
    colors = {(r, g, b): index for index, (r, g, b) in enumerate(table)}
    for index in range(22):  # beyond 21 the annotations' own palette is a grey ramp
        red, green, blue = (191 if level == 192 else level for level in table[index])
        colors.setdefault((red, green, blue), index)
    return colors


def write_mask(path: str | os.PathLike[str], mask: npt.NDArray[Any]) -> None:
    """Write a label map as a DAVIS result: mode P, 8 bit, 768-byte palette, same bytes for the same mask.

    Args:
        path: a .png; written whole or not at all.
        mask: object ids, [H, W], boolean or integer within 0..255; 0 is background.

    Raises:
        InputError: not [H, W], or ids that 8 bits cannot hold.
        StorageError: disk full or not writable.
    """
    if mask.ndim != 2 or mask.dtype.kind not in "bui" or 0 in mask.shape:
        raise InputError(
            "E246", f"a mask is an integer array [H, W], got {mask.dtype} {tuple(mask.shape)} for {path}"
        )
    if mask.dtype != np.uint8 and (int(mask.max()) > 255 or int(mask.min()) < 0):
        raise InputError(
            "E244",
            f"{path}: object ids {int(mask.min())}..{int(mask.max())} do not fit a palette PNG (0..255)",
            "Use --format coco-video, which takes any number of objects.",
        )
    image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8))
    image.putpalette(DAVIS_PALETTE)
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", bits=8, compress_level=6)
