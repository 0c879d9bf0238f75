"""One process per run folder: an advisory lock that the kernel frees when its holder dies."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path
from typing import IO, Any

from vosnet.errors import LockedError
from vosnet.files import translate_storage_errors

LOCK_NAME = "run.lock"
HEARTBEAT_S = 30.0
_STALE_AFTER_S = 10 * HEARTBEAT_S


class RunLock:
    """The lock of a run folder while it is held.

    Uses `flock` where the file system has it. Elsewhere (some network file systems, Windows) a file created
    with O_EXCL is the lock; it names host and process, and `beat` refreshes it. A holder is dead if its
    process is gone (same host) or its heartbeat is ten intervals old (another host).
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_NAME
        self._file: IO[str] | None = None
        self._exclusive: Path | None = None
        self._last_beat = 0.0

    def beat(self) -> None:
        """Refresh the heartbeat of the fallback lock; call it every step, it writes rarely."""
        if self._exclusive is not None and time.monotonic() - self._last_beat > HEARTBEAT_S:
            self._last_beat = time.monotonic()
            os.utime(self._exclusive)

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            LockedError: another process holds it; the message names its host and process id.
            StorageError: the folder is not writable.
        """
        with translate_storage_errors(self.path):
            file = self.path.open("a+", encoding="utf-8")
        try:
            locked = _flock(file)
        except BlockingIOError:
            holder = _holder(self.path)
            file.close()
            raise _locked(self.path, holder) from None
        except OSError:  # no flock on this file system
            locked = False
        if locked:
            self._file = file
            file.truncate(0)
            file.write(json.dumps(_me()))
            file.flush()
        else:
            file.close()
            self._acquire_exclusive()

    def release(self) -> None:
        """Give the lock back; safe to call twice."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._exclusive is not None:
            self._exclusive.unlink(missing_ok=True)
            self._exclusive = None

    def withdraw(self, *, keep_folder: bool) -> None:
        """Remove the lock's own files while it is held, and the folder unless something else lies in it."""
        self.path.unlink(missing_ok=True)
        if self._exclusive is not None:
            self._exclusive.unlink(missing_ok=True)
        if not keep_folder:
            with contextlib.suppress(OSError):  # not empty
                self.path.parent.rmdir()

    def _acquire_exclusive(self) -> None:
        path = self.path.with_suffix(".lock.exclusive")
        if path.exists() and _is_stale(path):
            path.unlink(missing_ok=True)
        try:
            with translate_storage_errors(path):
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            raise _locked(path, _holder(path)) from None
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(_me()))
        self._exclusive = path


def _flock(file: IO[str]) -> bool:
    """True when the lock was taken, False where the platform has none."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


def _me() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _holder(path: Path) -> dict[str, Any]:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the holder is just writing it
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_stale(path: Path) -> bool:
    holder = _holder(path)
    if holder.get("host") == socket.gethostname() and isinstance(holder.get("pid"), int):
        return not _alive(holder["pid"])
    return time.time() - path.stat().st_mtime > _STALE_AFTER_S


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, as another user
        return True
    return True


def _locked(path: Path, holder: dict[str, Any]) -> LockedError:
    who = (
        f"process {holder['pid']} on {holder['host']}"
        if {"pid", "host"} <= set(holder)
        else "another process"
    )
    hint = "Wait for it, stop it, or choose another --out folder."
    return LockedError("E801", f"run folder {path.parent} is in use by {who}", hint)
