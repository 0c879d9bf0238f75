"""What a user would write instead of our ops: published ways, each a plain function of the same inputs."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MASKED = float("-inf")
FLEX_TILE = (8, 16)  # cells of one 128-token block when tokens are ordered by tiles


def window(h: int, w: int, radius: int, device: torch.device) -> Tensor:
    """Whether two cells of a frame lie in each other's square window, [hw, hw]."""
    y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    near = [(axis.flatten()[:, None] - axis.flatten()[None]).abs() <= radius for axis in (y, x)]
    return near[0] & near[1]


def knn_dense(
    query: Tensor,
    memory: Tensor,
    value: Tensor,
    *,
    k: int,
    temperature: float,
    radius: int,
    max_scores: int = 10**9,
) -> Tensor:
    """Label propagation as published: all scores of a frame by matmul, mask, topk. For one sample.

    Query rows are taken in chunks of at most `max_scores` scores, as the published code does when a frame
    does not fit; below that size everything is one chunk.
    """
    T, _, h, w = memory.shape[1:]
    keys = memory[0].float().flatten(2)  # [T, C, hw]
    queries = query[0].float().flatten(1).t().contiguous()  # [hw, C]
    labels = value[0].float().flatten(2).transpose(1, 2).reshape(T * h * w, -1)
    bias = torch.zeros(h * w, h * w, device=query.device).masked_fill_(
        ~window(h, w, radius, query.device), MASKED
    )
    rows, step = [], max(1, max_scores // (T * h * w))
    for start in range(0, h * w, step):
        scores = torch.matmul(queries[start : start + step], keys)  # [T, rows, hw]
        scores += bias[start : start + step]
        best, cell = scores.permute(1, 0, 2).flatten(1).topk(k, dim=1)
        weights = torch.softmax(best / temperature, dim=1)
        rows.append((labels[cell] * weights[..., None]).sum(1))
    return torch.cat(rows).t().reshape(1, -1, h, w).to(value.dtype)


def knn_dense_key_axis(
    query: Tensor, memory: Tensor, value: Tensor, *, k: int, temperature: float, radius: int
) -> Tensor:
    """The same with memory cells along the first axis, [T * hw, hw], and the k best taken along it.

    That is the order in which label propagation is published (mask added, divided by the temperature, top k
    over the 21 * hw axis); `knn_dense` is kinder to the sort.
    """
    T, _, h, w = memory.shape[1:]
    keys = memory[0].float().flatten(2).transpose(1, 2).reshape(T * h * w, -1)
    labels = value[0].float().flatten(2).transpose(1, 2).reshape(T * h * w, -1)
    far = torch.where(window(h, w, radius, query.device), 0.0, MASKED)
    scores = (keys @ query[0].float().flatten(1)).view(T, h * w, h * w)
    scores += far
    best, cell = (scores.view(T * h * w, h * w) / temperature).topk(k, dim=0)
    copied = (labels[cell] * torch.softmax(best, dim=0)[..., None]).sum(0)
    return copied.t().reshape(1, -1, h, w).to(value.dtype)


def knn_unfold(
    query: Tensor, memory: Tensor, value: Tensor, *, k: int, temperature: float, radius: int
) -> Tensor:
    """The same with every window copied out: needs (2 radius + 1)^2 times the memory of the features."""
    T, _, h, w = memory.shape[1:]
    cells, areas = h * w, (2 * radius + 1) ** 2

    def windows(x: Tensor) -> Tensor:  # [T, n, h, w] -> [T, n, areas, hw]
        return F.unfold(x.float(), 2 * radius + 1, padding=radius).view(len(x), -1, areas, cells)

    scores = torch.stack(
        [
            torch.einsum("cpn,cn->np", windows(frame[None])[0], query[0].float().flatten(1))
            for frame in memory[0]
        ]
    )  # [T, hw, areas]
    inside = windows(torch.ones(1, 1, h, w, device=query.device))[0, 0].t()  # [hw, areas]
    scores = scores.masked_fill(inside == 0, MASKED).transpose(0, 1).reshape(cells, T * areas)
    best, place = scores.topk(k, dim=1)
    labels = windows(value[0]).permute(3, 0, 2, 1).reshape(cells, T * areas, -1)
    copied = labels.gather(1, place[..., None].expand(-1, -1, labels.shape[2]))
    weights = torch.softmax(best / temperature, dim=1)
    return (copied * weights[..., None]).sum(1).t().reshape(1, -1, h, w).to(value.dtype)


def readout_dense(query: Tensor, memory: Tensor, value: Tensor, *, radius: int, temperature: float) -> Tensor:
    """Attention over whole frames, everything outside the windows masked: matmuls under autograd."""
    B, T, _, h, w = memory.shape
    scores = query.flatten(2).transpose(1, 2) @ memory.transpose(1, 2).flatten(2) / temperature
    outside = ~window(h, w, radius, query.device).repeat(1, T)
    weights = scores.masked_fill(outside, MASKED).softmax(2)
    return (weights @ value.transpose(1, 2).flatten(2).transpose(1, 2)).transpose(1, 2).reshape(B, -1, h, w)


def readout_unfold(
    query: Tensor, memory: Tensor, value: Tensor, *, radius: int, temperature: float
) -> Tensor:
    """The same with every window copied out by unfold."""
    B, T, C, h, w = memory.shape
    areas = (2 * radius + 1) ** 2

    def windows(x: Tensor) -> Tensor:  # [n, c, h, w] -> [n, c, areas, hw]
        return F.unfold(x, 2 * radius + 1, padding=radius).view(len(x), -1, areas, h * w)

    keys = windows(memory.flatten(0, 1)).view(B, T, C, areas, h * w)
    scores = torch.einsum("bcn,btcpn->bntp", query.flatten(2), keys) / temperature
    inside = windows(torch.ones(1, 1, h, w, device=query.device, dtype=query.dtype))[0, 0].t()
    weights = scores.masked_fill((inside == 0)[:, None], MASKED).flatten(2).softmax(2).view_as(scores)
    labels = windows(value.flatten(0, 1)).view(B, T, -1, areas, h * w)
    return torch.einsum("bntp,btmpn->bmn", weights, labels).reshape(B, -1, h, w)


def readout_flex(
    query: Tensor,
    memory: Tensor,
    value: Tensor,
    *,
    radius: int,
    temperature: float,
    tiled: bool = False,
    compiled: bool = True,
) -> Tensor:
    """FlexAttention with the window as its mask; `tiled` orders tokens by tiles: fewer blocks are touched."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    B, T, _, h, w = memory.shape
    place = token_places(h, w, tiled).to(query.device)  # token -> cell
    y, x = place // w, place % w

    def in_window(b: Tensor, head: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        key = kv % (h * w)
        return ((y[q] - y[key]).abs() <= radius) & ((x[q] - x[key]).abs() <= radius)

    key = (tiled, h, w, T, radius, str(query.device))
    if key not in _block_masks:
        _block_masks[key] = create_block_mask(in_window, None, None, h * w, T * h * w, device=query.device)
    M = value.shape[2]
    padded = F.pad(value, (0, 0, 0, 0, 0, max(0, 16 - M))).to(query.dtype)
    tokens = query.flatten(2)[..., place].transpose(1, 2)[:, None]
    keys, values = (
        frames.flatten(3)[..., place].transpose(2, 3).flatten(1, 2)[:, None] for frames in (memory, padded)
    )
    attention = _compiled(flex_attention) if compiled else flex_attention
    out = attention(
        tokens.contiguous(),
        keys.contiguous(),
        values.contiguous(),
        block_mask=_block_masks[key],
        scale=1.0 / temperature,
    )[:, 0, :, :M]
    readout = torch.empty_like(out)
    readout[:, place] = out  # back from token order to cell order
    return readout.transpose(1, 2).reshape(B, M, h, w).to(value.dtype)


def token_places(h: int, w: int, tiled: bool) -> Tensor:
    """Which cell each token is, [hw]: row by row, or tile by tile."""
    cells = torch.arange(h * w).view(h, w)
    if not tiled:
        return cells.flatten()
    rows, columns = FLEX_TILE
    return torch.cat(
        [
            cells[y : y + rows, x : x + columns].flatten()
            for y in range(0, h, rows)
            for x in range(0, w, columns)
        ]
    )


_block_masks: dict[tuple[Any, ...], Any] = {}
_compiled_functions: dict[Any, Callable[..., Any]] = {}


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    if function not in _compiled_functions:
        _compiled_functions[function] = torch.compile(function, dynamic=False)
    return _compiled_functions[function]
