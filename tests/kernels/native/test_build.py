"""Compiled libraries are whole, built once, and rebuilt when damaged; obstacles are told in one line."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vosnet_kernels.native import build as building
from vosnet_kernels.native.build import BuildError, build, find_compiler
from vosnet_kernels.native.capability import InstructionPath, can_use_native

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or find_compiler() is None, reason="needs Linux and a C++ compiler"
)

PLAIN = InstructionPath("plain", frozenset(), ())
REAL_COMPILER = find_compiler() or ""
Compiler = Callable[[str], None]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and a source that compiles in no time."""
    sources = tmp_path / "src"
    sources.mkdir()
    (sources / "toy.cpp").write_text('extern "C" int answer() { return 42; }\n')
    monkeypatch.setattr(building, "SOURCES", sources)
    monkeypatch.setenv(building.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """Puts a shell script in the compiler's place; `$REAL` in it is the real one."""

    def install(script: str) -> None:
        path = tmp_path / "fake-c++"
        path.write_text(f'#!/bin/sh\nREAL="{REAL_COMPILER}"\nCALLS="{tmp_path}/calls"\n{script}\n')
        path.chmod(0o755)
        monkeypatch.setenv(building.COMPILER_VARIABLE, str(path))

    return install


COUNTING = 'case "$*" in *--version*) ;; *) echo x >> "$CALLS" ;; esac; exec "$REAL" "$@"'


def answer(library: Path) -> int:
    return int(ctypes.CDLL(str(library)).answer())


def files(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir() if path.suffix != ".lock")


def test_a_source_is_compiled_once_and_then_served_from_the_cache(
    cache: Path, compiler: Compiler, tmp_path: Path
) -> None:
    compiler(COUNTING)
    first, second = build("toy", PLAIN), build("toy", PLAIN)
    assert first == second
    assert answer(first) == 42
    assert (tmp_path / "calls").read_text() == "x\n"


def test_callers_at_the_same_time_share_one_compile(cache: Path, compiler: Compiler, tmp_path: Path) -> None:
    compiler(COUNTING)
    with ThreadPoolExecutor(4) as pool:
        libraries = list(pool.map(lambda _: build("toy", PLAIN), range(4)))
    assert len(set(libraries)) == 1
    assert (tmp_path / "calls").read_text() == "x\n"


def test_other_flags_or_sources_are_another_library(cache: Path) -> None:
    first = build("toy", PLAIN)
    assert build("toy", InstructionPath("other", frozenset(), ("-DOTHER",))) != first
    (building.SOURCES / "toy.cpp").write_text('extern "C" int answer() { return 43; }\n')
    assert answer(build("toy", PLAIN)) == 43


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_library_is_built_again(cache: Path, damage: str) -> None:
    library = build("toy", PLAIN)
    content = bytearray(library.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    library.unlink()  # never write into a file that this process has loaded
    library.write_bytes({"truncated": content[:-40], "flipped": content, "empty": b""}[damage])
    assert answer(build("toy", PLAIN)) == 42
    assert building.is_intact(library)


def test_a_failing_compiler_is_reported_in_one_line_and_leaves_nothing(
    cache: Path, compiler: Compiler
) -> None:
    compiler('echo "note: something" >&2; echo "toy.cpp:1: error: boom" >&2; exit 1')
    with pytest.raises(BuildError, match=r"fake-c\+\+ failed with status 1: toy.cpp:1: error: boom$"):
        build("toy", PLAIN)
    assert files(cache) == []


def test_a_compiler_that_writes_half_a_library_and_fails_leaves_nothing(
    cache: Path, compiler: Compiler
) -> None:
    compiler('while [ "$1" != -o ]; do shift || exit 0; done; echo half > "$2"; exit 1')
    with pytest.raises(BuildError, match="status 1"):
        build("toy", PLAIN)
    assert files(cache) == []


def test_no_compiler_is_a_reason(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(building.COMPILER_VARIABLE, "no-such-compiler")
    with pytest.raises(BuildError, match="no C\\+\\+ compiler found"):
        build("toy", PLAIN)


def test_a_cache_folder_that_cannot_be_written_names_the_variable(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(building.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(BuildError, match="set VOSNET_KERNELS_CACHE"):
        build("toy", PLAIN)


def test_a_compile_killed_half_way_leaves_no_broken_library(
    cache: Path, compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(
        'case "$*" in *--version*) exit 0 ;; esac\n'
        'while [ "$1" != -o ]; do shift; done; echo half > "$2"; touch "$CALLS"; exec sleep 60'
    )
    program = (
        "from pathlib import Path\n"
        "from vosnet_kernels.native import build as b\n"
        "from vosnet_kernels.native.capability import InstructionPath\n"
        f"b.SOURCES = Path({str(building.SOURCES)!r})\n"
        "b.build('toy', InstructionPath('plain', frozenset(), ()))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(building.__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "calls").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert files(cache) == [".tmp"], "the compile must have been under way"

    script = Path(os.environ[building.COMPILER_VARIABLE])
    script.write_text(f'#!/bin/sh\ncase "$*" in *--version*) exit 0 ;; esac\nexec "{REAL_COMPILER}" "$@"\n')
    assert answer(build("toy", PLAIN)) == 42
    assert files(cache) == [".so"], "the temporary file of the killed compile is removed"


def test_the_switch_turns_native_kernels_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOSNET_KERNELS_NATIVE", "0")
    assert can_use_native() == "switched off by VOSNET_KERNELS_NATIVE=0"
