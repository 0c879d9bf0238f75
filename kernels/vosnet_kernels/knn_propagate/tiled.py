"""k nearest neighbors as a few large matmuls in plain PyTorch: any device.

A tile of queries shares one rectangle of memory cells, the union of its windows: scores are batched matmuls.
The k best of a tile come in two steps that scan the scores once: the k largest elements always lie in the k
rows of cells with the largest maxima (were one outside of them, each of those rows would hold a better one),
so only row maxima are ranked over everything. Candidates are ranked by a 64-bit key that holds score and cell
and is therefore unique: equal scores keep the order of (frame, y, x) however the work is cut into chunks.
"""

from dataclasses import replace

import torch
from torch import Tensor

from vosnet_kernels.window import TILE, Window, tile_spans
from vosnet_kernels.workspace import workspace_bytes

GLOBAL_QUERIES = 128  # queries per matmul over a whole frame
CELL_BITS = 32
LAST_CELL = 2**31 - 1  # also the bits below a float32's sign


def knn_propagate_tiled(
    query: Tensor, memory: Tensor, value: Tensor, *, k: int, temperature: float, window: Window
) -> Tensor:
    """`knn_propagate_reference` in tiles, with float32 sums; arguments are taken as valid.

    Temporary memory stays near `workspace_bytes()` plus float32 copies of query and value.
    """
    B, T, _, h, w = memory.shape
    readout = torch.empty((B, value.shape[2], h, w), dtype=value.dtype, device=value.device)
    if readout.numel() == 0:
        return readout
    if not window.strict and window.radius >= max(h, w) - 1:
        window = replace(window, global_frames=T)  # every window is the whole frame
    empty = _pack(torch.tensor(-torch.inf), torch.tensor(0)).to(
        query.device
    )  # weight 0 of a cell that exists
    for b in range(B):
        cells = query[b].movedim(0, 2).float().contiguous()  # [h, w, C]
        best = empty.expand(h, w, k).clone()
        _search_frames(best, cells, memory[b, : window.global_frames])
        _search_windows(best, cells, memory[b], window)
        readout[b] = _copy(best, value[b], temperature)
    return readout


def _search_frames(best: Tensor, query: Tensor, memory: Tensor) -> None:
    """Rank every cell of the frames `memory` [n, C, h, w] for every query [h, w, C]."""
    h, w, C = query.shape
    queries, ranking = query.view(h * w, C), best.view(h * w, -1)
    step = max(1, min(GLOBAL_QUERIES, workspace_bytes() // (8 * h * w)))
    for frame, features in enumerate(memory):
        keys = features.float().reshape(C, h * w)
        for start in range(0, h * w, step):
            part = slice(start, start + step)
            scores = (queries[part] @ keys).view(1, -1, h, w)
            ranking[part] = _merge(ranking[part], scores, first_cell=frame * h * w, frame_shape=(h, w))


def _search_windows(best: Tensor, query: Tensor, memory: Tensor, window: Window) -> None:
    """Rank the cells of memory [T, C, h, w] that lie in each query's window, but for the global frames."""
    h, w, C = query.shape
    first, T = window.global_frames, len(memory)
    n = _frames_at_once(memory, window.reach)
    buffer = torch.empty(min(n, T - first) * C * h * min(w, TILE + 2 * window.reach), device=memory.device)
    for x in tile_spans(w, window.reach):
        for t0 in range(first, T, n):
            columns = memory[t0 : t0 + n, :, :, x.cells]
            strip = buffer[: columns.numel()].view(columns.shape).copy_(columns)  # [n, C, h, columns]
            for y in tile_spans(h, window.reach):
                ranked = best[y.queries, x.queries]
                tile = query[y.queries, x.queries].reshape(1, -1, C).expand(len(strip), -1, -1)
                keys = strip[:, :, y.cells].flatten(2)  # [n, C, rows * columns], a view
                bias = window.bias(y, x, -torch.inf, query).flatten(2).flatten(0, 1)
                scores = torch.baddbmm(bias, tile, keys).view(len(strip), -1, y.high - y.low, x.high - x.low)
                merged = _merge(ranked.flatten(0, 1), scores, (t0 * h + y.low) * w + x.low, (h, w))
                best[y.queries, x.queries] = merged.view_as(ranked)


def _frames_at_once(memory: Tensor, reach: int) -> int:
    """How many frames' key columns and scores the workspace holds, at least one."""
    _, C, h, w = memory.shape
    columns, rows = (min(length, TILE + 2 * reach) for length in (w, h))
    return max(1, workspace_bytes() // (4 * C * h * columns + 8 * TILE**2 * rows * columns))


def _merge(ranking: Tensor, scores: Tensor, first_cell: int, frame_shape: tuple[int, int]) -> Tensor:
    """The best of `ranking` [Q, k] and of `scores` [n, Q, rows, columns], as ranking keys [Q, k].

    The scores belong to a rectangle of n successive frames whose top left cell is `first_cell`; `frame_shape`
    (h, w) says how cells are counted.
    """
    k = ranking.shape[1]
    n, Q, rows, columns = scores.shape
    h, w = frame_shape
    device = scores.device
    maxima = scores.amax(3).transpose(0, 1).reshape(Q, n * rows)
    order = torch.arange(n * rows, device=device)
    row = LAST_CELL - (_pack(maxima, order).topk(min(k, n * rows), dim=1, sorted=False).values & LAST_CELL)
    t, y = row // rows, row % rows  # [Q, groups]
    location = (t * Q + torch.arange(Q, device=device)[:, None]) * rows + y
    candidates = scores.view(-1, columns)[location]  # [Q, groups, columns]
    cell = (first_cell + t * (h * w) + y * w)[..., None] + torch.arange(columns, device=device)
    keys = torch.cat([ranking, _pack(candidates, cell).flatten(1)], dim=1)
    return keys.topk(k, dim=1, sorted=False).values


def _pack(scores: Tensor, cells: Tensor) -> Tensor:
    """Ranking keys, int64: larger score first, then lower cell."""
    bits = (scores + 0.0).view(torch.int32).to(torch.int64)  # + 0.0: minus zero equals zero
    ordered = torch.where(bits < 0, bits ^ LAST_CELL, bits)  # float bits that order like integers
    return (ordered << CELL_BITS) | (LAST_CELL - cells)


def _unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (float32) and cells (int64) of ranking keys."""
    bits = keys >> CELL_BITS
    bits = torch.where(bits < 0, bits ^ LAST_CELL, bits)
    return bits.to(torch.int32).view(torch.float32), LAST_CELL - (keys & LAST_CELL)


def _copy(best: Tensor, value: Tensor, temperature: float) -> Tensor:
    """Softmax over the ranked scores [h, w, k], applied to value [T, M, h, w]: [M, h, w]."""
    h, w, k = best.shape
    labels = value.movedim(1, 3).float().flatten(0, 2)  # [T * h * w, M]
    step = max(1, workspace_bytes() // (4 * k * labels.shape[1]))
    ranking, rows = best.view(h * w, k), []
    for start in range(0, h * w, step):
        scores, cells = _unpack(ranking[start : start + step])
        weights = torch.softmax(scores / temperature, dim=1)
        rows.append((weights[:, None] @ labels[cells]).squeeze(1))
    return torch.cat(rows).t().view(-1, h, w)
