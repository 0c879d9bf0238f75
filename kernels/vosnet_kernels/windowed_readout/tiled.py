"""The windowed readout as tiled matmuls in plain PyTorch: any device.

The frame is cut into tiles of 8 x 8 query cells. The cells that a tile can see form a rectangle, so its
affinities are one matrix product of 64 queries with a few hundred keys instead of the whole frame
(`bands.py`). All frames of the memory stand in the same product, so a softmax sees its whole row at once.
Logits are kept in base 2.

Cells beyond the frame are never touched. The rule "zero" gives each of them logit 0 and value 0, which adds
their number to the softmax denominator and nothing else: it is applied once at the end, and the log-sum-exp
carries it to the backward pass. That pass computes the logits again; nothing of the affinities' size outlives
a block of tiles. Sums run in a fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vosnet_kernels.window import TILE, Attention, tile_spans
from vosnet_kernels.windowed_readout.bands import (
    LN_2,
    LOG2_E,
    Block,
    WindowMasks,
    channels_last,
    column_blocks,
    key_band,
    key_windows,
    put_tiles,
    query_tiles,
    value_windows,
)
from vosnet_kernels.workspace import workspace_bytes

# Logits held at once, per thread: enough to amortize a call, few enough to stay in the processor's cache.
BLOCK_BYTES = 2 << 20


def readout_forward(
    query: Tensor, memory: Tensor, value: Tensor, attention: Attention
) -> tuple[Tensor, Tensor]:
    """Readout [B, M, h, w] in value's dtype, and log-sum-exp of the logits [B, h, w], at least float32."""
    b, _, h, w = query.shape
    radius = attention.radius
    t, m = value.shape[1:3]
    dtype = torch.promote_types(query.dtype, torch.float32)
    out, lse = query.new_empty((b, h, w, m), dtype=dtype), query.new_empty((b, h, w, 1), dtype=dtype)
    masks = WindowMasks(radius, t, lse)
    most = _tiles_at_once(radius, t, dtype)
    for i in range(b):
        queries = channels_last(query[i : i + 1], dtype)[0].mul_(LOG2_E / attention.temperature)
        keys, values = channels_last(memory[i], dtype), _with_ones(value[i], dtype)
        for cols in tile_spans(w, radius):
            band, value_band = key_band(keys, cols), values[..., cols.cells].contiguous()
            for block in column_blocks(h, cols, radius, most):
                k, v = key_windows(band, block), value_windows(value_band, block)
                weights = torch.baddbmm(masks[block], query_tiles(queries, block), k.transpose(1, 2))
                peak = weights.amax(dim=2, keepdim=True)
                copied = weights.sub_(peak).exp2_().bmm(v.transpose(1, 2))  # [n, tile, M + 1]
                total = copied[..., m:]
                put_tiles(out[i], copied[..., :m] / total, block)
                put_tiles(lse[i], (peak + total.log2()).mul_(LN_2), block)
    if attention.outside == "zero":
        _count_cells_beyond_the_frame(out, lse, radius, t)
    return out.to(value.dtype).permute(0, 3, 1, 2).contiguous(), lse.squeeze(3)


