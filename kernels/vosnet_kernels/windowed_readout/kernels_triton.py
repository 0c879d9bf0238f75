"""The windowed readout on a GPU: one kernel forward, two backward, affinities never in memory.

A program owns a tile of cells and walks the rectangle that its windows cover, in blocks of a few rows by a
few columns, over all memory frames. Features lie channels-last, so a block is a matrix of keys. More channels
than fit on the chip come in chunks: the affinity sums over them, a program owns one chunk of a gradient.

Forward: online softmax. Backward: one kernel walks from tiles of queries for the query gradient, one from
tiles of keys for memory and value gradients: the window is symmetric, so the queries that see a tile of keys
form the same rectangle. Each result cell is written once, by one program, in a fixed order: no atomics, the
same bits every time.

Logits are kept in base 2. Cells beyond the frame are never visited; the rule "zero" gives them logit 0 and
value 0, so their number is what the softmax denominator starts from.
"""

import math

import triton
import triton.language as tl

LOG2_E = tl.constexpr(math.log2(math.e))
LN_2 = tl.constexpr(math.log(2.0))
NEVER = tl.constexpr(-1e30)  # instead of -inf, whose differences are NaN
PRECISION = tl.constexpr("ieee")  # float32 features keep all their bits; it says nothing about other types


@triton.jit
def _tile_cells(tile, tiles_x, h, w, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Corner of a tile; coordinates and index of its cells, row-major, and whether they are in the frame."""
    y0, x0 = (tile // tiles_x) * TILE_H, (tile % tiles_x) * TILE_W
    n = tl.arange(0, TILE_H * TILE_W)
    y, x = y0 + n // TILE_W, x0 + n % TILE_W
    return y0, x0, y, x, y * w + x, (y < h) & (x < w)


@triton.jit
def _walk(start, size, radius, TILE: tl.constexpr, STEP: tl.constexpr):
    """Along one axis: first cell that the tile at `start` sees, and how many blocks of STEP cells follow."""
    low = tl.maximum(start - radius, 0)
    return low, tl.cdiv(tl.minimum(start + TILE + radius, size) - low, STEP)


@triton.jit
def _block_cells(block, low_y, low_x, blocks_x, h, w, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Coordinates and index of the cells of one block, row-major, and whether they are in the frame."""
    n = tl.arange(0, ROWS * COLS)
    y = low_y + (block // blocks_x) * ROWS + n // COLS
    x = low_x + (block % blocks_x) * COLS + n % COLS
    return y, x, y * w + x, (y < h) & (x < w)


@triton.jit
def _rows(ptr, cells, inside, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Channels [first, first + BLOCK) of some cells, [cells, BLOCK]; zeros outside and beyond WIDTH."""
    channel = first + tl.arange(0, BLOCK)
    mask = inside[:, None]
    if WIDTH % BLOCK != 0:
        mask = mask & (channel < WIDTH)[None, :]
    return tl.load(ptr + cells[:, None] * WIDTH + channel[None, :], mask=mask, other=0.0)


@triton.jit
def _store_rows(ptr, cells, inside, first, rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The reverse of `_rows`."""
    channel = first + tl.arange(0, BLOCK)
    mask = inside[:, None] & (channel < WIDTH)[None, :]
    tl.store(ptr + cells[:, None] * WIDTH + channel[None, :], rows.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _affinity(a_ptr, a, a_inside, b_ptr, b, b_inside, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Dot products of all cells `a` with all cells `b`, for more channels than fit on the chip at once."""
    affinity = tl.zeros((a.shape[0], b.shape[0]), tl.float32)
    for first in range(0, C, BLOCK_C):
        left = _rows(a_ptr, a, a_inside, first, C, BLOCK_C)
        right = _rows(b_ptr, b, b_inside, first, C, BLOCK_C)
        affinity = tl.dot(left, tl.trans(right), affinity, input_precision=PRECISION)
    return affinity


@triton.jit
def _sees(y, x, other_y, other_x, other_inside, radius):
    """Which cells of a tile and of a block lie in each other's window, [tile, block]."""
    near_y = tl.abs(other_y[None, :] - y[:, None]) <= radius
    near_x = tl.abs(other_x[None, :] - x[:, None]) <= radius
    return near_y & near_x & other_inside[None, :]


@triton.jit
def readout_fwd_kernel(
    query_ptr, memory_ptr, value_ptr, out_ptr, lse_ptr,
    scale, h, w, tiles_x, frames, radius,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    ZERO_OUTSIDE: tl.constexpr,
):  # fmt: skip
    y0, x0, y, x, own, inside = _tile_cells(tl.program_id(0), tiles_x, h, w, TILE_H, TILE_W)
    batch = tl.program_id(1).to(tl.int64)
    query_ptr += batch * h * w * C
    if C <= BLOCK_C:
        q = _rows(query_ptr, own, inside, 0, C, BLOCK_C)

    peak = tl.full((TILE_H * TILE_W,), NEVER, tl.float32)
    total = tl.zeros((TILE_H * TILE_W,), tl.float32)
    if ZERO_OUTSIDE:
        seen_y = tl.minimum(y + radius, h - 1) - tl.maximum(y - radius, 0) + 1
        seen_x = tl.minimum(x + radius, w - 1) - tl.maximum(x - radius, 0) + 1
        total = (frames * ((2 * radius + 1) * (2 * radius + 1) - seen_y * seen_x)).to(tl.float32)
        peak = tl.where(total > 0, 0.0, peak)
    copied = tl.zeros((TILE_H * TILE_W, BLOCK_M), tl.float32)

    low_y, blocks_y = _walk(y0, h, radius, TILE_H, ROWS)
    low_x, blocks_x = _walk(x0, w, radius, TILE_W, COLS)
    for step in range(frames * blocks_y * blocks_x):
        frame = batch * frames + step // (blocks_y * blocks_x)
        block = step % (blocks_y * blocks_x)
        key_y, key_x, cells, key_inside = _block_cells(block, low_y, low_x, blocks_x, h, w, ROWS, COLS)
        keys_ptr = memory_ptr + frame * h * w * C
        if C <= BLOCK_C:
            k = _rows(keys_ptr, cells, key_inside, 0, C, BLOCK_C)
            affinity = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        else:
            affinity = _affinity(query_ptr, own, inside, keys_ptr, cells, key_inside, C, BLOCK_C)
        v = _rows(value_ptr + frame * h * w * BLOCK_M, cells, key_inside, 0, BLOCK_M, BLOCK_M)
        logits = tl.where(_sees(y, x, key_y, key_x, key_inside, radius), affinity * scale, NEVER)
        new_peak = tl.maximum(peak, tl.max(logits, 1))
        # Before a query's first visible key this counts invisible ones; that key then scales them to 0.
        weights = tl.exp2(logits - new_peak[:, None])
        decay = tl.exp2(peak - new_peak)
        total = total * decay + tl.sum(weights, 1)
        copied = tl.dot(weights.to(v.dtype), v, copied * decay[:, None], input_precision=PRECISION)
        peak = new_peak
    _store_rows(out_ptr + batch * h * w * BLOCK_M, own, inside, 0, copied / total[:, None], BLOCK_M, BLOCK_M)
    tl.store(lse_ptr + batch * h * w + own, (peak + tl.log2(total)) * LN_2, mask=inside)


@triton.jit
def readout_bwd_query_kernel(
    query_ptr, memory_ptr, value_ptr, grad_ptr, lse_ptr, delta_ptr, d_query_ptr,
    scale, h, w, tiles_x, frames, radius,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    y0, x0, y, x, own, inside = _tile_cells(tl.program_id(0), tiles_x, h, w, TILE_H, TILE_W)
    batch = tl.program_id(1).to(tl.int64)
    query_ptr += batch * h * w * C
    if C <= BLOCK_C:
        q = _rows(query_ptr, own, inside, 0, C, BLOCK_C)
    first = tl.program_id(2) * BLOCK_C  # the channels whose gradient this program owns
    g = _rows(grad_ptr + batch * h * w * BLOCK_M, own, inside, 0, BLOCK_M, BLOCK_M)
    shift = tl.load(lse_ptr + batch * h * w + own, mask=inside, other=0.0) * LOG2_E
    delta = tl.load(delta_ptr + batch * h * w + own, mask=inside, other=0.0)
    d_query = tl.zeros((TILE_H * TILE_W, BLOCK_C), tl.float32)

    low_y, blocks_y = _walk(y0, h, radius, TILE_H, ROWS)
    low_x, blocks_x = _walk(x0, w, radius, TILE_W, COLS)
    for step in range(frames * blocks_y * blocks_x):
        frame = batch * frames + step // (blocks_y * blocks_x)
        block = step % (blocks_y * blocks_x)
        key_y, key_x, cells, key_inside = _block_cells(block, low_y, low_x, blocks_x, h, w, ROWS, COLS)
        keys_ptr = memory_ptr + frame * h * w * C
        k = _rows(keys_ptr, cells, key_inside, first, C, BLOCK_C)
        if C <= BLOCK_C:
            affinity = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        else:
            affinity = _affinity(query_ptr, own, inside, keys_ptr, cells, key_inside, C, BLOCK_C)
        v = _rows(value_ptr + frame * h * w * BLOCK_M, cells, key_inside, 0, BLOCK_M, BLOCK_M)
        sees = _sees(y, x, key_y, key_x, key_inside, radius)
        weights = tl.exp2(tl.where(sees, affinity * scale - shift[:, None], NEVER))
        d_logits = weights * (tl.dot(g, tl.trans(v), input_precision=PRECISION) - delta[:, None])
        d_query = tl.dot(d_logits.to(k.dtype), k, d_query, input_precision=PRECISION)
    _store_rows(d_query_ptr + batch * h * w * C, own, inside, first, d_query * (scale * LN_2), C, BLOCK_C)


@triton.jit
def readout_bwd_memory_kernel(
    query_ptr, memory_ptr, value_ptr, grad_ptr, lse_ptr, delta_ptr, d_memory_ptr, d_value_ptr,
    scale, h, w, tiles_x, frames, radius,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    NEEDS_MEMORY: tl.constexpr, NEEDS_VALUE: tl.constexpr,
):  # fmt: skip
    y0, x0, y, x, own, inside = _tile_cells(tl.program_id(0), tiles_x, h, w, TILE_H, TILE_W)
    frame = tl.program_id(1).to(tl.int64)
    batch = frame // frames
    memory_ptr += frame * h * w * C
    query_ptr += batch * h * w * C
    if C <= BLOCK_C:
        k = _rows(memory_ptr, own, inside, 0, C, BLOCK_C)
    first = tl.program_id(2) * BLOCK_C  # the channels whose gradient this program owns
    if NEEDS_MEMORY:
        v = _rows(value_ptr + frame * h * w * BLOCK_M, own, inside, 0, BLOCK_M, BLOCK_M)
        d_memory = tl.zeros((TILE_H * TILE_W, BLOCK_C), tl.float32)
    if NEEDS_VALUE:
        d_value = tl.zeros((TILE_H * TILE_W, BLOCK_M), tl.float32)

    low_y, blocks_y = _walk(y0, h, radius, TILE_H, ROWS)
    low_x, blocks_x = _walk(x0, w, radius, TILE_W, COLS)
    for step in range(blocks_y * blocks_x):
        query_y, query_x, cells, query_inside = _block_cells(step, low_y, low_x, blocks_x, h, w, ROWS, COLS)
        q = _rows(query_ptr, cells, query_inside, first, C, BLOCK_C)
        if C <= BLOCK_C:
            affinity = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        else:
            affinity = _affinity(memory_ptr, own, inside, query_ptr, cells, query_inside, C, BLOCK_C)
        g = _rows(grad_ptr + batch * h * w * BLOCK_M, cells, query_inside, 0, BLOCK_M, BLOCK_M)
        shift = tl.load(lse_ptr + batch * h * w + cells, mask=query_inside, other=0.0) * LOG2_E
        sees = _sees(y, x, query_y, query_x, query_inside, radius)
        weights = tl.exp2(tl.where(sees, affinity * scale - shift[None, :], NEVER))
        if NEEDS_VALUE:
            d_value = tl.dot(weights.to(g.dtype), g, d_value, input_precision=PRECISION)
        if NEEDS_MEMORY:
            delta = tl.load(delta_ptr + batch * h * w + cells, mask=query_inside, other=0.0)
            d_logits = weights * (tl.dot(v, tl.trans(g), input_precision=PRECISION) - delta[None, :])
            d_memory = tl.dot(d_logits.to(q.dtype), q, d_memory, input_precision=PRECISION)
    if NEEDS_MEMORY:
        _store_rows(
            d_memory_ptr + frame * h * w * C, own, inside, first, d_memory * (scale * LN_2), C, BLOCK_C
        )
    if NEEDS_VALUE:
        inside = inside & (first == 0)
        _store_rows(d_value_ptr + frame * h * w * BLOCK_M, own, inside, 0, d_value, BLOCK_M, BLOCK_M)
