"""Compile a C++ source once, keep the library in a cache, never load a damaged one.

A cached library ends in the SHA-256 of all bytes before it (ELF readers ignore what follows the last
section), so one atomic rename publishes code and checksum together: an interrupted compile leaves at most a
temporary file, and a damaged library is noticed and built again.
"""

import contextlib
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from vosnet_kernels.native.capability import InstructionPath, cpu_flags

CACHE_VARIABLE = "VOSNET_KERNELS_CACHE"
COMPILER_VARIABLE = "CXX"
COMPILERS = ("g++", "clang++", "c++")
COMPILE_TIMEOUT_S = 300.0
SOURCES = Path(__file__).parent / "src"
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-pthread", "-fno-math-errno", "-fno-trapping-math")
DIGEST_BYTES = hashlib.sha256().digest_size


class BuildError(RuntimeError):
    """A library could not be built; the message is one line and holds the reason."""


def build(name: str, path: InstructionPath) -> Path:
    """The compiled library of `src/{name}.cpp` for `path`, from the cache if an intact one is there.

    Safe to call from many processes at once: one compiles, the others wait for it.

    Raises:
        BuildError: if there is no compiler, it fails, or the cache folder cannot be written.
    """
    compiler = find_compiler()
    if compiler is None:
        raise BuildError(f"no C++ compiler found (looked for ${COMPILER_VARIABLE}, {', '.join(COMPILERS)})")
    folder = cache_folder()
    library = folder / f"{name}-{cache_key(name, path, compiler)}.so"
    try:
        if is_intact(library):
            return library
        with _locked(library):
            if not is_intact(library):  # another process may have built it while this one waited
                _compile(compiler, SOURCES / f"{name}.cpp", path, library)
    except OSError as error:
        raise BuildError(f"cannot keep native kernels in {folder}: {error} (set {CACHE_VARIABLE})") from error
    return library


def cache_folder() -> Path:
    """Where compiled libraries are kept: $VOSNET_KERNELS_CACHE, else the user's cache folder."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    base = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    return Path(base) / "vosnet_kernels"


def find_compiler() -> str | None:
    """The C++ compiler: $CXX if set, else the first of g++, clang++, c++ on the path."""
    chosen = os.environ.get(COMPILER_VARIABLE)
    names = [chosen] if chosen else COMPILERS
    return next((found for found in map(shutil.which, names) if found), None)


def cache_key(name: str, path: InstructionPath, compiler: str) -> str:
    """Changes with the sources, the flags, the compiler and the processor's instruction sets."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        if source.suffix == ".h" or source.stem == name:
            digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    for text in (*FLAGS, *path.compiler_flags, compiler, _version(compiler), *sorted(cpu_flags())):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:24]


def is_intact(library: Path) -> bool:
    """Whether `library` exists and its bytes are those that were compiled."""
    try:
        content = library.read_bytes()
    except FileNotFoundError:
        return False
    code, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    return bool(code) and hashlib.sha256(code).digest() == digest


@functools.cache
def _version(compiler: str) -> str:
    try:
        return _run([compiler, "--version"]).stdout
    except BuildError:
        return ""  # compiling will fail too, and report why


@contextlib.contextmanager
def _locked(library: Path) -> Iterator[None]:
    import fcntl  # absent on Windows, where no native kernel is built

    library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with library.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the system if this process dies
        yield


def _compile(compiler: str, source: Path, path: InstructionPath, library: Path) -> None:
    for abandoned in library.parent.glob(f"{library.stem}.*.tmp"):
        abandoned.unlink(missing_ok=True)  # of a compile that was killed: the lock is ours
    handle, name = tempfile.mkstemp(prefix=f"{library.stem}.", suffix=".tmp", dir=library.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        _run([compiler, *FLAGS, *path.compiler_flags, str(source), "-o", name])
        code = temporary.read_bytes()
        with temporary.open("ab") as file:
            file.write(hashlib.sha256(code).digest())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(library)
    finally:
        temporary.unlink(missing_ok=True)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        plain_english = {**os.environ, "LC_ALL": "C"}
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, env=plain_english
        )
    except subprocess.CalledProcessError as error:
        lines = error.stderr.splitlines()
        reason = next((line for line in lines if "error" in line.lower()), error.stderr.strip())
        raise BuildError(f"{command[0]} failed with status {error.returncode}: {reason[:300]}") from error
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{command[0]} took more than {COMPILE_TIMEOUT_S:.0f} s") from error
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be started: {error}") from error
