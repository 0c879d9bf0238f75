"""Native kernels of every instruction path that this processor runs, in a cache of the session's own."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vosnet_kernels.knn_propagate import native
from vosnet_kernels.knn_propagate.native import Kernel
from vosnet_kernels.native.build import CACHE_VARIABLE, find_compiler
from vosnet_kernels.native.capability import PATHS, InstructionPath, can_run, can_use_native

Loader = Callable[[InstructionPath], Kernel]
AMX, HALF, _, AVX2 = PATHS


def by_loops(path: InstructionPath) -> InstructionPath:
    """`path` compiled for AVX2, with plain loops in the place of the instructions that AVX2 lacks."""
    loops = ("-include", str(Path(__file__).with_name("instructions_by_loops.h")))
    code = tuple(flag for flag in path.compiler_flags if flag.startswith("-D"))
    return InstructionPath(f"{path.name} by loops", AVX2.cpu_flags, (*AVX2.compiler_flags, *loops, *code))


@pytest.fixture(scope="session")
def load_kernel(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    """Compiles and loads a path once; skips what this machine cannot run."""
    folder = tmp_path_factory.mktemp("native-cache")
    kernels: dict[str, Kernel] = {}

    def load(path: InstructionPath) -> Kernel:
        obstacle = can_use_native() or can_run(path)
        if obstacle is not None:
            pytest.skip(obstacle)
        if find_compiler() is None:
            pytest.skip("no C++ compiler")
        if path.name not in kernels:
            before = os.environ.get(CACHE_VARIABLE)
            os.environ[CACHE_VARIABLE] = str(folder)
            try:
                kernels[path.name] = native.load(path)
            finally:
                os.environ.pop(CACHE_VARIABLE)
                if before is not None:
                    os.environ[CACHE_VARIABLE] = before
        return kernels[path.name]

    return load


@pytest.fixture(
    params=[*PATHS, by_loops(HALF), by_loops(AMX)],
    ids=lambda path: path.name.replace(" ", "-"),
    scope="session",
)
def kernel(request: pytest.FixtureRequest, load_kernel: Loader) -> Kernel:
    """The kernel of each instruction path, those of half precision also where the processor lacks them."""
    real = next((path for path in PATHS if request.param.name == f"{path.name} by loops"), None)
    if real is not None and can_run(real) is None:
        pytest.skip(f"the processor runs {real.name} itself")
    return load_kernel(request.param)


@pytest.fixture
def fresh_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The choice of a kernel is made anew in this test, with an empty cache, and forgotten afterwards."""
    monkeypatch.setattr(native, "_chosen", [])
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
