"""Which native kernels this processor can run. `can_*` returns the obstacle, or None if there is none."""

import functools
import os
import platform
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

SWITCH = "VOSNET_KERNELS_NATIVE"
CPUINFO = Path("/proc/cpuinfo")

_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
_BF16 = (*_AVX512, "-mavx512bf16", "-DVOSNET_BF16")


@dataclass(frozen=True)
class InstructionPath:
    """One way to compile the kernels.

    Attributes:
        name: what people read.
        cpu_flags: what /proc/cpuinfo must list.
        compiler_flags: what selects the instructions and the code that uses them.
    """

    name: str
    cpu_flags: frozenset[str]
    compiler_flags: tuple[str, ...]


_AVX512_CPU = {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"}

PATHS = (  # the fastest first
    InstructionPath(
        "AMX bf16",
        frozenset(_AVX512_CPU | {"avx512_bf16", "amx_tile", "amx_bf16"}),
        (*_BF16, "-mamx-tile", "-mamx-bf16", "-DVOSNET_AMX"),
    ),
    InstructionPath("AVX-512 bf16", frozenset(_AVX512_CPU | {"avx512_bf16"}), _BF16),
    InstructionPath("AVX-512", frozenset(_AVX512_CPU), _AVX512),
    InstructionPath("AVX2", frozenset({"avx2", "fma", "f16c"}), _AVX2),
)


def can_use_native() -> str | None:
    """Why no native kernel can serve on this machine, or None. Says nothing about the compiler."""
    if os.environ.get(SWITCH) == "0":
        return f"switched off by {SWITCH}=0"
    if sys.platform != "linux" or platform.machine() not in {"x86_64", "AMD64"}:
        return f"native kernels are for Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    if not any(can_run(path) is None for path in PATHS):
        return f"the processor lacks {_missing(PATHS[-1])}"
    return None


def can_run(path: InstructionPath) -> str | None:
    """Why this processor cannot run `path`, or None."""
    missing = _missing(path)
    return f"{path.name}: the processor lacks {missing}" if missing else None


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets of the processor as Linux names them; empty where that cannot be read."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(_words(line)) for line in lines if line.startswith("flags")), frozenset())


def _words(line: str) -> Collection[str]:
    return line.partition(":")[2].split()


def _missing(path: InstructionPath) -> str:
    return ", ".join(sorted(path.cpu_flags - cpu_flags()))
