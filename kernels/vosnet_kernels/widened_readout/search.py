"""The first search: where each query cell is expected in a far frame.

A window whose cells lie `dilation` apart connects cells of equal remainders only. So the frame falls apart
into dilation ** 2 smaller frames, in each of which the search is a plain windowed readout of coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vosnet_kernels.windowed_readout.op import windowed_readout


def expected_positions(
    query: Tensor, memory: Tensor, radius: int, dilation: int, temperature: float
) -> Tensor:
    """Expected position (y, x) of each query cell, in cells, inside the frame.

    Args:
        query: features, [B, C, h, w].
        memory: features of one far frame, [B, C, h, w].
        radius: half-side of the searched window in steps of `dilation` cells.
        dilation: step between the cells searched.
        temperature: divides the affinity.

    Returns:
        [B, 2, h, w], at least float32.
    """
    b, _, h, w = query.shape
    dtype = torch.promote_types(query.dtype, torch.float32)
    cells = _coordinates(h, w, query.device, dtype).expand(b, -1, -1, -1)
    positions = torch.empty_like(cells, memory_format=torch.contiguous_format)
    for y in range(min(dilation, h)):
        for x in range(min(dilation, w)):
            part = (..., slice(y, None, dilation), slice(x, None, dilation))
            positions[part] = windowed_readout(
                query[part].contiguous(),
                memory[part][:, None].contiguous(),
                cells[part][:, None].contiguous(),
                radius=radius,
                temperature=temperature,
            )
    last = torch.tensor([h - 1, w - 1], device=query.device, dtype=dtype)
    return positions.clamp_(min=0).minimum(last[:, None, None])  # rounding must not lead out of the frame


def _coordinates(h: int, w: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    y = torch.arange(h, device=device, dtype=dtype)
    x = torch.arange(w, device=device, dtype=dtype)
    return torch.stack([y[:, None].expand(h, w), x[None].expand(h, w)])
