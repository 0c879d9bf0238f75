"""One far frame of the widened readout as tiled matmuls in plain PyTorch: any device.

First search: a window whose cells lie `dilation` apart connects cells of equal remainders only. So the frame
splits into dilation ** 2 smaller frames, and the search in each is a windowed readout of coordinates.

Second search: a dense window around each query cell's expected position. Queries are sorted by the block of
BLOCK x BLOCK cells that their positions fall into. All windows of a block lie in one rectangle of the memory
frame, so the affinities of its queries are one matrix product, however scattered the queries themselves are;
nothing is gathered per query.

Positions lie between cells. An affinity with a bilinear feature is the bilinear interpolation of affinities
with cells, and the four shares are the same for a query's whole window. So the product is taken with cells,
the affinities are interpolated, and the values are read out four times, shifted by one cell, and mixed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vosnet_kernels.precision import full_float32
from vosnet_kernels.widened_readout.reference import EDGE
from vosnet_kernels.window import Attention
from vosnet_kernels.windowed_readout.bands import LN_2, LOG2_E, NEVER
from vosnet_kernels.windowed_readout.op import windowed_readout
from vosnet_kernels.workspace import workspace_bytes

BLOCK = 8
QUERIES = 64  # per matrix product
CACHE_BYTES = 8 << 20  # working set of a CPU thread


def far_readout(
    query: Tensor, memory: Tensor, value: Tensor, dilation: int, attention: Attention
) -> tuple[Tensor, Tensor]:
    """Readout [B, M, h, w] and log-sum-exp [B, h, w] of one far frame, at least float32.

    Args:
        query: features of the frame being explained, [B, C, h, w].
        memory: features of the far frame, [B, C, h, w].
        value: what is copied from it, [B, M, h, w].
        dilation: step between the cells of the first search.
        attention: its radius counts steps of `dilation` cells in the first search.
    """
    positions = expected_positions(query, memory, attention.radius, dilation, attention.temperature)
    with full_float32(query.device.type):
        found = [
            centered_readout(*each, attention) for each in zip(query, memory, value, positions, strict=True)
        ]
    readouts, sums = zip(*found, strict=True)
    return torch.stack(readouts), torch.stack(sums)


def expected_positions(
    query: Tensor, memory: Tensor, radius: int, dilation: int, temperature: float
) -> Tensor:
    """Expected position (y, x) of each query cell, in cells, inside the frame, [B, 2, h, w]."""
    b, _, h, w = query.shape
    dtype = torch.promote_types(query.dtype, torch.float32)
    axes = [torch.arange(size, device=query.device, dtype=dtype) for size in (h, w)]
    cells = torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(b, -1, -1, -1)
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


def centered_readout(
    query: Tensor, memory: Tensor, value: Tensor, positions: Tensor, attention: Attention
) -> tuple[Tensor, Tensor]:
    """Readout and log-sum-exp of the logits over a window of unit steps around each query's position.

    Args:
        query, memory, value: as for `far_readout`, one sample.
        positions: (y, x) in cells, inside the frame, [2, h, w].
        attention: of the windows.

    Returns:
        Readout [M, h, w] and log-sum-exp [h, w], in the dtype of `positions`.
    """
    c, h, w = query.shape
    m, dtype, radius = value.shape[0], positions.dtype, attention.radius
    at = positions.flatten(1).t()  # [hw, 2]
    whole = at.floor()
    tiles = _tiles(whole.long() // BLOCK, _blocks(h), _blocks(w))
    queries = _with_spare(query.to(dtype).flatten(1).t() * (LOG2_E / attention.temperature))
    at, whole = _with_spare(at), _with_spare(whole)
    keys, values = _rectangles(memory.to(dtype), radius), _rectangles(value.to(dtype), radius)
    out, lse = at.new_empty(h * w + 1, m), at.new_empty(h * w + 1)
    side = BLOCK + 2 * radius + 1
    most = _tiles_at_once(side, c, m, at)
    for first in range(0, len(tiles[0]), most):
        index, row, col = (part[first : first + most] for part in tiles)
        blocks = torch.stack([row, col], 1) * BLOCK  # top left cell, [n, 2]
        fraction = at[index] - whole[index]  # [n, Q, 2]
        logits = queries[index].bmm(keys[row, col].flatten(1, 2).transpose(1, 2))
        logits = _interpolated(logits.view(*index.shape, side, side), fraction)  # [n, Q, side - 1, side - 1]
        for axis, size in enumerate((h, w)):
            mask = _window_mask(at[index], whole[index], blocks, axis, size, attention)
            logits += mask[..., None] if axis == 0 else mask[:, :, None]
        weights = logits.flatten(2)
        peak = weights.amax(2, keepdim=True)
        copied = weights.sub_(peak).exp2_().bmm(_shifted(values[row, col]))  # [n, Q, 4 M + 1]
        total = copied[..., -1:]
        mixed = (copied[..., :-1].reshape(*index.shape, 4, m) * _shares(fraction)[..., None]).sum(2)
        out[index], lse[index] = mixed / total, (peak + total.log2())[..., 0] * LN_2
    return out[:-1].t().reshape(m, h, w), lse[:-1].view(h, w)


def _blocks(size: int) -> int:
    return -(-size // BLOCK)


def _tiles(block: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries grouped by the block [hw, 2] that their positions lie in.

    Returns:
        Index of each query cell, or h * w where a tile is not full, [N, QUERIES]; row and column of its
        block, [N] each.
    """
    flat = block[:, 0] * cols + block[:, 1]
    order = flat.argsort(stable=True)
    counts = flat.bincount(minlength=rows * cols)
    needed = (counts + QUERIES - 1) // QUERIES
    block_of_tile = torch.repeat_interleave(needed)  # [N]
    sorted_block = flat[order]
    rank = torch.arange(len(order), device=block.device) - (counts.cumsum(0) - counts)[sorted_block]
    queries = order.new_full((len(block_of_tile), QUERIES), len(order))
    queries[(needed.cumsum(0) - needed)[sorted_block] + rank // QUERIES, rank % QUERIES] = order
    return queries, block_of_tile // cols, block_of_tile % cols


def _with_spare(rows: Tensor) -> Tensor:
    """With a row of zeros at the end, which tiles that are not full point to."""
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])


