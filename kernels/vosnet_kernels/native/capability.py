"""Which native kernels this processor can run. `can_*` returns the reason why not, or None."""

import functools
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

SWITCH = "VOSNET_KERNELS_NATIVE"
CPUINFO = Path("/proc/cpuinfo")

_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl")
_BF16 = (*_AVX512, "avx512_bf16")


@dataclass(frozen=True)
class InstructionPath:
    """One way to compile the kernels.

    Attributes:
        name: for messages.
        cpu_flags: instruction sets that /proc/cpuinfo must list.
        compiler_flags: select the instructions and the code that uses them.
    """

    name: str
    cpu_flags: frozenset[str]
    compiler_flags: tuple[str, ...]


def _path(name: str, instruction_sets: tuple[str, ...], *macros: str) -> InstructionPath:
    selected = (f"-m{each.replace('avx512_', 'avx512').replace('_', '-')}" for each in instruction_sets)
    return InstructionPath(name, frozenset(instruction_sets), (*selected, *macros))


PATHS = (  # the fastest first
    _path("AMX bf16", (*_BF16, "amx_tile", "amx_bf16"), "-DVOSNET_BF16", "-DVOSNET_AMX"),
    _path("AVX-512 bf16", _BF16, "-DVOSNET_BF16"),
    _path("AVX-512", _AVX512),
    _path("AVX2", _AVX2),
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
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


def _missing(path: InstructionPath) -> str:
    return ", ".join(sorted(path.cpu_flags - cpu_flags()))
