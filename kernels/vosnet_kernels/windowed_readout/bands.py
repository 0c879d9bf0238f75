"""How the tiled implementation cuts a frame: blocks of tiles of query cells, bands that hold their windows.

The memory columns that one column of tiles can see are a band [h, T, U, C]: whole rows of cells below each
other, so the window of a tile is a block of rows, and the windows of several tiles are one strided view.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from vosnet_kernels.window import TILE, Span, Window, tile_spans

LOG2_E, LN_2 = math.log2(math.e), math.log(2.0)  # logits are kept in base 2: exp2 is the fast exponential
# Instead of -inf, whose differences are NaN: far below every logit, and 2 to this power is exactly 0.
NEVER = -1e30


class Block(NamedTuple):
    """Tiles of one column, below each other: `rows` is the first, the others follow every TILE rows."""

    rows: Span
    cols: Span
    num_tiles: int

    def query_cells(self) -> tuple[slice, slice]:
        """The part of the frame that the tiles cover."""
        height = (self.num_tiles - 1) * TILE + self.rows.stop - self.rows.start
        return slice(self.rows.start, self.rows.start + height), self.cols.queries


def column_blocks(height: int, cols: Span, radius: int, most: int) -> Iterator[Block]:
    """The tiles of one column, those of equal shape together, at most `most` at a time."""
    for _, group in groupby(tile_spans(height, radius), key=Span.shape):
        rows = list(group)
        for first in range(0, len(rows), most):
            yield Block(rows[first], cols, len(rows[first : first + most]))


class WindowMasks:
    """0 where a query cell sees a cell of its tile's window, NEVER elsewhere: [tile, rows * T * U]."""

    def __init__(self, radius: int, frames: int, like: Tensor) -> None:
        self._window, self._frames, self._like = Window(radius), frames, like
        self._cols_shape: tuple[int, int, int] | None = None
        self._masks: dict[tuple[int, int, int], Tensor] = {}

    def __getitem__(self, block: Block) -> Tensor:
        rows_shape, cols_shape = block.rows.shape(), block.cols.shape()
        if cols_shape != self._cols_shape:  # neighboring columns share masks; older ones never return
            self._masks.clear()
            self._cols_shape = cols_shape
        if rows_shape not in self._masks:
            bias = self._window.bias(block.rows, block.cols, NEVER, self._like)[:, :, :, None]
            every_frame = bias.expand(-1, -1, -1, self._frames, -1)  # [th, tw, rows, T, U]
            self._masks[rows_shape] = every_frame.reshape(rows_shape[0] * cols_shape[0], -1)
        return self._masks[rows_shape]


def channels_last(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, C, h, w] -> [N, h, w, C], always a fresh tensor.

    Frame by frame as plain matrices: PyTorch transposes those several times faster than it permutes axes.
    """
    n, c, h, w = frames.shape
    out = frames.new_empty((n, h, w, c), dtype=dtype)
    for target, frame in zip(out, frames):
        target.view(h * w, c).copy_(frame.to(dtype).reshape(c, h * w).t())
    return out


def key_band(keys: Tensor, cols: Span) -> Tensor:
    """The memory columns that a column of tiles can see: [T, h, w, C] -> [h, T, U, C]."""
    return keys[:, :, cols.cells].transpose(0, 1).contiguous()


def key_windows(band: Tensor, block: Block) -> Tensor:
    """The windows of a block's tiles as overlapping views of a band: [h, T, U, C] -> [n, rows * T * U, C]."""
    _, t, u, c = band.shape
    row = t * u * c
    cells = (block.rows.high - block.rows.low) * t * u
    return band[block.rows.low :].as_strided((block.num_tiles, cells, c), (TILE * row, c, 1))


def value_windows(band: Tensor, block: Block) -> Tensor:
    """As `key_windows`, channels outermost: [M, h, T, U] -> [n, M, rows * T * U]."""
    m, h, t, u = band.shape
    row = t * u
    cells = (block.rows.high - block.rows.low) * row
    return band[:, block.rows.low :].as_strided((block.num_tiles, m, cells), (TILE * row, h * row, 1))


def query_tiles(cells: Tensor, block: Block) -> Tensor:
    """The query cells of a block, row-major within a tile: [h, w, C] -> [n, tile, C]."""
    part = cells[block.query_cells()]
    return part.reshape(block.num_tiles, -1, part.shape[2])


def put_tiles(target: Tensor, tiles: Tensor, block: Block) -> None:
    """Write a block's tiles [n, tile, C] to where they belong in `target` [h, w, C], which may be a view."""
    part = target[block.query_cells()]
    part.copy_(tiles.view(part.shape))
