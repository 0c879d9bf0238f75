"""Open decoders of this process: few at a time, and none that lives through a fork."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

# An idle decord reader goes on decoding into memory until its file ends.
MAX_OPEN_DECORD = 2


class Closable(Protocol):
    """Something that can drop its decoder and open it again when it is needed."""

    def release(self, *, wait: bool = True) -> None: ...


_lock = threading.RLock()
_open: list[weakref.ref[Closable]] = []
_greedy: list[weakref.ref[Closable]] = []


def opened(owner: Closable, *, greedy: bool) -> None:
    """Remember that `owner` holds a decoder; a greedy one makes the oldest greedy one let go of its own."""
    with _lock:
        closed(owner)
        _open.append(weakref.ref(owner))
        excess = []
        if greedy:
            _greedy.append(weakref.ref(owner))
            excess = [entry() for entry in _greedy[:-MAX_OPEN_DECORD]]
    for other in excess:
        if other is not None:
            other.release(
                wait=False
            )  # one that another thread is reading keeps its decoder; waiting could lock up


def closed(owner: Closable) -> None:
    """Forget `owner`, and those that no longer exist."""
    with _lock:
        for entries in (_open, _greedy):
            entries[:] = [entry for entry in entries if entry() not in {None, owner}]


def release_all() -> None:
    """Close every decoder of this process; readers open theirs again when a frame is asked for."""
    with _lock:
        owners = [entry() for entry in _open]
    for owner in owners:
        if owner is not None:
            owner.release()


# Decoder threads do not survive a fork: a decoder that does hangs when it is read, and when it is freed.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=release_all)
