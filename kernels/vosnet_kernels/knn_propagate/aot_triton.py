"""The kernels of `knn_propagate` at the sizes that label propagation uses, for `vosnet_kernels.aot`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vosnet_kernels.aot import TARGETS, AotCase
from vosnet_kernels.knn_propagate.kernels_triton import channels_last_kernel, group_max_kernel, select_kernel
from vosnet_kernels.knn_propagate.launch_triton import Region, group_max_plan, select_plan

# 480p at output stride 8, as the published protocols have it: 20 frames, radius 12, 10 neighbours.
SIZE, FRAMES, RADIUS, NEIGHBOURS, VALUE_CHANNELS = (60, 107), 20, 12, 10, 4


def aot_cases(target: str) -> list[AotCase]:
    """Every kernel at the sizes that are used, as it would be launched on `target`."""
    is_hip = TARGETS[target].backend == "hip"
    groups = FRAMES * Region.around_tile(*SIZE, RADIUS, strict=False).groups
    cases = [_case("channels-last bf16", channels_last_kernel, "bf16", {"BLOCK": 64, "num_warps": 4}, target)]
    for features, itemsize in (("bf16", 2), ("fp32", 4)):
        for channels in (256, 512):
            group_max = group_max_plan(channels, itemsize, TARGETS[target].shared_limit, is_hip=is_hip)
            select = select_plan(channels, groups, NEIGHBOURS, VALUE_CHANNELS, strict=False)
            name = f"{features} C={channels} M={VALUE_CHANNELS}"
            cases += [
                _case(
                    f"group-max {name}", group_max_kernel, features, {**group_max, "STRICT": False}, target
                ),
                _case(f"select {name}", select_kernel, features, {**select, "BLOCK_Q": 1}, target),
            ]
    return cases


def _case(name: str, kernel: Any, features: str, plan: Mapping[str, Any], target: str) -> AotCase:
    constants = {key: value for key, value in plan.items() if not key.startswith("num_")}
    types = {"query_ptr": features, "memory_ptr": features, "features_ptr": features, "packed_ptr": features}
    signature = {}
    for arg in kernel.arg_names:
        if arg.endswith("_ptr"):
            signature[arg] = "*" + types.get(arg, "fp32")
        elif arg not in constants:
            signature[arg] = "fp32" if arg == "temperature" else "i32"
    default_stages = 2 if TARGETS[target].backend == "hip" else 3
    return AotCase(
        f"knn {name}", kernel, signature, constants,
        num_warps=plan["num_warps"], num_stages=plan.get("num_stages", default_stages),
        matmuls=kernel is group_max_kernel,
    )  # fmt: skip
