"""k nearest neighbours on a GPU: group maxima on tensor cores, then exact scores of the best groups only.

Eight successive memory cells of a row form a group. The k largest scores always lie in the k groups with the
largest maxima (were one outside of them, each of those groups would hold a better one): the first kernel
keeps one number per group, the second scores again, in float32, the k groups that matter. Groups are counted
in the order of (frame, y, x): the lower of two equal maxima is right and ties end as the definition says.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vosnet_kernels.workspace import workspace_bytes

GROUP = 8
TILE_H, TILE_W = 8, 16  # queries of one program of the first kernel
BLOCK_KEYS = 64  # memory cells of one matmul step
CHUNK = 1024  # group maxima that the second kernel holds in registers
SHARED_MARGIN = 8 * 2**10  # what the compiler takes beside the operands, bytes
NOWHERE = tl.constexpr(2**31 - 1)  # above every group and every cell


def knn_propagate_triton(
    query: Tensor,
    memory: Tensor,
    value: Tensor,
    *,
    k: int,
    temperature: float,
    radius: int,
    shape: str,
    global_frames: int,
    queries_per_program: int = 1,
) -> Tensor:
    """`knn_propagate_reference` on a GPU; arguments are taken as valid and as in `knn_propagate`.

    Temporary memory: group maxima near `workspace_bytes()`, and features with channels last unless they are.
    `queries_per_program` is the second kernel's: one suits a GPU, the interpreter is quicker with more.
    """
    B, T, M, h, w = value.shape
    readout = torch.empty((B, M, h, w), dtype=value.dtype, device=value.device)
    if readout.numel() == 0:
        return readout
    value = value.float() if value.dtype == torch.float64 else value
    tiles = triton.cdiv(h, TILE_H) * triton.cdiv(w, TILE_W)
    everywhere = Region.around_tile(h, w, max(h, w), strict=False)
    window = Region.around_tile(h, w, radius, strict=shape == "disc")
    global_groups = global_frames * everywhere.groups
    groups = global_groups + (T - global_frames) * window.groups  # of one query
    at_once = max(1, min(tiles, workspace_bytes() // (4 * TILE_H * TILE_W * groups)))
    maxima = torch.empty((at_once * TILE_H * TILE_W, groups), dtype=torch.float32, device=value.device)

    with torch.cuda.device_of(query):
        for b in range(B):
            cells, memory_cells = channels_last(query[b : b + 1])[0], channels_last(memory[b])
            for first_tile in range(0, tiles, at_once):
                count = min(at_once, tiles - first_tile)
                part = maxima[: count * TILE_H * TILE_W]
                _group_maxima(part, 0, cells, memory_cells[:global_frames], (h, w), everywhere, first_tile)
                _group_maxima(
                    part, global_groups, cells, memory_cells[global_frames:], (h, w), window, first_tile
                )
                _select_kernel[(triton.cdiv(len(part), queries_per_program),)](
                    cells,
                    memory_cells,
                    part,
                    value[b],
                    readout[b],
                    *value.stride()[1:],
                    h,
                    w,
                    window.rows,
                    window.columns,
                    window.reach,
                    window.radius,
                    everywhere.columns,
                    global_frames,
                    first_tile,
                    triton.cdiv(w, TILE_W),
                    len(part),
                    groups,
                    temperature,
                    **select_plan(cells.shape[1], groups, k, M, strict=window.strict),
                    BLOCK_Q=queries_per_program,
                )
    return readout


def _group_maxima(
    maxima: Tensor,
    first_group: int,
    cells: Tensor,
    frames: Tensor,
    size: tuple[int, int],
    region: "Region",
    first_tile: int,
) -> None:
    """Fill `maxima` [slots, groups] from column `first_group` on for `frames` [n, h * w, channels]."""
    if len(frames) == 0:
        return
    h, w = size
    _group_max_kernel[(len(maxima) // (TILE_H * TILE_W), len(frames))](
        cells,
        frames,
        maxima,
        h,
        w,
        region.rows,
        region.columns,
        region.reach,
        region.radius,
        first_tile,
        triton.cdiv(w, TILE_W),
        first_group,
        maxima.shape[1],
        STRICT=region.strict,
        **group_max_plan(
            cells.shape[1], cells.element_size(), _shared_bytes(cells), is_hip=torch.version.hip is not None
        ),
    )


@dataclass(frozen=True)
class Region:
    """The rectangle of memory cells that a tile of queries looks at, slid inside the frame at its borders.

    Attributes:
        radius: of the window; `strict` makes it a disc of cells nearer than `radius`, else it is a square.
        reach: cells between a tile's first query and the rectangle's first cell, before sliding.
        rows: height of the rectangle.
        columns: width of the rectangle in whole groups; the last ones may lie beyond a narrow frame.
    """

    radius: int
    strict: bool
    reach: int
    rows: int
    columns: int

    @classmethod
    def around_tile(cls, h: int, w: int, radius: int, *, strict: bool) -> "Region":
        """The region that holds the windows of all queries of a tile."""
        reach = radius - 1 if strict else radius
        columns = min(TILE_W + 2 * reach, w)
        return cls(radius, strict, reach, min(TILE_H + 2 * reach, h), triton.cdiv(columns, GROUP) * GROUP)

    @property
    def groups(self) -> int:
        """Groups of one frame."""
        return self.rows * self.columns // GROUP


def group_max_plan(channels: int, element_bytes: int, shared_bytes: int, *, is_hip: bool) -> dict[str, Any]:
    """How `_group_max_kernel` is compiled for a chip with `shared_bytes` per program.

    The queries of a tile stay in shared memory if they fit beside the keys in flight, else both stream.
    float32 is split so that the matrix unit keeps its accuracy ("tf32x3"; AMD's multiplies float32 as it is).
    """
    tile, block = TILE_H * TILE_W, BLOCK_KEYS
    in_flight = [2] if is_hip else [3, 2]
    fitting = [
        n for n in in_flight if element_bytes * channels * (tile + n * block) + SHARED_MARGIN <= shared_bytes
    ]
    resident = element_bytes == 2 and channels & (channels - 1) == 0 and bool(fitting)
    return {
        "CHANNELS": channels,
        "BLOCK_C": channels if resident else min(channels, 128 // element_bytes),
        "TILE_H": TILE_H,
        "TILE_W": TILE_W,
        "BLOCK_N": BLOCK_KEYS,
        "GROUP": GROUP,
        "PRECISION": "ieee" if is_hip else "tf32x3",
        "num_warps": 8,
        "num_stages": fitting[0] if resident else in_flight[0],
    }


def select_plan(channels: int, groups: int, k: int, value_channels: int, *, strict: bool) -> dict[str, Any]:
    """How `_select_kernel` is compiled: one warp, so that no step waits for another warp."""
    return {
        "CHANNELS": channels,
        "BLOCK_C": min(256, channels & -channels),
        "STRICT": strict,
        "TILE_H": TILE_H,
        "TILE_W": TILE_W,
        "GROUP": GROUP,
        "CHUNK": min(CHUNK, max(16, triton.next_power_of_2(groups))),
        "K": k,
        "K_PAD": triton.next_power_of_2(k),
        "M": value_channels,
        "M_PAD": triton.next_power_of_2(value_channels),
        "num_warps": 1,
    }


def _shared_bytes(tensor: Tensor) -> int:
    """Shared memory that one program may take on the tensor's device."""
    if not tensor.is_cuda:
        return 227 * 2**10  # the interpreter imitates a large chip
    properties = torch.cuda.get_device_properties(tensor.device)
    on_request = getattr(properties, "shared_memory_per_block_optin", 0)  # ROCm has no such thing
    return max(int(on_request), int(properties.shared_memory_per_block))


def channels_last(features: Tensor) -> Tensor:
    """Features [n, C, h, w] as [n, h * w, channels], channels padded with zeros to whole matmul steps.

    A view where features already lie so in memory.
    """
    n, C, h, w = features.shape
    features = features.float() if features.dtype == torch.float64 else features
    channels = max(16, triton.next_power_of_2(C)) if C <= 64 else triton.cdiv(C, 64) * 64
    cells = features.permute(0, 2, 3, 1)
    if channels == C and cells.is_contiguous():
        return cells.view(n, h * w, C)
    packed = torch.empty((n, h * w, channels), dtype=features.dtype, device=features.device)
    grid = (triton.cdiv(h * w, 64), triton.cdiv(channels, 64), n)
    _channels_last_kernel[grid](
        features, packed, *features.stride(), w, h * w, C, channels, BLOCK=64, num_warps=4
    )
    return packed


@triton.jit
def _channels_last_kernel(
    features_ptr,  # [n, C, h, w], strided
    packed_ptr,  # [n, h * w, channels]
    stride_n,
    stride_c,
    stride_y,
    stride_x,
    w,
    cells,
    C,
    channels,
    BLOCK: tl.constexpr,
):
    """Move channels last, through shared memory: both sides are read and written along their rows."""
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.program_id(2).to(tl.int64)
    source = features_ptr + n * stride_n + (cell // w) * stride_y + (cell % w) * stride_x
    x = tl.load(
        source[None, :] + c[:, None] * stride_c, mask=(c < C)[:, None] & (cell < cells)[None, :], other=0.0
    )
    target = packed_ptr + n * cells * channels + cell[:, None] * channels + c[None, :]
    tl.store(target, tl.trans(x), mask=(cell < cells)[:, None] & (c < channels)[None, :])


@triton.jit
def _group_max_kernel(
    query_ptr,  # [h * w, CHANNELS]
    memory_ptr,  # [frames, h * w, CHANNELS]
    maxima_ptr,  # [slots, groups]
    h,
    w,
    rows,
    columns,
    reach,
    radius,
    first_tile,
    tiles_x,
    first_group,
    groups,
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STRICT: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Largest score of each group of one frame, for one tile of queries."""
    BLOCK_M: tl.constexpr = TILE_H * TILE_W
    tile = first_tile + tl.program_id(0)
    frame = tl.program_id(1)
    y0 = (tile // tiles_x) * TILE_H
    x0 = (tile % tiles_x) * TILE_W
    m = tl.arange(0, BLOCK_M)
    query_y = y0 + m // TILE_W
    query_x = x0 + m % TILE_W
    in_frame = (query_y < h) & (query_x < w)
    query_rows = query_ptr + (query_y * w + query_x)[:, None] * CHANNELS
    frame_ptr = memory_ptr + frame.to(tl.int64) * h * w * CHANNELS
    c = tl.arange(0, BLOCK_C)
    top = _slid(y0 - reach, rows, h)
    left = _slid(x0 - reach, columns, w)
    frame_groups = rows * columns // GROUP
    slot = tl.program_id(0) * BLOCK_M + m
    maxima_row = maxima_ptr + slot.to(tl.int64) * groups + first_group + frame * frame_groups

    if BLOCK_C == CHANNELS:  # the queries stay on chip and only keys stream
        q = tl.load(query_rows + c[None, :], mask=in_frame[:, None], other=0.0)
    for start in range(0, rows * columns, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        y = top + n // columns
        x = left + n % columns
        exists = (n < rows * columns) & (x < w)
        keys = frame_ptr + (y * w + x)[None, :] * CHANNELS
        if BLOCK_C == CHANNELS:
            key = tl.load(keys + c[:, None], mask=exists[None, :], other=0.0)
            scores = tl.dot(q, key, input_precision=PRECISION)
        else:
            scores = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for c0 in range(0, CHANNELS, BLOCK_C):
                q_part = tl.load(query_rows + c0 + c[None, :], mask=in_frame[:, None], other=0.0)
                key = tl.load(keys + c0 + c[:, None], mask=exists[None, :], other=0.0)
                scores = tl.dot(q_part, key, scores, input_precision=PRECISION)
        inside = _inside(y[None, :] - query_y[:, None], x[None, :] - query_x[:, None], radius, STRICT)
        scores = tl.where(inside & exists[None, :], scores, float("-inf"))
        maxima = tl.max(tl.reshape(scores, (BLOCK_M, BLOCK_N // GROUP, GROUP)), 2)
        group = start // GROUP + tl.arange(0, BLOCK_N // GROUP)
        tl.store(maxima_row[:, None] + group[None, :], maxima, mask=(group < frame_groups)[None, :])


@triton.jit
def _select_kernel(
    query_ptr,  # [h * w, CHANNELS]
    memory_ptr,  # [T, h * w, CHANNELS]
    maxima_ptr,  # [slots, groups]
    value_ptr,  # [T, M, h, w], strided
    readout_ptr,  # [M, h, w]
    stride_t,
    stride_m,
    stride_y,
    stride_x,
    h,
    w,
    rows,
    columns,
    reach,
    radius,
    global_columns,
    global_frames,
    first_tile,
    tiles_x,
    slots,
    groups,
    temperature,
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STRICT: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
    K: tl.constexpr,
    K_PAD: tl.constexpr,
    M: tl.constexpr,
    M_PAD: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """The readout of a few queries: their K best groups, scored again by cell, then their K best cells."""
    slot = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    tile = first_tile + slot // (TILE_H * TILE_W)
    y0 = (tile // tiles_x) * TILE_H
    x0 = (tile % tiles_x) * TILE_W
    query_y = y0 + slot % (TILE_H * TILE_W) // TILE_W
    query_x = x0 + slot % TILE_W
    exists = (slot < slots) & (query_y < h) & (query_x < w)
    top = _slid(y0 - reach, rows, h)
    left = _slid(x0 - reach, columns, w)
    best_groups = _best_groups(
        maxima_ptr + slot.to(tl.int64) * groups, exists, groups, CHUNK, K, K_PAD, BLOCK_Q
    )

    j = tl.arange(0, K_PAD)
    lane = tl.arange(0, GROUP)
    c = tl.arange(0, BLOCK_C)
    scores = tl.full((BLOCK_Q, K_PAD, GROUP), float("-inf"), tl.float32)
    cells = tl.full((BLOCK_Q, K_PAD, GROUP), NOWHERE, tl.int32)
    for i in range(K):
        group = tl.sum(tl.where(j[None, :] == i, best_groups, 0), 1)
        in_global = group < global_frames * (h * global_columns // GROUP)
        after = tl.where(in_global, group, group - global_frames * (h * global_columns // GROUP))
        wide = tl.where(in_global, global_columns, columns)
        frame_groups = tl.where(in_global, h, rows) * wide // GROUP
        frame = tl.where(in_global, 0, global_frames) + after // frame_groups
        first = after % frame_groups * GROUP
        y = tl.where(in_global, 0, top) + first // wide
        x = (tl.where(in_global, 0, left) + first % wide)[:, None] + lane[None, :]
        inside = _inside((y - query_y)[:, None], x - query_x[:, None], radius, STRICT) | in_global[:, None]
        allowed = inside & (x < w) & (exists & (group < groups))[:, None]
        cell = ((frame * h + y) * w)[:, None] + x
        keys = memory_ptr + cell.to(tl.int64)[:, :, None] * CHANNELS
        score = tl.zeros((BLOCK_Q, GROUP), tl.float32)
        for c0 in tl.static_range(0, CHANNELS, BLOCK_C):
            query_row = query_ptr + (query_y * w + query_x)[:, None] * CHANNELS + c0 + c[None, :]
            q = tl.load(query_row, mask=exists[:, None], other=0.0).to(tl.float32)
            key = tl.load(keys + c0 + c[None, None, :], mask=allowed[:, :, None], other=0.0).to(tl.float32)
            score += tl.sum(q[:, None, :] * key, 2)
        here = (j == i)[None, :, None]
        scores = tl.where(here, tl.where(allowed, score, float("-inf"))[:, None, :], scores)
        cells = tl.where(here, tl.where(allowed, cell, NOWHERE)[:, None, :], cells)

    scores = tl.reshape(scores, (BLOCK_Q, K_PAD * GROUP))
    cells = tl.reshape(cells, (BLOCK_Q, K_PAD * GROUP))
    largest = tl.max(scores, 1)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    readout = tl.zeros((BLOCK_Q, M_PAD), tl.float32)
    channel = tl.arange(0, M_PAD)
    for _ in range(K):
        score = tl.max(scores, 1)
        cell = tl.min(tl.where(scores == score[:, None], cells, NOWHERE), 1)
        taken = cells == cell[:, None]
        scores = tl.where(taken, float("-inf"), scores)
        cells = tl.where(taken, NOWHERE, cells)
        weight = tl.where(cell < NOWHERE, tl.exp((score - largest) / temperature), 0.0)
        source = value_ptr + (cell // (h * w)).to(tl.int64) * stride_t
        source += cell // w % h * stride_y + cell % w * stride_x
        labels = tl.load(
            source[:, None] + channel[None, :] * stride_m,
            mask=(cell < NOWHERE)[:, None] & (channel < M)[None, :],
            other=0.0,
        )
        readout += weight[:, None] * labels.to(tl.float32)
        total += weight
    readout = readout / tl.where(exists, total, 1.0)[:, None]
    target = readout_ptr + channel[None, :] * (h * w) + (query_y * w + query_x)[:, None]
    tl.store(target, readout, mask=exists[:, None] & (channel < M)[None, :])


@triton.jit
def _best_groups(
    maxima_row,
    exists,
    groups,
    CHUNK: tl.constexpr,
    K: tl.constexpr,
    K_PAD: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """The K groups with the largest maxima, int32 [BLOCK_Q, K_PAD]; NOWHERE and below where there are fewer.

    A chunk at a time gives its largest maximum until none is larger than the smallest one kept. Groups come
    in ascending and leave in descending order, so equal maxima keep the lowest groups.
    """
    j = tl.arange(0, K_PAD)[None, :]
    kept = tl.zeros((BLOCK_Q, K_PAD), tl.float32) + tl.where(j < K, float("-inf"), float("inf"))
    kept_group = tl.zeros((BLOCK_Q, K_PAD), tl.int32) + (NOWHERE - j)
    for start in range(0, groups, CHUNK):
        group = start + tl.arange(0, CHUNK)[None, :]
        maxima = tl.load(
            maxima_row[:, None] + group, mask=exists[:, None] & (group < groups), other=float("-inf")
        )
        largest = tl.max(maxima, 1)
        smallest = tl.min(kept, 1)
        while tl.max((largest > smallest).to(tl.int32), 0) > 0:
            larger = (largest > smallest)[:, None]
            arrives = tl.min(tl.where(maxima == largest[:, None], group, NOWHERE), 1)
            leaves = tl.max(tl.where(kept == smallest[:, None], kept_group, -1), 1)
            replaced = larger & (kept_group == leaves[:, None])
            kept = tl.where(replaced, largest[:, None], kept)
            kept_group = tl.where(replaced, arrives[:, None], kept_group)
            maxima = tl.where(group == arrives[:, None], float("-inf"), maxima)
            largest = tl.max(maxima, 1)
            smallest = tl.min(kept, 1)
    return kept_group


@triton.jit
def _slid(start, size, length):
    """Where a span of `size` begins that would begin at `start`, moved inside 0..length."""
    return tl.maximum(tl.minimum(start, length - size), 0)


@triton.jit
def _inside(dy, dx, radius, STRICT: tl.constexpr):
    if STRICT:
        inside = dy * dy + dx * dx < radius * radius
    else:
        inside = (dy <= radius) & (dy >= -radius) & (dx <= radius) & (dx >= -radius)
    return inside
