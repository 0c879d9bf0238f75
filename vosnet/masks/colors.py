"""Masks drawn in colors: which colors are objects, which are blended edges, and the id of each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vosnet.errors import InputError
from vosnet.masks.palette import RGB, palette_colors

MAX_BLENDED = 0.25  # largest share of soft-edge pixels in a mask; images with more are photographs
JPEG_DISTANCE = 48  # colors closer than this are one color plus compression noise
JPEG_SHARE = 0.001  # a color rarer than this in a JPEG is compression noise


@dataclass(frozen=True)
class ColoredMask:
    """Label map of a color image.

    Attributes:
        ids: object ids, [H, W].
        colors: object id -> its color in the image.
        blended: how many pixels had a color between objects and were assigned to the nearest.
    """

    ids: npt.NDArray[np.uint8]
    colors: dict[int, RGB]
    blended: int


def ids_from_colors(
    rgb: npt.NDArray[np.uint8],
    *,
    path: str | os.PathLike[str],
    known: Mapping[RGB, int] | None = None,
    lossy: bool = False,
) -> ColoredMask:
    """Object ids of an image in which every object has its own color and black is background.

    A color counts as an object if it fills a 2x2 block somewhere (or if the image has only colors of the
    DAVIS palette); blends along soft edges are assigned to the nearest such color. A DAVIS color gets its
    palette index; the others get the lowest free ids in ascending order of (red, green, blue).

    Args:
        rgb: [H, W, 3].
        path: named in messages.
        known: ids of colors in earlier masks of the same video.
        lossy: the image was JPEG-compressed: similar colors are one.

    Raises:
        InputError: a photograph rather than a mask, or more than 255 objects.
    """
    codes = rgb.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)  # [H, W]
    levels, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    palette = palette_colors()
    known = known or {}
    table = {**palette, **known}
    solid = _solid_colors(codes, levels, counts, table, lossy=lossy)
    blended = int(counts[~np.isin(levels, solid)].sum())
    if blended > MAX_BLENDED * codes.size and not lossy:
        raise InputError(
            "E243",
            f"{path}: {len(levels)} colors, and {100 * blended / codes.size:.0f} % of the pixels have none "
            "that fills an area: this looks like a photograph, not a mask",
            "Give each object one flat color on black.",
        )
    ids_of_solid = _assign_ids(solid, table, set(known.values()), path, lossy=lossy)
    nearest = _nearest(levels, solid)
    ids = np.array([ids_of_solid[int(solid[i])] for i in nearest], np.uint8)
    colors = {index: _rgb(code) for code, index in ids_of_solid.items() if index}
    return ColoredMask(ids[inverse.reshape(codes.shape)], dict(sorted(colors.items())), blended)


def _solid_colors(
    codes: npt.NDArray[np.uint32],
    levels: npt.NDArray[np.uint32],
    counts: npt.NDArray[Any],
    table: Mapping[RGB, int],
    *,
    lossy: bool,
) -> npt.NDArray[np.uint32]:
    """The colors that are objects or background, as 24-bit codes, ascending."""
    if len(levels) <= 256 and all(_rgb(code) in table for code in levels):
        return levels
    corner = codes[:-1, :-1]
    flat = (corner == codes[1:, :-1]) & (corner == codes[:-1, 1:]) & (corner == codes[1:, 1:])
    solid: npt.NDArray[np.uint32] = np.unique(corner[flat])
    if not lossy:
        return solid if len(solid) else levels  # a handful of single pixels: every color counts
    kept: list[int] = []
    share = dict(zip(levels.tolist(), (counts / codes.size).tolist()))
    for code in sorted(levels.tolist() if len(solid) == 0 else solid.tolist(), key=lambda c: -share[c]):
        far = all(_distance(code, other) >= JPEG_DISTANCE**2 for other in kept)
        if far and (share[code] >= JPEG_SHARE or not kept):
            kept.append(code)
    return np.array(sorted(kept), np.uint32)


def _assign_ids(
    solid: npt.NDArray[np.uint32],
    table: Mapping[RGB, int],
    reserved: set[int],
    path: str | os.PathLike[str],
    *,
    lossy: bool,
) -> dict[int, int]:
    """24-bit color -> object id; colors outside `table` get free ids that are not `reserved`."""
    ids: dict[int, int] = {}
    for code in solid.tolist():
        color = _near_palette(code, table) if lossy else _rgb(code)
        if color in table:
            ids[code] = table[color]
    others = [code for code in solid.tolist() if code not in ids]
    taken = reserved | set(ids.values())
    free = [index for index in range(1, 256) if index not in taken]
    if len(others) > len(free):
        raise InputError(
            "E244",
            f"{path}: {len(solid)} colors fill areas, a mask holds at most 255 objects",
            "Split it into several masks, or store objects as COCO RLE (--format coco-video).",
        )
    return ids | dict(zip(others, free))


def _near_palette(code: int, table: Mapping[RGB, int]) -> RGB:
    """The color among the first 22 of the palette that is within JPEG noise of `code`, else `code` itself."""
    best = min(
        (color for color, index in table.items() if index < 22), key=lambda c: _distance(code, _code(c))
    )
    return best if _distance(code, _code(best)) < (JPEG_DISTANCE // 2) ** 2 else _rgb(code)


def _nearest(levels: npt.NDArray[np.uint32], solid: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """Index into `solid` of the color nearest to each of `levels`; ties go to the lower color."""
    channels = np.stack([levels >> 16, (levels >> 8) & 255, levels & 255], axis=1).astype(np.int64)  # [n, 3]
    best = np.full(len(levels), np.iinfo(np.int64).max)
    index = np.zeros(len(levels), np.int64)
    for position, code in enumerate(solid.tolist()):  # a loop, because [n, len(solid)] distances can be large
        distance = ((channels - np.array(_rgb(code))) ** 2).sum(axis=1)
        closer = distance < best
        best[closer], index[closer] = distance[closer], position
    return index


def _rgb(code: int) -> RGB:
    value = int(code)
    return value >> 16, (value >> 8) & 255, value & 255


def _code(color: RGB) -> int:
    return (color[0] << 16) | (color[1] << 8) | color[2]


def _distance(a: int, b: int) -> int:
    return sum((x - y) ** 2 for x, y in zip(_rgb(a), _rgb(b)))
