"""The contract of `knn_propagate`: schema, choice of an implementation, fake, argument checks."""

from typing import Any

import torch
from torch import Tensor

from vosnet_kernels.backends import Backend, cpu_backend, cuda_backend, log_choice
from vosnet_kernels.checks import check_temperature, check_tensors
from vosnet_kernels.knn_propagate.native import knn_propagate_native
from vosnet_kernels.knn_propagate.tiled import knn_propagate_tiled
from vosnet_kernels.precision import full_float32
from vosnet_kernels.window import Window

TRITON_MAX_K = 32  # neighbors and value channels that one warp holds in registers
TRITON_MAX_CHANNELS = 256


def knn_propagate(
    query: Tensor,
    memory: Tensor,
    value: Tensor,
    *,
    k: int,
    temperature: float,
    radius: int,
    shape: str = "square",
    global_frames: int = 0,
) -> Tensor:
    """Copy from the k most similar memory cells: the label propagation of Jabri et al. 2020.

    Per query cell, the k largest dot products over all candidates of all frames are divided by `temperature`
    and turned into weights by a softmax over those k; the weighted sum of their values is the readout.
    Features are used as given (callers normalize them) and must be finite; sums are float32.

    Args:
        query: features of the frame being explained, [B, C, h, w].
        memory: features of the frames to copy from, [B, T, C, h, w], query's dtype.
        value: what is copied, e.g. mask probabilities, [B, T, M, h, w], any floating dtype.
        k: neighbors per query cell, at least 1; where fewer candidates exist, all of them.
        temperature: softmax temperature, positive.
        radius: reach of the neighborhood in cells. It is cut off at the frame's border.
        shape: "square" keeps |dy|, |dx| <= radius; "disc" keeps dy^2 + dx^2 < radius^2 (strict).
        global_frames: this many frames at the start of memory are searched over the whole frame.

    Returns:
        Readout, [B, M, h, w], in value's dtype. Of equal dot products the lowest (frame, y, x) is taken.

    Raises:
        ValueError: if shapes, devices or settings do not fit; the message holds the rule and the values.
        TypeError: if a tensor is not floating or query and memory differ in dtype.
        RuntimeError: if an input requires grad while gradients are recorded: choosing neighbors is not
            differentiable, and this op is for inference.
    """
    if torch.is_grad_enabled() and (query.requires_grad or memory.requires_grad or value.requires_grad):
        raise RuntimeError(
            "knn_propagate is for inference and has no gradient, but an input requires grad: "
            "call it under torch.no_grad() or detach() its inputs"
        )
    readout: Tensor = _knn_propagate(query, memory, value, k, temperature, radius, shape, global_frames)
    return readout


# Defined by its schema: the first call of a `torch.library.custom_op` imports torch's compiler, more than a
# second that a short clip would feel. The gradient it would add is refused above.
torch.library.define(
    "vosnet::knn_propagate",
    "(Tensor query, Tensor memory, Tensor value, int k, float temperature, int radius, str shape, "
    "int global_frames) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_knn_propagate = torch.ops.vosnet.knn_propagate.default


@torch.library.impl("vosnet::knn_propagate", ("cpu", "cuda"))
def _(query: Tensor, memory: Tensor, value: Tensor, k: int, temperature: float, *region: Any) -> Tensor:
    window = Window(*region)
    check_arguments(query, memory, value, k, temperature, window)
    chosen = backend(query.device, k, value.shape[2])
    log_choice("knn_propagate", chosen)
    readout = None
    if chosen.name == "native":
        readout = knn_propagate_native(query, memory, value, k=k, temperature=temperature, window=window)
    elif chosen.name == "triton":
        from vosnet_kernels.knn_propagate.launch_triton import knn_propagate_triton  # triton is optional

        readout = knn_propagate_triton(query, memory, value, k=k, temperature=temperature, window=window)
    if readout is None:
        with full_float32(query.device.type):  # scores rounded to half precision choose other neighbors
            readout = knn_propagate_tiled(query, memory, value, k=k, temperature=temperature, window=window)
    return readout


@torch.library.register_fake("vosnet::knn_propagate")  # type: ignore[untyped-decorator]
def _(query: Tensor, memory: Tensor, value: Tensor, k: int, temperature: float, *region: Any) -> Tensor:
    check_arguments(query, memory, value, k, temperature, Window(*region))
    B, _, M, h, w = value.shape
    return value.new_empty((B, M, h, w))


def backend(device: torch.device, k: int, value_channels: int) -> Backend:
    """The implementation for tensors of `device`, and why."""
    if device.type != "cuda":
        return cpu_backend("knn_propagate")
    chosen = cuda_backend("knn_propagate", device)
    if chosen.name == "triton" and (k > TRITON_MAX_K or value_channels > TRITON_MAX_CHANNELS):
        return Backend(
            "torch",
            f"knn_propagate runs as tiled matmuls: its kernels hold {TRITON_MAX_K} neighbors and "
            f"{TRITON_MAX_CHANNELS} value channels, got k={k} and {value_channels} channels",
        )
    return chosen


def check_arguments(
    query: Tensor, memory: Tensor, value: Tensor, k: int, temperature: float, window: Window
) -> None:
    """Raise unless the arguments satisfy the contract of `knn_propagate`."""
    check_tensors("knn_propagate", query, memory, value)
    if k < 1:
        raise ValueError(f"k must be at least 1 neighbor, got k={k}")
    check_temperature(temperature)
    window.check(memory.shape[1])
