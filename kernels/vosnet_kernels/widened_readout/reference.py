"""The definition of the widened readout: a few lines of plain PyTorch in the dtype of its inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Positions this little beyond the outermost cells, in cells, are still inside: many lie exactly on them, and
# rounding must not decide.
EDGE = 1e-3


def widened_readout_reference(
    query: Tensor,
    memory: Tensor,
    value: Tensor,
    *,
    radius: int,
    dilations: Sequence[int],
    temperature: float = 1.0,
    outside: str = "exclude",
) -> Tensor:
    """`widened_readout` as its definition; arguments and result as there.

    The restricted attention of Lai et al. 2020 with its two-step search. Features and values between cells
    are bilinear, zero beyond the frame.
    """
    readouts = []
    for one, frames, values in zip(query, memory, value, strict=True):
        logits, copied = [], []
        for frame, content, dilation in zip(frames, values, dilations, strict=True):
            at = _cells(one)
            if dilation > 1:
                at = expected_positions(one, frame, radius, dilation, temperature)
            found, inside = _windows(frame, at, radius, 1)  # [C, P, h, w], [P, h, w]
            affinity = torch.einsum("chw,cphw->phw", one, found) / temperature
            logits.append(affinity if outside == "zero" else affinity.masked_fill(~inside, -torch.inf))
            copied.append(_windows(content, at, radius, 1)[0])
        weights = torch.cat(logits).softmax(0)
        readouts.append(torch.einsum("phw,mphw->mhw", weights, torch.cat(copied, 1).to(weights.dtype)))
    return torch.stack(readouts).to(value.dtype)


def expected_positions(
    query: Tensor, memory: Tensor, radius: int, dilation: int, temperature: float
) -> Tensor:
    """Expected position of each query cell [C, h, w] in a frame [C, h, w]: (y, x) in cells, [2, h, w]."""
    at = _cells(query)
    found, inside = _windows(memory, at, radius, dilation)
    logits = torch.einsum("chw,cphw->phw", query, found) / temperature
    weights = logits.masked_fill(~inside, -torch.inf).softmax(0)
    positions = at[:, None] + _offsets(radius, dilation, query)[:, :, None, None]  # [2, P, h, w]
    return (weights * positions).sum(1)


def _cells(like: Tensor) -> Tensor:
    """(y, x) of every cell of [C, h, w], [2, h, w]."""
    axes = (torch.arange(size).to(like) for size in like.shape[-2:])
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def _offsets(radius: int, dilation: int, like: Tensor) -> Tensor:
    """(dy, dx) of a window's positions, row-major, [2, P]."""
    steps = torch.arange(-radius, radius + 1).to(like) * dilation
    return torch.stack(torch.meshgrid(steps, steps, indexing="ij")).flatten(1)


def _windows(x: Tensor, at: Tensor, radius: int, dilation: int) -> tuple[Tensor, Tensor]:
    """`x` [C, h, w] in the windows around `at` [2, h, w]: [C, P, h, w], and which lie inside, [P, h, w]."""
    h, w = x.shape[-2:]
    y, x_at = at[:, None] + _offsets(radius, dilation, at)[:, :, None, None]  # [P, h, w] each
    top, left = y.floor(), x_at.floor()
    sampled = x.new_zeros(x.shape[0], *y.shape)
    for dy in (0, 1):
        for dx in (0, 1):
            row, col = top + dy, left + dx
            share = (1 - (y - row).abs()) * (1 - (x_at - col).abs())
            exists = (row >= 0) & (row < h) & (col >= 0) & (col < w)
            cell = x[:, row.clamp(0, h - 1).long(), col.clamp(0, w - 1).long()]
            sampled += cell * (share * exists).to(x.dtype)
    return sampled, (y >= -EDGE) & (y <= h - 1 + EDGE) & (x_at >= -EDGE) & (x_at <= w - 1 + EDGE)
