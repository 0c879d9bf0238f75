"""The contract of `windowed_readout`: schema, implementations, fakes, autograd, argument checks.

The backward pass is an op of its own, so that a compiler sees it, and `opcheck` tests it, like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vosnet_kernels.backends import Backend, cpu_backend, cuda_backend, log_choice
from vosnet_kernels.checks import check_tensors
from vosnet_kernels.precision import full_float32
from vosnet_kernels.window import Attention
from vosnet_kernels.windowed_readout import tiled


def windowed_readout(
    query: Tensor,
    memory: Tensor,
    value: Tensor,
    *,
    radius: int,
    temperature: float = 1.0,
    outside: str = "exclude",
) -> Tensor:
    """Copy values from memory, weighted by a softmax over all cells in each query cell's window.

    The restricted attention of Lai et al. 2020: one softmax over the affinities with the cells of all T
    memory frames that lie at most `radius` away in each direction, applied to their values. Affinities,
    softmax and sums are at least float32 whatever the inputs are. Differentiable in query, memory and value;
    inputs that need no gradient cost nothing in the backward pass. No tensor of the affinities' size is ever
    stored, on any device.

    Args:
        query: features of the frame being explained, [B, C, h, w].
        memory: features of the frames to copy from, [B, T, C, h, w], query's dtype.
        value: what is copied, e.g. colors or mask probabilities, [B, T, M, h, w], any floating dtype.
        radius: window half-side in cells, inclusive: the window is 2 * radius + 1 wide and high.
        temperature: divides the affinities, positive.
        outside: how window cells beyond the frame count. "exclude": they get no weight. "zero": they have
            logit 0 and value 0, as if the frame were padded with zeros.

    Returns:
        Readout, [B, M, h, w], in value's dtype.

    Raises:
        ValueError: if shapes, devices or settings do not fit; the message holds the rule and the values.
        TypeError: if a tensor is not floating or query and memory differ in dtype.
    """
    readout: Tensor = _forward(query, memory, value, radius, temperature, outside)[0]
    return readout


def windowed_readout_with_lse(
    query: Tensor,
    memory: Tensor,
    value: Tensor,
    *,
    radius: int,
    temperature: float = 1.0,
    outside: str = "exclude",
) -> tuple[Tensor, Tensor]:
    """`windowed_readout` and the log-sum-exp of each query cell's logits, [B, h, w], at least float32.

    Readouts of different memories, weighted by the softmax of their log-sum-exps, add up to the readout of
    one softmax over all of them. Both results are differentiable.
    """
    readout, lse = _forward(query, memory, value, radius, temperature, outside)
    return readout, lse


def backend(query: Tensor) -> Backend:
    """The implementation for tensors like `query`, and why."""
    if query.device.type != "cuda":
        return cpu_backend("windowed_readout")
    if query.dtype == torch.float64:
        return Backend("torch", "windowed_readout runs as tiled matmuls: its Triton kernels sum in float32")
    return cuda_backend("windowed_readout", query.device)


def _implementation(query: Tensor) -> ModuleType:
    """The module that `backend` names; the choice is written to the debug log."""
    chosen = backend(query)
    log_choice("windowed_readout", chosen)
    if chosen.name == "triton":
        from vosnet_kernels.windowed_readout import launch_triton

        return launch_triton
    return tiled


@torch.library.custom_op("vosnet::windowed_readout", mutates_args=())
def _forward(
    query: Tensor, memory: Tensor, value: Tensor, radius: int, temperature: float, outside: str
) -> tuple[Tensor, Tensor]:
    """Readout and log-sum-exp of the logits, [B, h, w] float32."""
    attention = Attention(radius, temperature, outside)
    check_tensors("windowed_readout", query, memory, value)
    attention.check()
    forward = _implementation(query).readout_forward
    with full_float32(query.device.type):  # the logits of a sharp softmax do not survive rounding
        out, lse = forward(query, memory, value, attention)
    return out, lse


@_forward.register_fake
def _(query: Tensor, memory: Tensor, value: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    check_tensors("windowed_readout", query, memory, value)
    Attention(*settings).check()
    b, _, h, w = query.shape
    sums = torch.promote_types(query.dtype, torch.float32)
    return value.new_empty((b, value.shape[2], h, w)), query.new_empty((b, h, w), dtype=sums)


@torch.library.custom_op("vosnet::windowed_readout_backward", mutates_args=())
def _backward(
    grad: Tensor,
    query: Tensor,
    memory: Tensor,
    value: Tensor,
    lse: Tensor,
    delta: Tensor,
    radius: int,
    temperature: float,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, memory and value; unneeded ones are empty, because a schema has no None."""
    backward = _implementation(query).readout_backward
    with full_float32(query.device.type):
        attention = Attention(radius, temperature)
        gradients = backward(grad, query, memory, value, lse, delta, attention, needs)
    d_query, d_memory, d_value = (query.new_empty(0) if each is None else each for each in gradients)
    return d_query, d_memory, d_value


@_backward.register_fake
def _(grad: Tensor, query: Tensor, memory: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    b, t, c, h, w = memory.shape
    needs_query, needs_memory, needs_value = rest[-1]
    return (
        query.new_empty((b, h, w, c)).permute(0, 3, 1, 2) if needs_query else query.new_empty(0),
        memory.new_empty((b, t, h, w, c)).permute(0, 1, 4, 2, 3) if needs_memory else query.new_empty(0),
        value.new_empty(value.shape) if needs_value else query.new_empty(0),
    )


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, memory, value, ctx.radius, ctx.temperature, _ = inputs
    ctx.save_for_backward(query, memory, value, *output)


def _differentiate(ctx: Any, grad: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    query, memory, value, out, lse = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:3])
    # d_logits = weights * (<grad, value> - delta): the softmax's own share, and that of its normalizer.
    delta = (grad.to(lse.dtype) * out).sum(dim=1, dtype=lse.dtype) - grad_lse
    gradients = _backward(grad, query, memory, value, lse, delta, ctx.radius, ctx.temperature, needs)
    return *(each if needed else None for each, needed in zip(gradients, needs)), None, None, None


_forward.register_autograd(_differentiate, setup_context=_save_for_backward)
