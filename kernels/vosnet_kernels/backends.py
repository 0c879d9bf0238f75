"""Which implementation of an op runs on a device, and why."""

import functools
import importlib.util
import logging
from dataclasses import dataclass

import torch

logger = logging.getLogger("vosnet_kernels")

MIN_CUDA_CAPABILITY = (8, 0)  # bfloat16 matrix instructions and asynchronous copies


@dataclass(frozen=True)
class Backend:
    """An implementation and the reason it was chosen.

    Attributes:
        name: "torch" (tiled matmuls, any device), "native" (C++ on the CPU) or "triton" (CUDA).
        reason: why this one and not a faster one, in one line.
    """

    name: str
    reason: str


def cpu_backend(op: str) -> Backend:
    """The implementation that runs `op` on CPU tensors; the first call may compile it."""
    if op != "knn_propagate":
        return Backend("torch", f"{op} runs as tiled matmuls: it has no native kernel")
    from vosnet_kernels.knn_propagate.native import Kernel, native_kernel  # its package imports this module

    kernel = native_kernel()
    if isinstance(kernel, Kernel):
        return Backend("native", f"{op} runs its C++ kernel for {kernel.path.name}")
    return Backend("torch", f"{op} runs as tiled matmuls: {kernel}")


def cuda_backend(op: str, device: torch.device) -> Backend:
    """The implementation that runs `op` on tensors of a CUDA `device`."""
    obstacle = can_use_triton(device)
    if obstacle is None:
        return Backend("triton", f"{op} runs its Triton kernels on {torch.cuda.get_device_name(device)}")
    _warn_of_fallback(op, obstacle)
    return Backend("torch", f"{op} runs as tiled matmuls: {obstacle}")


def can_use_triton(device: torch.device) -> str | None:
    """Why the Triton kernels cannot run on `device`, or None if they can."""
    if not _has_triton():
        return "triton is not installed"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < MIN_CUDA_CAPABILITY:
        major, minor = torch.cuda.get_device_capability(device)
        return f"{torch.cuda.get_device_name(device)} has capability {major}.{minor}, the kernels need 8.0"
    return None


def log_choice(op: str, backend: Backend) -> None:
    """Log at debug level which implementation runs."""
    logger.debug("%s: %s (%s)", op, backend.name, backend.reason)


@functools.cache  # once per op and reason
def _warn_of_fallback(op: str, obstacle: str) -> None:
    logger.warning("%s runs as tiled matmuls on the GPU, which is slower: %s", op, obstacle)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
