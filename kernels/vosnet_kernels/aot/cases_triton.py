"""Every Triton kernel at the sizes that are used, as its launcher would launch it on a named GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from vosnet_kernels.aot.compiler import TARGETS, AotCase
from vosnet_kernels.knn_propagate.kernels_triton import channels_last_kernel, group_max_kernel, select_kernel
from vosnet_kernels.knn_propagate.launch_triton import Region, group_max_plan, select_plan
from vosnet_kernels.window import Window
from vosnet_kernels.windowed_readout.kernels_triton import (
    readout_bwd_memory_kernel,
    readout_bwd_query_kernel,
    readout_fwd_kernel,
)
from vosnet_kernels.windowed_readout.launch_triton import launch_plan

READOUT_KERNELS = [
    (readout_fwd_kernel, "forward", {"ZERO_OUTSIDE": True}),
    (readout_bwd_query_kernel, "query", {}),
    (readout_bwd_memory_kernel, "memory", {"NEEDS_MEMORY": True, "NEEDS_VALUE": False}),
    (readout_bwd_memory_kernel, "memory", {"NEEDS_MEMORY": True, "NEEDS_VALUE": True}),
]
READOUT_SIZES = [  # features, C, M, radius
    ("bf16", 64, 3, 12),
    ("bf16", 128, 3, 12),
    ("bf16", 256, 3, 12),
    ("bf16", 256, 32, 24),
    ("bf16", 512, 3, 12),
    ("bf16", 2048, 3, 12),  # more than is held at once: chunks
    ("fp32", 64, 3, 12),
    ("fp32", 256, 3, 12),
]
# 480p at output stride 8, as the published protocols have it: 20 frames, radius 12, 10 neighbors.
KNN_SIZE, KNN_FRAMES, KNN_WINDOW, KNN_NEIGHBORS, KNN_VALUES = (60, 107), 20, Window(12), 10, 4


def cases(target: str) -> Iterator[AotCase]:
    """Every kernel of the package, configured as it would be launched on `target`."""
    for features, c, m, radius in READOUT_SIZES:
        dtype = torch.bfloat16 if features == "bf16" else torch.float32
        for kernel, name, flags in READOUT_KERNELS:
            config, constants = launch_plan(name, target, dtype, c, m, radius)
            yield AotCase(
                f"readout {name}{'+value' * flags.get('NEEDS_VALUE', False)} {features} C={c} M={m}",
                kernel, _signature(kernel, constants | flags, features, features), constants | flags,
                config.num_warps, config.num_stages, matmuls=target == "gfx942" or features == "bf16",
            )  # fmt: skip
    yield _knn_case("channels-last bf16", channels_last_kernel, "bf16", {"BLOCK": 64, "num_warps": 4}, target)
    groups = KNN_FRAMES * Region.around_tile(*KNN_SIZE, KNN_WINDOW).groups
    chip = TARGETS[target]
    for features, itemsize in (("bf16", 2), ("fp32", 4)):
        for c in (256, 512):
            group_max = group_max_plan(c, itemsize, chip.shared_limit, is_hip=chip.backend == "hip")
            select = select_plan(c, groups, KNN_NEIGHBORS, KNN_VALUES, strict=False)
            name = f"{features} C={c} M={KNN_VALUES}"
            group_max["STRICT"], select["BLOCK_Q"] = False, 1
            yield _knn_case(f"group-max {name}", group_max_kernel, features, group_max, target)
            yield _knn_case(f"select {name}", select_kernel, features, select, target)


def _knn_case(name: str, kernel: Any, features: str, plan: Mapping[str, Any], target: str) -> AotCase:
    constants = {key: value for key, value in plan.items() if not key.startswith("num_")}
    default_stages = 2 if TARGETS[target].backend == "hip" else 3
    return AotCase(
        f"knn {name}", kernel, _signature(kernel, constants, features, "fp32"), constants,
        num_warps=plan["num_warps"], num_stages=plan.get("num_stages", default_stages),
        matmuls=kernel is group_max_kernel,
    )  # fmt: skip


def _signature(kernel: Any, constants: Mapping[str, Any], features: str, values: str) -> dict[str, str]:
    """Type of each argument that is no constant; `features` and `values` are the dtypes of those tensors."""
    types = dict.fromkeys(("query_ptr", "memory_ptr", "features_ptr", "packed_ptr"), f"*{features}")
    types |= {"lse_ptr": "*fp32", "delta_ptr": "*fp32", "scale": "fp32", "temperature": "fp32"}
    return {
        arg: types.get(arg, f"*{values}" if arg.endswith("_ptr") else "i32")
        for arg in kernel.arg_names
        if arg not in constants
    }
