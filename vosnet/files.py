"""Atomic writes, safe names inside a folder, and file hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vosnet.errors import InputError, StorageError

TEMPORARY_SUFFIX = ".vosnet-tmp"
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENOENT}


def expand(path: str | os.PathLike[str]) -> Path:
    """`path` with `~` and environment variables replaced."""
    return Path(os.path.expandvars(path)).expanduser()


def storage_error(error: OSError, path: Path) -> StorageError | None:
    """A full disk or a refused write as a `StorageError` that names `path`; None for other errors."""
    if error.errno in _DISK_FULL:
        return StorageError("E601", f"disk full while writing {path}", "Free some space and run it again.")
    if error.errno in _NOT_WRITABLE:
        reason = os.strerror(error.errno or 0).lower()
        return StorageError("E602", f"cannot write {path}: {reason}", "Choose another --out folder.")
    return None


@contextlib.contextmanager
def translate_storage_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise disk-full and not-writable `OSError`s of the block as `StorageError`s that name `path`."""
    try:
        yield
    except OSError as error:
        translated = storage_error(error, Path(path))
        if translated is None:
            raise
        raise translated from error


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create `path` and its parents.

    Raises:
        StorageError: the folder cannot be created (read-only, or a file stands in the way).
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise StorageError("E602", f"cannot create folder {folder}: a file of that name exists") from error
    except OSError as error:
        raise storage_error(error, folder) or error from error
    return folder


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `target` that replaces it when the block ends without an error.

    The order is write, fsync file, rename, fsync folder, so that after a crash `target` is either the
    old file or the whole new one. The temporary keeps the suffix: writers choose the format by it.

    Raises:
        StorageError: disk full or not writable; `target` is untouched and the temporary is removed.
    """
    target = Path(target)
    make_folder(target.parent)
    with translate_storage_errors(target):
        handle, name = tempfile.mkstemp(
            TEMPORARY_SUFFIX + target.suffix, f".{target.stem[:80]}.", target.parent
        )
        os.close(handle)
    temporary = Path(name)
    try:
        with translate_storage_errors(target):
            yield temporary
            _publish(temporary, target, 0o666)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `target` that becomes `target` when the block ends without an error.

    Raises:
        StorageError: disk full or not writable; nothing is left behind.
    """
    target = Path(target)
    make_folder(target.parent)
    with translate_storage_errors(target):
        temporary = Path(tempfile.mkdtemp(TEMPORARY_SUFFIX, f".{target.stem[:80]}.", target.parent))
    try:
        with translate_storage_errors(target):
            yield temporary
            _publish(temporary, target, 0o777)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(target: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to `target` whole or not at all; see `atomic_path`."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def write_json(target: str | os.PathLike[str], value: Any) -> None:
    """Write strict JSON (no NaN), indented, whole or not at all."""
    write_bytes(target, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def sha256(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def remove_stale_temporaries(folder: str | os.PathLike[str]) -> list[Path]:
    """Delete temporary files that a killed process left in `folder`; returns their paths."""
    stale = [path for path in Path(folder).glob(f".*{TEMPORARY_SUFFIX}*") if path.is_file()]
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


def inside(root: str | os.PathLike[str], name: str) -> Path:
    """`root / name`, if `name` is a plain relative path that stays inside `root`.

    Raises:
        InputError: `name` is absolute, has `..`, a drive letter, control characters, a reserved device name
            or a part over 200 bytes, or leaves `root` through a symbolic link.
    """
    root = Path(root)
    parts = re.split(r"[/\\]", name)
    bad = (
        not name
        or any(part in {"", ".", ".."} or len(part.encode(errors="replace")) > 200 for part in parts)
        or re.search(r"[\x00-\x1f\x7f]|^[A-Za-z]:", name) is not None
        or any(re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", part) for part in parts)
    )
    path = root.joinpath(*parts) if not bad else root
    if bad or not path.resolve().is_relative_to(root.resolve()):
        shown = name if len(name) <= 80 else name[:77] + "..."
        raise InputError("E205", f"unsafe name {shown!r}: it must be a relative path inside {root}")
    return path


def natural_key(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key under which `2.jpg` comes before `10.jpg`."""
    return tuple(
        (int(part), "") if part.isdecimal() else (-1, part.lower()) for part in re.split(r"(\d+)", name)
    )


def _publish(temporary: Path, target: Path, mode: int) -> None:
    """Rename a finished file or folder to `target`, crash-safe, with permissions `mode` minus the umask."""
    mask = os.umask(0)
    os.umask(mask)
    _fsync(temporary)
    temporary.chmod(mode & ~mask)
    temporary.replace(target)
    _fsync(target.parent)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync a folder
            raise
    finally:
        os.close(handle)
