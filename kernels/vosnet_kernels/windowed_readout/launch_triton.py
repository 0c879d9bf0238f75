"""Launches of the windowed readout's Triton kernels: layouts and configurations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from vosnet_kernels.window import Attention
from vosnet_kernels.windowed_readout.kernels_triton import (
    LOG2_E,
    readout_bwd_memory_kernel,
    readout_bwd_query_kernel,
    readout_fwd_kernel,
)


class Config(NamedTuple):
    """How a kernel is launched: chosen per family so that no kernel spills (see `vosnet_kernels.aot`).

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


def config(kernel: str, family: str, channels: int, itemsize: int) -> Config:
    """The launch configuration of a kernel.

    Args:
        kernel: "forward", "query" or "memory".
        family: "sm_80", "sm_90" or "gfx942".
        channels: of the features, rounded up to a power of two.
        itemsize: bytes of one channel.
    """
    if family == "gfx942":
        return Config((8, 8), 16 if kernel == "memory" else 32, 256, 4)
    if itemsize > 2:  # NVIDIA multiplies float32 exactly only without matrix units: registers hold the tiles
        return Config((4, 8), 32, 32, 8) if kernel == "memory" else Config((8, 8), 32, 64, 8)
    if channels > 256:
        return Config((4, 8), 32, 512, 8)
    return Config((8, 8), 64, 256, 4 if kernel == "forward" else 8)


def readout_forward(
    query: Tensor, memory: Tensor, value: Tensor, attention: Attention
) -> tuple[Tensor, Tensor]:
    """As `tiled.readout_forward`."""
    b, _, h, w = query.shape
    values = _padded_cells(value)
    out = values.new_empty((b, h, w, values.shape[-1]))
    lse = query.new_empty((b, h, w), dtype=torch.float32)
    inputs = (_cells(query), _cells(memory), values)
    flags = {"ZERO_OUTSIDE": attention.outside == "zero"}
    _launch(readout_fwd_kernel, "forward", inputs, (out, lse), attention, flags)
    return _values(out, value), lse


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
    """As `tiled.readout_backward`."""
    needs_query, needs_memory, needs_value = needs
    queries, memories, values = _cells(query), _cells(memory), _padded_cells(value)
    inputs = (queries, memories, values, _padded_cells(grad).to(values.dtype), lse, delta.contiguous())
    d_query = torch.empty_like(queries) if needs_query else None
    if d_query is not None:
        _launch(readout_bwd_query_kernel, "query", inputs, (d_query,), attention, {})
    d_memory = torch.empty_like(memories) if needs_memory else None
    d_value = torch.empty_like(values) if needs_value else None
    if needs_memory or needs_value:
        flags = {"NEEDS_MEMORY": needs_memory, "NEEDS_VALUE": needs_value}
        results = (d_memory, d_value)
        _launch(readout_bwd_memory_kernel, "memory", inputs, results, attention, flags)
    return (
        None if d_query is None else d_query.movedim(-1, -3),
        None if d_memory is None else d_memory.movedim(-1, -3),
        None if d_value is None else _values(d_value, value),
    )


def _cells(features: Tensor) -> Tensor:
    """Channels innermost, [..., C, h, w] -> [..., h, w, C]; a copy only if they are not so already."""
    return features.movedim(-3, -1).contiguous()


def _padded_cells(value: Tensor) -> Tensor:
    """[..., M, h, w] -> [..., h, w, BLOCK_M]: zeros up to the width that matrix units and wide loads want."""
    *batch, m, h, w = value.shape
    dtype = torch.float32 if value.dtype == torch.float64 else value.dtype
    padded = value.new_zeros((*batch, h, w, _block_m(m)), dtype=dtype)
    padded[..., :m] = value.movedim(-3, -1)
    return padded


def _values(padded: Tensor, value: Tensor) -> Tensor:
    """The reverse of `_padded_cells`, in the dtype and with the channels of `value`."""
    return padded[..., : value.shape[2]].movedim(-1, -3).to(value.dtype).contiguous()


def _launch(
    kernel: Any,
    name: str,
    inputs: Sequence[Tensor],
    results: Sequence[Tensor | None],
    attention: Attention,
    flags: dict[str, bool],
) -> None:
    """One program per tile, per batch or memory frame, and per chunk of channels whose gradient it owns."""
    query, memory, value = inputs[:3]
    b, h, w, c = query.shape
    frames, radius, family = memory.shape[1], attention.radius, _family(query.device)
    chosen, constants = launch_plan(name, family, query.dtype, c, value.shape[-1], radius)
    tiles_y, tiles_x = (triton.cdiv(size, tile) for size, tile in zip((h, w), chosen.tile))
    owns_channels = name == "query" or flags.get("NEEDS_MEMORY", False)
    chunks = triton.cdiv(c, constants["BLOCK_C"]) if owns_channels else 1
    grid = (tiles_y * tiles_x, b * frames if name == "memory" else b, chunks)
    if 0 in grid:
        return
    with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]
        kernel[grid](
            *inputs, *results, LOG2_E.value / attention.temperature, h, w, tiles_x, frames, radius,
            **constants, **flags, num_warps=chosen.num_warps, num_stages=chosen.num_stages,
        )  # fmt: skip


def launch_plan(
    name: str, family: str, dtype: torch.dtype, c: int, m: int, radius: int
) -> tuple[Config, dict[str, int]]:
    """How kernel `name` is launched, and its constants."""
    block_c = max(16, int(triton.next_power_of_2(c)))
    chosen = config(name, family, block_c, dtype.itemsize)
    cols = min(32, chosen.block, int(triton.next_power_of_2(chosen.tile[1] + 2 * radius)))
    constants = {
        "C": c, "BLOCK_C": min(block_c, chosen.channels), "BLOCK_M": _block_m(m),
        "TILE_H": chosen.tile[0], "TILE_W": chosen.tile[1], "ROWS": chosen.block // cols, "COLS": cols,
    }  # fmt: skip
    return chosen, constants


def _block_m(m: int) -> int:
    """Width that values are padded to: what matrix units take, at least 16."""
    return max(16, int(triton.next_power_of_2(m)))


def _family(device: torch.device) -> str:
    """The nearest of the architectures that configurations were found for."""
    if torch.version.hip is not None:
        return "gfx942"
    # Consumer chips of later generations have less shared memory than the A100; its configurations fit them.
    major = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 8
    return "sm_90" if major in {9, 10} else "sm_80"
