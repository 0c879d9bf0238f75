"""The DAVIS palette, and label maps as palette PNGs."""

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
    index, channel = np.arange(256)[:, None], np.arange(3)
    entries = sum(((index >> (3 * i + channel)) & 1) << (7 - i) for i in range(3))
    return np.asarray(entries, np.uint8).tobytes()


DAVIS_PALETTE = _davis_palette()


def palette_colors() -> dict[RGB, int]:
    """DAVIS color -> object id, also with 191 for 192, as in the annotations of DAVIS-2017."""
    table = np.frombuffer(DAVIS_PALETTE, np.uint8).reshape(256, 3).tolist()
    colors = {(r, g, b): index for index, (r, g, b) in enumerate(table)}
    for index in range(22):  # from 22 on, the palette of those annotations is a gray ramp
        red, green, blue = (191 if level == 192 else level for level in table[index])
        colors.setdefault((red, green, blue), index)
    return colors


def write_mask(path: str | os.PathLike[str], mask: npt.NDArray[Any]) -> None:
    """Write a label map as DAVIS does: mode P, 8 bits, 768-byte palette; the same mask gives the same bytes.

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
