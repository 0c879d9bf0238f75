"""Compile one Triton kernel for a named GPU and read what the compiler made of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Target:
    """A GPU to compile for.

    Attributes:
        backend: Triton's name of the compiler backend.
        arch: Triton's name of the architecture.
        warp_size: threads per warp.
        shared_limit: shared memory that one program may ask for, bytes.
        matrix_instruction: pattern of its matrix instructions in the assembly.
    """

    backend: str
    arch: int | str
    warp_size: int
    shared_limit: int
    matrix_instruction: str


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 163 * 1024, r"\bmma\.sync"),
    "sm_90": Target("cuda", 90, 32, 227 * 1024, r"\bwgmma\.mma_async|\bmma\.sync"),
    "gfx942": Target("hip", "gfx942", 64, 64 * 1024, r"\bv_mfma"),
}


@dataclass(frozen=True)
class AotCase:
    """A kernel at a size that is used.

    Attributes:
        name: for the report, such as "forward bf16 C=256".
        kernel: the @triton.jit function.
        signature: type of each argument that is no constant: "*bf16", "i32", "fp32", ...
        constants: value of each tl.constexpr argument.
        num_warps, num_stages: as given at launch.
        matmuls: whether it must use the target's matrix units.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    matmuls: bool = True


@dataclass
class Report:
    """One kernel compiled for one target; `problems` is empty if all is well."""

    target: str
    name: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    matrix_instructions: int
    num_warps: int
    num_stages: int
    problems: list[str] = field(default_factory=list)


def compile_case(case: AotCase, name: str) -> Report:
    """Compile for target `name`; errors of Triton's compiler pass through."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    target = TARGETS[name]
    names = case.kernel.arg_names
    source = ASTSource(
        fn=case.kernel,
        signature={arg: case.signature.get(arg, "constexpr") for arg in names},
        constexprs={(names.index(arg),): value for arg, value in case.constants.items()},
        # As at launch: tensors start at multiples of 16 bytes, which asynchronous copies rely on.
        attrs={
            (names.index(arg),): [["tt.divisibility", 16]]
            for arg, kind in case.signature.items()
            if kind.startswith("*")
        },
    )
    compiled = triton.compile(
        source,
        target=GPUTarget(target.backend, target.arch, target.warp_size),
        options={"num_warps": case.num_warps, "num_stages": case.num_stages},
    )
    assembly = compiled.asm["ptx" if target.backend == "cuda" else "amdgcn"]
    registers, spills = (_nvidia_usage if target.backend == "cuda" else _amd_usage)(assembly)
    matrix_instructions = len(re.findall(target.matrix_instruction, assembly))
    shared = compiled.metadata.shared
    problems = []
    if spills:
        problems.append(f"{spills} bytes of registers spilled")
    if shared > target.shared_limit:
        problems.append(f"{shared} bytes of shared memory, {name} has {target.shared_limit}")
    if case.matmuls and not matrix_instructions:
        problems.append("no matrix instructions")
    return Report(
        name,
        case.name,
        registers,
        spills,
        shared,
        matrix_instructions,
        case.num_warps,
        case.num_stages,
        problems,
    )


def _nvidia_usage(ptx: str) -> tuple[int, int]:
    """Registers per thread and spilled bytes per thread, from the assembler that Triton brings."""
    import triton

    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    arch = _search(r"\.target (sm_\w+)", ptx)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [str(ptxas), "-v", f"--gpu-name={arch}", str(source), "-o", f"{folder}/kernel.cubin"]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = sum(int(_search(rf"(\d+) bytes spill {kind}", log)) for kind in ("stores", "loads"))
    return int(_search(r"Used (\d+) registers", log)), spills


def _amd_usage(assembly: str) -> tuple[int, int]:
    """Vector registers and spilled bytes per thread, from the code object's metadata.

    Scalar registers that run out move to lanes of vector registers; only scratch memory counts as spilled.
    """
    registers, spilled, scratch = (
        int(_search(rf"\.{key}:\s*(\d+)", assembly))
        for key in ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
    )
    return registers, max(4 * spilled, scratch)


def _search(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"the compiler's output has no {pattern!r}; its format changed")
    return found[1]