def _rectangles(frame: Tensor, radius: int) -> Tensor:
    """What the windows of each block can see, zeros beyond the frame: a view [rows, cols, side, side, C]."""
    c, h, w = frame.shape
    rows, cols, side = _blocks(h), _blocks(w), BLOCK + 2 * radius + 1
    padded = frame.new_zeros((rows - 1) * BLOCK + side, (cols - 1) * BLOCK + side, c)
    padded[radius : radius + h, radius : radius + w] = frame.permute(1, 2, 0)
    return padded.unfold(0, side, BLOCK).unfold(1, side, BLOCK).permute(0, 1, 3, 4, 2)


def _tiles_at_once(side: int, channels: int, values: int, like: Tensor) -> int:
    """Tiles that fit in the workspace limit, and on a CPU in its cache; at least one."""
    one = (3 * QUERIES * side**2 + side**2 * (2 * channels + 10 * values)) * like.element_size()
    most = workspace_bytes()
    if like.device.type == "cpu":
        most = min(most, torch.get_num_threads() * CACHE_BYTES)
    return max(1, most // one)


def _interpolated(logits: Tensor, fraction: Tensor) -> Tensor:
    """Between each cell and the next, in both directions: [n, Q, side, side] -> one less each."""
    down, right = fraction[..., 0, None, None], fraction[..., 1, None, None]
    logits = torch.lerp(logits[:, :, :-1], logits[:, :, 1:], down)
    return torch.lerp(logits[..., :-1], logits[..., 1:], right)


def _window_mask(
    at: Tensor, whole: Tensor, blocks: Tensor, axis: int, size: int, attention: Attention
) -> Tensor:
    """0 where a row (axis 0) or column lies in the query's window, else NEVER, [n, Q, side - 1]."""
    steps = torch.arange(-attention.radius, BLOCK + attention.radius, device=at.device)
    offset = steps + (blocks[:, axis, None, None] - whole[..., axis, None])  # from the position
    seen = offset.abs() <= attention.radius
    if attention.outside == "exclude":
        place = at[..., axis, None] + offset
        seen &= (place >= -EDGE) & (place <= size - 1 + EDGE)
    return torch.zeros_like(offset).masked_fill_(~seen, NEVER)


def _shifted(values: Tensor) -> Tensor:
    """The four cells around each position, and ones for the softmax's total: [n, (side - 1)^2, 4 M + 1]."""
    parts = [values[:, :-1, :-1], values[:, :-1, 1:], values[:, 1:, :-1], values[:, 1:, 1:]]
    return torch.cat([*parts, torch.ones_like(parts[0][..., :1])], 3).flatten(1, 2)


def _shares(fraction: Tensor) -> Tensor:
    """Bilinear shares of the four cells, in the order of `_shifted`, [n, Q, 4]."""
    down, right = fraction.unbind(2)
    return torch.stack([(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right], 2)
