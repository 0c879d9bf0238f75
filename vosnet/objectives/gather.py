"""Tensors of all ranks, with gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vosnet.runtime import current_ranks


def gather_ranks(tensor: Tensor) -> Tensor:
    """Concatenate `tensor` [N, ...] of all ranks in rank order, [ranks * N, ...].

    The gradient of what every rank computes from a piece comes back to the rank that owns it, summed. With
    gradients averaged over ranks (as DDP does) and per-rank losses that are means over equally many rows, the
    result is the gradient of one process that holds the whole batch.
    """
    if current_ranks().size == 1:
        return tensor
    gathered: Tensor = _GatherRanks.apply(tensor)  # type: ignore[no-untyped-call]
    return gathered


class _GatherRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        pieces = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(pieces, tensor.contiguous())
        ctx.length = tensor.shape[0]
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].clone()
        dist.all_reduce(grad)
        start = dist.get_rank() * ctx.length
        return grad[start : start + ctx.length]
