"""Launching the GPU kernels of `knn_propagate`: which tiles, which regions of memory, how much at a time."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from vosnet_kernels.knn_propagate.kernels_triton import channels_last_kernel, group_max_kernel, select_kernel
from vosnet_kernels.window import Window
from vosnet_kernels.workspace import workspace_bytes

GROUP = 8
TILE_H, TILE_W = 8, 16  # queries of one program of the first kernel
BLOCK_KEYS = 64  # memory cells of one matmul step
CHUNK = 1024  # group maxima that the second kernel holds in registers
SHARED_MARGIN = 8 * 2**10  # what the compiler takes beside the operands, bytes


def knn_propagate_triton(
    query: Tensor,
    memory: Tensor,
    value: Tensor,
    *,
    k: int,
    temperature: float,
    window: Window,
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
    tiles_x = triton.cdiv(w, TILE_W)
    tiles = triton.cdiv(h, TILE_H) * tiles_x
    whole, local = Region.around_tile(h, w, Window(max(h, w))), Region.around_tile(h, w, window)
    n = window.global_frames
    groups = n * whole.groups + (T - n) * local.groups  # of one query
    at_once = max(1, min(tiles, workspace_bytes() // (4 * TILE_H * TILE_W * groups)))
    maxima = torch.empty((at_once * TILE_H * TILE_W, groups), dtype=torch.float32, device=value.device)

    with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]
        for b in range(B):
            cells, memory_cells = channels_last(query[b : b + 1])[0], channels_last(memory[b])
            plan = select_plan(cells.shape[1], groups, k, M, strict=window.strict)
            for first_tile in range(0, tiles, at_once):
                part = maxima[: min(at_once, tiles - first_tile) * TILE_H * TILE_W]
                _group_maxima(part, 0, cells, memory_cells[:n], (h, w), whole, first_tile)
                _group_maxima(part, n * whole.groups, cells, memory_cells[n:], (h, w), local, first_tile)
                select_kernel[(triton.cdiv(len(part), queries_per_program),)](
                    cells, memory_cells, part, value[b], readout[b], *value.stride()[1:], h, w,
                    local.rows, local.columns, local.window.reach, local.window.radius, whole.columns, n,
                    first_tile, tiles_x, len(part), groups, temperature,
                    **plan, BLOCK_Q=queries_per_program,
                )  # fmt: skip
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
    window, is_hip = region.window, torch.version.hip is not None
    plan = group_max_plan(cells.shape[1], cells.element_size(), _shared_bytes(cells), is_hip=is_hip)
    group_max_kernel[(len(maxima) // (TILE_H * TILE_W), len(frames))](
        cells, frames, maxima, h, w, region.rows, region.columns, window.reach, window.radius,
        first_tile, triton.cdiv(w, TILE_W), first_group, maxima.shape[1],
        STRICT=window.strict, **plan,
    )  # fmt: skip


@dataclass(frozen=True)
class Region:
    """The rectangle of memory cells that a tile of queries looks at, slid inside the frame at its borders.

    Attributes:
        window: of each query.
        rows: height of the rectangle.
        columns: width of the rectangle in whole groups; the last ones may lie beyond a narrow frame.
    """

    window: Window
    rows: int
    columns: int

    @classmethod
    def around_tile(cls, h: int, w: int, window: Window) -> "Region":
        """The region that holds the windows of all queries of a tile."""
        columns = min(TILE_W + 2 * window.reach, w)
        return cls(window, min(TILE_H + 2 * window.reach, h), triton.cdiv(columns, GROUP) * GROUP)

    @property
    def groups(self) -> int:
        """Groups of one frame."""
        return self.rows * self.columns // GROUP


def group_max_plan(channels: int, element_bytes: int, shared_bytes: int, *, is_hip: bool) -> dict[str, Any]:
    """How `group_max_kernel` is compiled for a chip with `shared_bytes` per program.

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
        "CHANNELS": channels, "BLOCK_C": channels if resident else min(channels, 128 // element_bytes),
        "TILE_H": TILE_H, "TILE_W": TILE_W, "BLOCK_N": BLOCK_KEYS, "GROUP": GROUP,
        "PRECISION": "ieee" if is_hip else "tf32x3",
        "num_warps": 8, "num_stages": fitting[0] if resident else in_flight[0],
    }  # fmt: skip


def select_plan(channels: int, groups: int, k: int, value_channels: int, *, strict: bool) -> dict[str, Any]:
    """How `select_kernel` is compiled: one warp, so that no step waits for another warp."""
    return {
        "CHANNELS": channels, "BLOCK_C": min(256, channels & -channels), "STRICT": strict,
        "TILE_H": TILE_H, "TILE_W": TILE_W, "GROUP": GROUP,
        "CHUNK": min(CHUNK, max(16, triton.next_power_of_2(groups))),
        "K": k, "K_PAD": triton.next_power_of_2(k),
        "M": value_channels, "M_PAD": triton.next_power_of_2(value_channels),
        "num_warps": 1,
    }  # fmt: skip


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
    channels_last_kernel[grid](
        features, packed, *features.stride(), w, h * w, C, channels, BLOCK=64, num_warps=4
    )
    return packed
