"""The definition of the windowed readout: a few lines of plain PyTorch in the dtype of its inputs."""

from __future__ import annotations

import torch
from torch import Tensor


def windowed_readout_reference(
    query: Tensor,
    memory: Tensor,
    value: Tensor,
    *,
    radius: int,
    temperature: float = 1.0,
    outside: str = "exclude",
) -> Tensor:
    """`windowed_readout` as its definition; arguments and result as there.

    Every intermediate has the inputs' dtype and holds all windows, so this is for small maps: in float64 it
    is the truth that implementations are measured against, in lower precision the baseline.
    """
    logits = torch.einsum("bchw,btchwij->bhwtij", query, _windows(memory, radius)) / temperature
    if outside == "exclude":
        inside = _windows(query.new_ones(1, 1, 1, *query.shape[2:]), radius)  # [1, 1, 1, h, w, i, j]
        logits = logits.masked_fill(inside[0].movedim(1, 3) == 0, float("-inf"))
    weights = logits.flatten(3).softmax(dim=-1).view_as(logits)
    return torch.einsum("bhwtij,btmhwij->bmhw", weights, _windows(value, radius))


def _windows(x: Tensor, radius: int) -> Tensor:
    """Window of every cell, zeros beyond the frame: [B, T, C, h, w] -> [B, T, C, h, w, side, side]."""
    side = 2 * radius + 1
    padded = torch.nn.functional.pad(x, (radius, radius, radius, radius))
    return padded.unfold(3, side, 1).unfold(4, side, 1)
