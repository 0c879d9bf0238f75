"""The window of a query cell, how it is read, and the tiles of query cells that are searched together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vosnet_kernels.checks import check_temperature

SHAPES, OUTSIDE_RULES = ("square", "disc"), ("exclude", "zero")
TILE = 8  # query cells per side: wider wastes products outside the windows, narrower makes thin matmuls


@dataclass(frozen=True)
class Window:
    """The memory cells that a query cell is compared with.

    Attributes:
        radius: reach in cells; windows are cut off at the frame's border.
        shape: "square" keeps |dy|, |dx| <= radius; "disc" keeps dy^2 + dx^2 < radius^2 (strict).
        global_frames: this many frames at the start of memory are searched over the whole frame.
    """

    radius: int
    shape: str = "square"
    global_frames: int = 0

    @property
    def strict(self) -> bool:
        """Whether the window is a disc."""
        return self.shape == "disc"

    @property
    def reach(self) -> int:
        """Largest |dy| and |dx| inside."""
        return self.radius - 1 if self.strict else self.radius

    def check(self, frames: int) -> None:
        """Raise ValueError unless the window is valid for a memory of that many frames."""
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be one of {SHAPES}, got shape={self.shape!r}")
        if self.radius < 0:
            raise ValueError(f"radius must not be negative, got radius={self.radius}")
        if self.strict and self.radius < 1:
            raise ValueError(
                'shape="disc" keeps dy^2 + dx^2 < radius^2: radius must be at least 1, '
                f"got radius={self.radius}"
            )
        if not 0 <= self.global_frames <= frames:
            raise ValueError(
                f"global_frames must lie between 0 and memory's {frames} frames, "
                f"got global_frames={self.global_frames}"
            )

    def bias(self, rows: Span, cols: Span, blocked: float, like: Tensor) -> Tensor:
        """0 where a query cell of a tile sees a memory cell, `blocked` elsewhere.

        Args:
            rows, cols: the tile.
            blocked: far below every score, or -inf.
            like: has the dtype and device of the result.

        Returns:
            [query rows, query columns, memory rows, memory columns].
        """
        dy, dx = (axis.offsets(like.device) for axis in (rows, cols))
        if self.strict:
            inside = dy[:, None, :, None] ** 2 + dx[None, :, None, :] ** 2 < self.radius**2
        else:
            inside = (dy.abs() <= self.radius)[:, None, :, None] & (dx.abs() <= self.radius)[None, :, None, :]
        return like.new_full(inside.shape, blocked).masked_fill_(inside, 0.0)


@dataclass(frozen=True)
class Attention:
    """A softmax over the logits of a square window; settings as for `windowed_readout`."""

    radius: int
    temperature: float
    outside: str = "exclude"

    def check(self) -> None:
        """Raise ValueError unless the settings are valid."""
        if self.radius < 0:
            raise ValueError(f"radius must not be negative, got radius={self.radius}")
        check_temperature(self.temperature)
        if self.outside not in OUTSIDE_RULES:
            raise ValueError(f"outside must be one of {OUTSIDE_RULES}, got outside={self.outside!r}")


class Span(NamedTuple):
    """A tile along one axis: query cells [start, stop) and the memory cells [low, high) that they see."""

    start: int
    stop: int
    low: int
    high: int

    @property
    def queries(self) -> slice:
        """The query cells."""
        return slice(self.start, self.stop)

    @property
    def cells(self) -> slice:
        """The memory cells."""
        return slice(self.low, self.high)

    def shape(self) -> tuple[int, int, int]:
        """Query cells, memory cells and the offset between them: tiles that agree have the same bias."""
        return self.stop - self.start, self.high - self.low, self.start - self.low

    def offsets(self, device: torch.device) -> Tensor:
        """Memory cell minus query cell, [query cells, memory cells]."""
        cells, queries = (torch.arange(*ends, device=device) for ends in (self[2:], self[:2]))
        return cells - queries[:, None]


def tile_spans(size: int, reach: int) -> list[Span]:
    """All tiles along an axis of `size` cells; the last one may be narrower, windows are cut at the frame."""
    return [
        Span(start, min(start + TILE, size), max(start - reach, 0), min(start + TILE + reach, size))
        for start in range(0, size, TILE)
    ]
