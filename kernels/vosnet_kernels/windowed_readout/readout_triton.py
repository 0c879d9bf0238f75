"""The windowed readout on a GPU: one kernel forward, two backward, affinities never in memory.

A program owns a tile of cells and walks the rectangle that its windows cover, in blocks of a few rows by a few
columns, over all memory frames. Features lie channels-last, so a block is a matrix of keys.

Forward: online softmax. Backward: one kernel per tile of queries for the query gradient, one per tile of keys for
memory and value gradients: the window is symmetric, so the queries that see a tile of keys form the same rectangle.
Each result cell is written once, by one program, in a fixed order: no atomics, the same bits every time.

Logits are kept in base 2. Cells beyond the frame are never visited; the rule "zero" gives them logit 0 and value 0,
so their number is what the softmax denominator starts from.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vosnet_kernels.aot import AotCase

LOG2_E = tl.constexpr(math.log2(math.e))
LN_2 = tl.constexpr(math.log(2.0))
NEVER = tl.constexpr(-1e30)  # instead of -inf, whose differences are NaN


@triton.jit
def _tile_cells(tile, tiles_x, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Corner of a tile and the coordinates of its cells, row-major."""
    y0, x0 = (tile // tiles_x) * TILE_H, (tile % tiles_x) * TILE_W
    n = tl.arange(0, TILE_H * TILE_W)
    return y0, x0, y0 + n // TILE_W, x0 + n % TILE_W


@triton.jit
def _walk(start, size, radius, TILE: tl.constexpr, STEP: tl.constexpr):
    """Along one axis: first cell that the tile at `start` sees, and how many blocks of STEP cover the others."""
    low = tl.maximum(start - radius, 0)
    return low, tl.cdiv(tl.minimum(start + TILE + radius, size) - low, STEP)


@triton.jit
def _block_cells(block, low_y, low_x, blocks_x, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Coordinates of the cells of one block of the walk, row-major."""
    n = tl.arange(0, ROWS * COLS)
    return low_y + (block // blocks_x) * ROWS + n // COLS, low_x + (block % blocks_x) * COLS + n % COLS


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
def _affinity(a_ptr, a, a_inside, b_ptr, b, b_inside, C: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr):
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
def _readout_fwd_kernel(
    query_ptr, memory_ptr, value_ptr, out_ptr, lse_ptr,
    scale, h, w, tiles_x, frames, radius,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    ZERO_OUTSIDE: tl.constexpr, PRECISION: tl.constexpr, VALUE_PRECISION: tl.constexpr,
):  # fmt: skip
    y0, x0, y, x = _tile_cells(tl.program_id(0), tiles_x, TILE_H, TILE_W)
    batch = tl.program_id(1).to(tl.int64)
    inside = (y < h) & (x < w)
    own = y * w + x
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
    for step in range(0, frames * blocks_y * blocks_x):
        frame = batch * frames + step // (blocks_y * blocks_x)
        key_y, key_x = _block_cells(step % (blocks_y * blocks_x), low_y, low_x, blocks_x, ROWS, COLS)
        key_inside = (key_y < h) & (key_x < w)
        cells = key_y * w + key_x
        keys_ptr = memory_ptr + frame * h * w * C
        if C <= BLOCK_C:
            k = _rows(keys_ptr, cells, key_inside, 0, C, BLOCK_C)
            affinity = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        else:
            affinity = _affinity(query_ptr, own, inside, keys_ptr, cells, key_inside, C, BLOCK_C, PRECISION)
        v = _rows(value_ptr + frame * h * w * BLOCK_M, cells, key_inside, 0, BLOCK_M, BLOCK_M)
        logits = tl.where(_sees(y, x, key_y, key_x, key_inside, radius), affinity * scale, NEVER)
        new_peak = tl.maximum(peak, tl.max(logits, 1))
        # Before a row's first visible key, this counts invisible ones; the first visible one scales them to 0.
        weights = tl.exp2(logits - new_peak[:, None])
        decay = tl.exp2(peak - new_peak)
        total = total * decay + tl.sum(weights, 1)
        copied = tl.dot(weights.to(v.dtype), v, copied * decay[:, None], input_precision=VALUE_PRECISION)
        peak = new_peak
    _store_rows(out_ptr + batch * h * w * BLOCK_M, own, inside, 0, copied / total[:, None], BLOCK_M, BLOCK_M)
    tl.store(lse_ptr + batch * h * w + own, (peak + tl.log2(total)) * LN_2, mask=inside)


@triton.jit
def _readout_bwd_query_kernel(
    query_ptr, memory_ptr, value_ptr, grad_ptr, lse_ptr, delta_ptr, d_query_ptr,
    scale, h, w, tiles_x, frames, radius,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    PRECISION: tl.constexpr, VALUE_PRECISION: tl.constexpr,
):  # fmt: skip
    y0, x0, y, x = _tile_cells(tl.program_id(0), tiles_x, TILE_H, TILE_W)
    batch = tl.program_id(1).to(tl.int64)
    inside = (y < h) & (x < w)
    own = y * w + x
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
    for step in range(0, frames * blocks_y * blocks_x):
        frame = batch * frames + step // (blocks_y * blocks_x)
        key_y, key_x = _block_cells(step % (blocks_y * blocks_x), low_y, low_x, blocks_x, ROWS, COLS)
        key_inside = (key_y < h) & (key_x < w)
        cells = key_y * w + key_x
        keys_ptr = memory_ptr + frame * h * w * C
        k = _rows(keys_ptr, cells, key_inside, first, C, BLOCK_C)
        if C <= BLOCK_C:
            affinity = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        else:
            affinity = _affinity(query_ptr, own, inside, keys_ptr, cells, key_inside, C, BLOCK_C, PRECISION)
        v = _rows(value_ptr + frame * h * w * BLOCK_M, cells, key_inside, 0, BLOCK_M, BLOCK_M)
        sees = _sees(y, x, key_y, key_x, key_inside, radius)
        weights = tl.exp2(tl.where(sees, affinity * scale - shift[:, None], NEVER))
        d_logits = weights * (tl.dot(g, tl.trans(v), input_precision=VALUE_PRECISION) - delta[:, None])
        d_query = tl.dot(d_logits.to(k.dtype), k, d_query, input_precision=PRECISION)
    _store_rows(d_query_ptr + batch * h * w * C, own, inside, first, d_query * (scale * LN_2), C, BLOCK_C)


@triton.jit
def _readout_bwd_memory_kernel(
    query_ptr, memory_ptr, value_ptr, grad_ptr, lse_ptr, delta_ptr, d_memory_ptr, d_value_ptr,
    scale, h, w, tiles_x, frames, radius,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    NEEDS_MEMORY: tl.constexpr, NEEDS_VALUE: tl.constexpr,
    PRECISION: tl.constexpr, VALUE_PRECISION: tl.constexpr,
):  # fmt: skip
    y0, x0, y, x = _tile_cells(tl.program_id(0), tiles_x, TILE_H, TILE_W)
    frame = tl.program_id(1).to(tl.int64)
    batch = frame // frames
    inside = (y < h) & (x < w)
    own = y * w + x
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
    for step in range(0, blocks_y * blocks_x):
        query_y, query_x = _block_cells(step, low_y, low_x, blocks_x, ROWS, COLS)
        query_inside = (query_y < h) & (query_x < w)
        cells = query_y * w + query_x
        q = _rows(query_ptr, cells, query_inside, first, C, BLOCK_C)
        if C <= BLOCK_C:
            affinity = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        else:
            affinity = _affinity(memory_ptr, own, inside, query_ptr, cells, query_inside, C, BLOCK_C, PRECISION)
        g = _rows(grad_ptr + batch * h * w * BLOCK_M, cells, query_inside, 0, BLOCK_M, BLOCK_M)
        shift = tl.load(lse_ptr + batch * h * w + cells, mask=query_inside, other=0.0) * LOG2_E
        sees = _sees(y, x, query_y, query_x, query_inside, radius)
        weights = tl.exp2(tl.where(sees, affinity * scale - shift[None, :], NEVER))
        if NEEDS_VALUE:
            d_value = tl.dot(weights.to(g.dtype), g, d_value, input_precision=VALUE_PRECISION)
        if NEEDS_MEMORY:
            delta = tl.load(delta_ptr + batch * h * w + cells, mask=query_inside, other=0.0)
            d_logits = weights * (tl.dot(v, tl.trans(g), input_precision=VALUE_PRECISION) - delta[None, :])
            d_memory = tl.dot(d_logits.to(q.dtype), q, d_memory, input_precision=PRECISION)
    if NEEDS_MEMORY:
        _store_rows(d_memory_ptr + frame * h * w * C, own, inside, first, d_memory * (scale * LN_2), C, BLOCK_C)
    if NEEDS_VALUE:
        _store_rows(d_value_ptr + frame * h * w * BLOCK_M, own, inside, 0, d_value, BLOCK_M, BLOCK_M)


class Config(NamedTuple):
    """How a kernel is launched: found by compiling for each family (`vosnet_kernels.aot`), none spills.

    Attributes:
        tile: rows and columns of cells that a program owns.
        block: cells per step of the walk.
        channels: at most this many channels are held at once.
        num_warps, num_stages: as Triton means them.
    """

    tile: tuple[int, int]
    block: int
    channels: int
    num_warps: int
    num_stages: int = 2


def config(kernel: str, family: str, channel_bytes: int, precision: str) -> Config:
    """The launch configuration of a kernel.

    Args:
        kernel: "forward", "query" or "memory".
        family: "sm_80", "sm_90" or "gfx942".
        channel_bytes: bytes of one cell's features, channels rounded up to a power of two.
        precision: of matrix products, as `tl.dot` names it.
    """
    if family == "gfx942":
        return Config((8, 8), 16 if kernel == "memory" else 32, 256, 4)
    if precision == "ieee":  # float32 without matrix units: registers hold what those would
        return Config((4, 8) if kernel == "memory" else (8, 8), 32, 64, 8)
    if channel_bytes > 512:
        return Config((4, 8), 32, 512, 8)
    return Config((8, 8), 64, 256, 4 if kernel == "forward" else 8)


def readout_forward(
    query: Tensor, memory: Tensor, value: Tensor, radius: int, temperature: float, outside: str
) -> tuple[Tensor, Tensor]:
    """As `cpu.readout_forward`."""
    b, _, h, w = query.shape
    m = value.shape[2]
    values = _padded_cells(value)
    out = values.new_empty((b, h, w, values.shape[-1]))
    lse = query.new_empty((b, h, w), dtype=torch.float32)
    tensors = (_cells(query), _cells(memory), values, out, lse)
    _launch(_readout_fwd_kernel, "forward", tensors, radius, temperature, ZERO_OUTSIDE=outside == "zero")
    return out[..., :m].movedim(-1, 1).to(value.dtype).contiguous(), lse


def readout_backward(
    grad: Tensor,
    query: Tensor,
    memory: Tensor,
    value: Tensor,
    lse: Tensor,
    delta: Tensor,
    radius: int,
    temperature: float,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As `cpu.readout_backward`."""
    needs_query, needs_memory, needs_value = needs
    queries, memories, values = _cells(query), _cells(memory), _padded_cells(value)
    inputs = (queries, memories, values, _padded_cells(grad).to(values.dtype), lse, delta.contiguous())
    d_query = torch.empty_like(queries) if needs_query else None
    if d_query is not None:
        _launch(_readout_bwd_query_kernel, "query", (*inputs, d_query), radius, temperature)
    d_memory = torch.empty_like(memories) if needs_memory else None
    d_value = torch.empty_like(values) if needs_value else None
    if needs_memory or needs_value:
        flags = {"NEEDS_MEMORY": needs_memory, "NEEDS_VALUE": needs_value}
        _launch(_readout_bwd_memory_kernel, "memory", (*inputs, d_memory, d_value), radius, temperature, **flags)
    return (
        None if d_query is None else d_query.movedim(-1, -3),
        None if d_memory is None else d_memory.movedim(-1, -3),
        None if d_value is None else d_value[..., : value.shape[2]].movedim(-1, -3).to(value.dtype).contiguous(),
    )


def _cells(features: Tensor) -> Tensor:
    """Channels innermost, [..., C, h, w] -> [..., h, w, C]; a copy only if they are not so already."""
    return features.movedim(-3, -1).contiguous()


def _padded_cells(value: Tensor) -> Tensor:
    """[..., M, h, w] -> [..., h, w, BLOCK_M]: zeros up to the width that matrix units and wide loads want."""
    *batch, m, h, w = value.shape
    dtype = torch.float32 if value.dtype == torch.float64 else value.dtype
    padded = value.new_zeros((*batch, h, w, max(16, triton.next_power_of_2(m))), dtype=dtype)
    padded[..., :m] = value.movedim(-3, -1)
    return padded


def _launch(
    kernel: Any, name: str, tensors: tuple[Tensor | None, ...], radius: int, temperature: float, **flags: bool
) -> None:
    """One program per tile, per batch or memory frame, and per chunk of the channels whose gradient it owns."""
    query, memory, value = tensors[:3]
    assert query is not None and memory is not None and value is not None
    b, h, w, c = query.shape
    frames = memory.shape[1]
    chosen, constants = _plan(name, _family(query.device), query.dtype, value.dtype, c, value.shape[-1], radius)
    tiles_y, tiles_x = (triton.cdiv(size, tile) for size, tile in zip((h, w), chosen.tile))
    owned = 1 if name == "forward" else triton.cdiv(c, constants["BLOCK_C"])
    grid = (tiles_y * tiles_x, b * frames if name == "memory" else b, owned)
    if 0 in grid:
        return
    with torch.cuda.device_of(query):
        kernel[grid](
            *tensors, LOG2_E.value / temperature, h, w, tiles_x, frames, radius,
            **constants, **flags, num_warps=chosen.num_warps, num_stages=chosen.num_stages,
        )  # fmt: skip


def _plan(
    name: str, family: str, dtype: torch.dtype, value_dtype: torch.dtype, c: int, block_m: int, radius: int
) -> tuple[Config, dict[str, Any]]:
    """How kernel `name` is launched, and its constants."""
    block_c, precision = max(16, triton.next_power_of_2(c)), _precision(dtype, family)
    chosen = config(name, family, block_c * dtype.itemsize, precision)
    cols = min(32, chosen.block, triton.next_power_of_2(chosen.tile[1] + 2 * radius))
    constants = {
        "C": c, "BLOCK_C": min(block_c, chosen.channels), "BLOCK_M": block_m,
        "TILE_H": chosen.tile[0], "TILE_W": chosen.tile[1], "ROWS": chosen.block // cols, "COLS": cols,
        "PRECISION": precision, "VALUE_PRECISION": _precision(value_dtype, family),
    }  # fmt: skip
    return chosen, constants


def _precision(dtype: torch.dtype, family: str) -> str:
    """How `tl.dot` multiplies float32 (16-bit types do not care): as `torch.set_float32_matmul_precision` says."""
    exact = family == "gfx942" or torch.get_float32_matmul_precision() == "highest"
    return "ieee" if dtype == torch.float32 and exact else "tf32"


def _family(device: torch.device) -> str:
    """The nearest of the architectures that configurations were found for."""
    if torch.version.hip is not None:
        return "gfx942"
    # Consumer chips of later generations have less shared memory than the A100; its configurations fit them.
    major = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 8
    return "sm_90" if major in {9, 10} else "sm_80"


AOT_SIZES = [
    (dtype, c, block_m, radius)
    for dtype in (torch.bfloat16, torch.float32)
    for c, block_m, radius in ((64, 16, 12), (128, 16, 12), (256, 16, 12), (256, 32, 24), (512, 16, 12), (2048, 16, 12))
]


def aot_cases(target: str) -> list[AotCase]:
    """Every kernel at the sizes that are used, as it would be launched on `target`."""
    kernels = [
        (_readout_fwd_kernel, "forward", {"ZERO_OUTSIDE": True}),
        (_readout_bwd_query_kernel, "query", {}),
        (_readout_bwd_memory_kernel, "memory", {"NEEDS_MEMORY": True, "NEEDS_VALUE": False}),
        (_readout_bwd_memory_kernel, "memory", {"NEEDS_MEMORY": True, "NEEDS_VALUE": True}),
    ]
    return [
        _aot_case(kernel, name, flags, target, *size) for size in AOT_SIZES for kernel, name, flags in kernels
    ]


def _aot_case(
    kernel: Any, name: str, flags: dict[str, bool], target: str, dtype: torch.dtype, c: int, m: int, radius: int
) -> AotCase:
    chosen, constants = _plan(name, target, dtype, dtype, c, m, radius)
    signature = {}
    for arg in kernel.arg_names:
        if arg in {"lse_ptr", "delta_ptr"}:
            signature[arg] = "*fp32"
        elif arg.endswith("_ptr"):
            signature[arg] = "*bf16" if dtype == torch.bfloat16 else "*fp32"
        elif arg not in constants | flags:
            signature[arg] = "fp32" if arg == "scale" else "i32"
    return AotCase(
        f"readout {name}{'+value' * flags.get('NEEDS_VALUE', False)} {signature['query_ptr'][1:]} C={c} M={m} R={radius}",
        kernel, signature, constants | flags, chosen.num_warps, chosen.num_stages,
        matmuls=target == "gfx942" or constants["PRECISION"] != "ieee",
    )  # fmt: skip
