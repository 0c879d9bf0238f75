"""What the worker process of the interpreter runs: the launchers of the Triton kernels on CPU tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vosnet_kernels.window import Attention


def readout_with_gradients(
    query: Tensor,
    memory: Tensor,
    value: Tensor,
    grad: Tensor,
    radius: int,
    temperature: float,
    outside: str = "exclude",
    needs: Sequence[bool] = (True, True, True),
) -> list[Tensor | None]:
    """Readout, log-sum-exp and the three gradients as the op computes them, fresh memory filled with NaN."""
    from vosnet_kernels.windowed_readout import launch_triton

    torch.use_deterministic_algorithms(True)  # PyTorch then fills uninitialized memory
    attention = Attention(radius, temperature, outside)
    readout, lse = launch_triton.readout_forward(query, memory, value, attention)
    delta = (grad.to(lse.dtype) * readout).sum(1, dtype=lse.dtype)
    gradients = launch_triton.readout_backward(grad, query, memory, value, lse, delta, attention, needs)
    return [readout, lse, *gradients]
