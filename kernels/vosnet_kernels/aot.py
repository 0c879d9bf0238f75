"""Compile every Triton kernel for GPUs that need not be there, and say what the compilers made of it.

    python -m vosnet_kernels.aot [--target sm_80 --target sm_90 --target gfx942] [--json FILE]

Prints registers, spills, shared memory and matrix instructions per kernel. Exits 1 if anything spills
registers, needs more shared memory than the target has, or multiplies matrices without its matrix units.
A Triton module takes part by a function `aot_cases(target) -> list[AotCase]` and its name in `MODULES`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MODULES = ("vosnet_kernels.windowed_readout.launch_triton", "vosnet_kernels.knn_propagate.aot_triton")


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
    """What one kernel became on one target; `problems` is empty if all is well."""

    target: str
    name: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    matrix_instructions: int
    num_warps: int
    num_stages: int
    problems: list[str] = field(default_factory=list)


def cases(target: str) -> Iterator[AotCase]:
    """Every kernel of the package, configured as it would be launched on `target`."""
    for module in MODULES:
        yield from importlib.import_module(module).aot_cases(target)


def compile_case(case: AotCase, name: str) -> Report:
    """Compile for target `name`; raises what Triton raises if that fails."""
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
        command = [
            str(ptxas),
            "-v",
            f"--gpu-name={arch}",
            str(source),
            "-o",
            str(source.with_suffix(".cubin")),
        ]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = sum(int(_search(rf"(\d+) bytes spill {kind}", log)) for kind in ("stores", "loads"))
    return int(_search(r"Used (\d+) registers", log)), spills


def _amd_usage(assembly: str) -> tuple[int, int]:
    """Vector registers and spilled bytes per thread, from the code object's metadata.

    Scratch memory is what counts: scalar registers that run out move to lanes of vector registers.
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


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, print the table, write JSON if asked; 1 if there is a problem."""
    parser = argparse.ArgumentParser(prog="python -m vosnet_kernels.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--target", action="append", choices=TARGETS, help="repeatable; default: all")
    parser.add_argument("--match", default="", metavar="REGEX", help="only kernels whose name matches")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at work at the same time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the reports here too")
    args = parser.parse_args(argv)
    print(
        f"{'target':8}{'kernel':44}{'registers':>10}{'spill B':>8}{'shared B':>9}{'matrix':>7}  warps stages"
    )
    reports = []
    chosen = [
        (target, index)
        for target in args.target or TARGETS
        for index, case in enumerate(cases(target))
        if re.search(args.match, case.name)
    ]
    # Kernels cannot be pickled; a worker finds its own by target and position.
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for report in pool.map(_compile_nth, chosen):
            reports.append(report)
            _print_row(report)
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(report) for report in reports], indent=2) + "\n")
    if not reports:
        print(f"no kernel's name matches {args.match!r}")
    return int(not reports or any(report.problems for report in reports))


def _compile_nth(chosen: tuple[str, int]) -> Report:
    target, index = chosen
    return compile_case(list(cases(target))[index], target)


def _print_row(report: Report) -> None:
    print(
        f"{report.target:8}{report.name:44}{report.registers:10}{report.spill_bytes:8}{report.shared_bytes:9}"
        f"{report.matrix_instructions:7}  {report.num_warps:5} {report.num_stages:6}"
        f"{'  <- ' + '; '.join(report.problems) if report.problems else ''}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
