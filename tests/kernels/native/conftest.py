"""Native kernels of every instruction path that this processor runs, in a cache of the session's own."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vosnet_kernels.knn_propagate import native
from vosnet_kernels.knn_propagate.native import Kernel
from vosnet_kernels.native.build import CACHE_VARIABLE, find_compiler
from vosnet_kernels.native.capability import EMULATED_AMX, PATHS, InstructionPath, can_run, can_use_native

Loader = Callable[[InstructionPath], Kernel]


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


@pytest.fixture(params=[*PATHS, EMULATED_AMX], ids=lambda path: path.name.replace(" ", "-"))
def kernel(request: pytest.FixtureRequest, load_kernel: Loader) -> Kernel:
    """The kernel of each instruction path."""
    return load_kernel(request.param)


@pytest.fixture
def fresh_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The choice of a kernel is made anew in this test, with an empty cache, and forgotten afterwards."""
    monkeypatch.setattr(native, "_chosen", [])
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
