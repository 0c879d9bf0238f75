"""Open decoders of this process: few at a time, and none that lives through a fork."""

from __future__ import annotations

import os
import threading
from typing import Protocol

# An idle decord reader goes on decoding into memory until its file ends (measured: 104 -> 1525 MB in 4 s).
MAX_OPEN_DECORD = 2


class Closable(Protocol):
    """Something that can drop its decoder and open it again when it is needed."""

    def release(self) -> None: ...


_lock = threading.RLock()
_open: list[Closable] = []
_greedy: list[Closable] = []


def opened(owner: Closable, *, greedy: bool) -> None:
    """Remember that `owner` holds a decoder; a greedy one makes the oldest greedy one let go of its own."""
    with _lock:
        closed(owner)
        _open.append(owner)
        if greedy:
            _greedy.append(owner)
            excess = _greedy[:-MAX_OPEN_DECORD]
        else:
            excess = []
    for other in excess:
        other.release()


def closed(owner: Closable) -> None:
    """Forget `owner`."""
    with _lock:
        for entries in (_open, _greedy):
            entries[:] = [entry for entry in entries if entry is not owner]


def release_all() -> None:
    """Close every decoder of this process; readers open theirs again when a frame is asked for."""
    with _lock:
        owners = list(_open)
    for owner in owners:
        owner.release()


# Decoder threads do not survive a fork: a decoder that does hangs when it is read, and when it is freed.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=release_all)