def readout_backward(
    grad: Tensor,
    query: Tensor,
    memory: Tensor,
    value: Tensor,
    lse: Tensor,
    delta: Tensor,
    attention: Attention,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of query, memory and value.

    The rule for cells beyond the frame needs no repeating: `lse` contains it, and they get no gradient.

    Args:
        grad: gradient of the readout, [B, M, h, w].
        query, memory, value, attention: as in the forward pass.
        lse: log-sum-exp of the forward pass, [B, h, w].
        delta: subtracted from each query cell's softmax gradient: the sum over channels of gradient times
            readout, [B, h, w].
        needs: which of the three gradients are wanted; no work is done for the others.

    Returns:
        Three gradients with shape and dtype of their inputs, or None. Those of query and memory have their
        channels innermost, as views of [B, h, w, C] and [B, T, h, w, C].
    """
    b, c, h, w = query.shape
    t, m = value.shape[1:3]
    radius, temperature, dtype = attention.radius, attention.temperature, lse.dtype
    needs_query, needs_memory, needs_value = needs
    d_query = query.new_empty((b, h, w, c), dtype=dtype) if needs_query else None
    d_memory = query.new_zeros((b, t, h, w, c), dtype=dtype) if needs_memory else None
    d_value = query.new_zeros((b, m, h, t, w), dtype=dtype) if needs_value else None
    masks = WindowMasks(radius, t, lse)
    most = _tiles_at_once(radius, t, dtype)
    for i in range(b):
        queries = channels_last(query[i : i + 1], dtype)[0].mul_(LOG2_E / temperature)
        keys, values = channels_last(memory[i], dtype), _with_ones(value[i], dtype)
        grads = torch.cat([grad[i].to(dtype), -delta[i, None]]).permute(1, 2, 0).contiguous()  # [h, w, M + 1]
        shifts = lse[i, :, :, None] * LOG2_E
        for cols in tile_spans(w, radius):
            band, value_band = key_band(keys, cols), values[..., cols.cells].contiguous()
            d_band = torch.zeros_like(band) if needs_memory else None
            d_value_band = torch.zeros_like(value_band[:m]) if needs_value else None
            for block in column_blocks(h, cols, radius, most):
                q, g, k = query_tiles(queries, block), query_tiles(grads, block), key_windows(band, block)
                weights = masks[block] - query_tiles(shifts, block)
                weights.baddbmm_(q, k.transpose(1, 2)).exp2_()
                if d_value_band is not None:
                    _add_value_gradient(d_value_band, g[..., :m], weights, block)
                if needs_query or needs_memory:
                    # The column of ones meets -delta: one product gives <gradient, value> - delta.
                    d_logits = g.bmm(value_windows(value_band, block)).mul_(weights)
                    if d_query is not None:
                        put_tiles(d_query[i], d_logits.bmm(k), block)
                    if d_band is not None:
                        _add_key_gradient(d_band, d_logits, q, block)
            if d_memory is not None and d_band is not None:
                d_memory[i, :, :, cols.cells].add_(d_band.transpose(0, 1))
            if d_value is not None and d_value_band is not None:
                d_value[i, ..., cols.cells].add_(d_value_band)
    # `queries` carried log2(e) / temperature: without log2(e) it is the factor that memory's gradient needs.
    return (
        None if d_query is None else d_query.div_(temperature).to(query.dtype).permute(0, 3, 1, 2),
        None if d_memory is None else d_memory.mul_(LN_2).to(memory.dtype).permute(0, 1, 4, 2, 3),
        None if d_value is None else d_value.permute(0, 3, 1, 2, 4).to(value.dtype).contiguous(),
    )


def _tiles_at_once(radius: int, frames: int, dtype: torch.dtype) -> int:
    """Tiles whose logits fit in the cache and, with their gradients, in the workspace limit; at least one."""
    one = TILE**2 * (TILE + 2 * radius) ** 2 * frames * dtype.itemsize
    return max(1, min(torch.get_num_threads() * BLOCK_BYTES, workspace_bytes() // 2) // one)


def _with_ones(value: Tensor, dtype: torch.dtype) -> Tensor:
    """[T, M, h, w] -> [M + 1, h, T, w]; reading out the channel of ones gives the softmax denominator."""
    t, m, h, w = value.shape
    out = value.new_ones((m + 1, h, t, w), dtype=dtype)
    out[:m] = value.permute(1, 2, 0, 3)
    return out


def _count_cells_beyond_the_frame(out: Tensor, lse: Tensor, radius: int, frames: int) -> None:
    """Let the cells beyond the frame share in the softmax with logit 0 and value 0.

    Args:
        out, lse: readout [B, h, w, M] and log-sum-exp [B, h, w, 1] over the cells inside, changed in place.
        radius: window half-side in cells.
        frames: number of memory frames.
    """
    _, h, w, _ = out.shape
    inside = [
        (at + radius).clamp(max=size - 1) - (at - radius).clamp(min=0) + 1
        for size in (h, w)
        for at in [torch.arange(size, device=out.device)]
    ]
    beyond = frames * ((2 * radius + 1) ** 2 - inside[0][:, None, None] * inside[1][None, :, None])
    total = torch.logaddexp(lse, beyond.to(lse.dtype).log())
    out.mul_((lse - total).exp_())
    lse.copy_(total)


def _add_value_gradient(d_band: Tensor, g: Tensor, weights: Tensor, block: Block) -> None:
    """Add weights^T times gradient to the windows of a block's tiles, which overlap: one after the other."""
    for window, part in zip(value_windows(d_band, block), g.transpose(1, 2).bmm(weights)):
        window.add_(part)


def _add_key_gradient(d_band: Tensor, d_logits: Tensor, q: Tensor, block: Block) -> None:
    """Add d_logits^T times query to the windows of a block's tiles, which overlap: one after the other."""
    for window, d_tile, q_tile in zip(key_windows(d_band, block), d_logits, q):
        window.addmm_(d_tile.t(), q_tile)
