"""What the worker process of the interpreter runs: the launcher of the Triton kernels on CPU tensors."""

from typing import Any

from torch import Tensor

from vosnet_kernels import workspace_limit


def propagate(
    query: Tensor, memory: Tensor, value: Tensor, *, limit_bytes: int = 128 * 2**20, **settings: Any
) -> Tensor:
    """`knn_propagate` by its GPU kernels, many queries per program: quicker to interpret."""
    from vosnet_kernels.knn_propagate.launch_triton import knn_propagate_triton

    settings = {"shape": "square", "global_frames": 0, **settings}
    with workspace_limit(limit_bytes):
        return knn_propagate_triton(query, memory, value, **settings, queries_per_program=128)
