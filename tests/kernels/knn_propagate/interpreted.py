"""What the worker process of the interpreter runs: the launcher of the Triton kernels on CPU tensors."""

from typing import Any

from torch import Tensor

from vosnet_kernels import workspace_limit
from vosnet_kernels.window import Window


def propagate(
    query: Tensor,
    memory: Tensor,
    value: Tensor,
    *,
    k: int,
    temperature: float,
    limit_bytes: int = 2**27,
    **window: Any,
) -> Tensor:
    """`knn_propagate` by its GPU kernels, many queries per program: quicker to interpret."""
    from vosnet_kernels.knn_propagate.launch_triton import knn_propagate_triton

    settings: dict[str, Any] = {"k": k, "temperature": temperature, "window": Window(**window)}
    with workspace_limit(limit_bytes):
        return knn_propagate_triton(query, memory, value, **settings, queries_per_program=128)
