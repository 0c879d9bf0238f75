"""k nearest neighbors on a GPU: group maxima on tensor cores, then exact scores of the best groups only.

Eight successive memory cells of a row form a group. The k largest scores always lie in the k groups with the
largest maxima (were one outside of them, each of those groups would hold a better one): the first kernel
keeps one number per group, the second scores again, in float32, the k groups that matter. Groups are counted
in the order of (frame, y, x): the lower of two equal maxima is right and ties end as the definition says.
"""

import triton
import triton.language as tl

NOWHERE = tl.constexpr(2**31 - 1)  # above every group and every cell


@triton.jit
def channels_last_kernel(
    features_ptr,  # [n, C, h, w], strided
    packed_ptr,  # [n, h * w, channels]
    stride_n, stride_c, stride_y, stride_x, w, cells, C, channels,
    BLOCK: tl.constexpr,
):  # fmt: skip
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
def group_max_kernel(
    query_ptr,  # [h * w, CHANNELS]
    memory_ptr,  # [frames, h * w, CHANNELS]
    maxima_ptr,  # [slots, groups]
    h, w, rows, columns, reach, radius, first_tile, tiles_x, first_group, groups,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, STRICT: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
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
def select_kernel(
    query_ptr,  # [h * w, CHANNELS]
    memory_ptr,  # [T, h * w, CHANNELS]
    maxima_ptr,  # [slots, groups]
    value_ptr,  # [T, M, h, w], strided
    readout_ptr,  # [M, h, w]
    stride_t, stride_m, stride_y, stride_x, h, w, rows, columns, reach, radius,
    global_columns, global_frames, first_tile, tiles_x, slots, groups, temperature,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, STRICT: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, GROUP: tl.constexpr, CHUNK: tl.constexpr,
    K: tl.constexpr, K_PAD: tl.constexpr, M: tl.constexpr, M_PAD: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
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
    maxima_row, exists, groups,
    CHUNK: tl.constexpr, K: tl.constexpr, K_PAD: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
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
