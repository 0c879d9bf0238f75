"""Full-precision float32 matmuls: autocast and global speed settings do not reach into an op."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_lock = threading.Lock()
_inside = 0
_saved: list[str] = []


@contextmanager
def full_float32(device_type: str) -> Iterator[None]:
    """Within the context, torch multiplies float32 as float32 on `device_type`.

    `torch.autocast` and `torch.set_float32_matmul_precision` would round the products of an op to 8 or 11
    bits where the processor is faster with those. The latter is one setting for all threads, so the first
    thread to enter saves it and the last one to leave restores it.
    """
    with torch.autocast(device_type, enabled=False):
        _count(1)
        try:
            yield
        finally:
            _count(-1)


def _count(change: int) -> None:
    """Count the threads inside; the first to enter and the last to leave change the setting."""
    global _inside  # noqa: PLW0603 - shared by all threads, under the lock
    with _lock:
        if _inside == 0:
            _saved[:] = [matmul.fp32_precision for matmul in _matmul_settings()]
        _inside += change
        for matmul, saved in zip(_matmul_settings(), _saved, strict=True):
            precision = "ieee" if _inside else saved
            if matmul.fp32_precision != precision:
                matmul.fp32_precision = precision


def _matmul_settings() -> tuple[Any, Any]:
    return torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
