"""What the machine at hand can do, measured in the run it judges; how much memory a call took."""

import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Limits:
    """Rates of plain torch on this device with the current number of threads.

    Attributes:
        gemm_flops: float32 matmul 2048 x 1024 x 2048, operations per second (a multiply-add is two).
        half_gemm_flops: the same in bfloat16.
        copy_bytes: large copy, bytes read plus written per second.
    """

    gemm_flops: float
    half_gemm_flops: float
    copy_bytes: float


@cache
def limits(device: torch.device) -> Limits:
    """The limits of `device`, measured once per process."""
    rates = []
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(2048, 1024, device=device).to(dtype)
        b = torch.randn(1024, 2048, device=device).to(dtype)
        out = torch.empty(2048, 2048, device=device, dtype=dtype)
        rates.append(2 * 2048 * 2048 * 1024 / median_s(lambda: torch.mm(a, b, out=out), device))  # noqa: B023
    source = torch.ones(64 * 2**20, device=device)
    target = torch.empty_like(source)
    return Limits(*rates, 2 * source.nbytes / median_s(lambda: target.copy_(source), device))


def median_s(call: Callable[[], Any], device: torch.device, rounds: int = 5) -> float:
    """Median seconds of a call; CUDA events on a GPU."""
    call()
    return statistics.median(_timed(call, device) for _ in range(rounds))


def _timed(call: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def peak_extra_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    """Memory that `call` held at its peak beyond what was held before; None where that cannot be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    except OSError:
        return None
    before = _status_bytes("VmRSS")
    call()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def describe() -> dict[str, Any]:
    """Device, driver and versions, for the file that keeps the numbers."""
    from vosnet_kernels.backends import cpu_backend

    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "triton": _version("triton"),
        "torch_threads": torch.get_num_threads(),
        "cpu_model": _cpu_model(),
        "cpu_backend": cpu_backend("knn_propagate").reason,
        "compiler": _first_line(["c++", "--version"]),
        "gpu": None,
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name(0)
        facts["cuda"] = torch.version.cuda
        facts["gpu_driver"] = _first_line(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        )
    return facts


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor()
    )


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _first_line(command: list[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.partition("\n")[0]
