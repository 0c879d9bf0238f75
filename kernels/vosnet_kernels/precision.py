"""float32 matmuls that are float32: global speed settings and autocast must not reach into an op."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_lock = threading.Lock()
_inside = 0
_saved: list[str] = []


@contextmanager
def full_float32(device_type: str) -> Iterator[None]:
    """Within the context, torch multiplies float32 as float32 on `device_type`.

    `torch.autocast` and `torch.set_float32_matmul_precision` would round the products of an op to 8 or 11
    bits where the processor is quicker with those. The latter is one setting for all threads, so the first
    thread to enter saves it and the last one to leave puts it back.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device_type, enabled=False))
        _enter()
        stack.callback(_leave)
        yield


def _enter() -> None:
    global _inside  # noqa: PLW0603 - counts the threads that are inside
    with _lock:
        if _inside == 0:
            _saved[:] = [matmul.fp32_precision for matmul in _matmul_settings()]
            _set(["ieee", "ieee"])
        _inside += 1


def _leave() -> None:
    global _inside  # noqa: PLW0603 - counts the threads that are inside
    with _lock:
        _inside -= 1
        if _inside == 0:
            _set(_saved)


def _set(precisions: list[str]) -> None:
    for matmul, precision in zip(_matmul_settings(), precisions, strict=True):
        if matmul.fp32_precision != precision:
            matmul.fp32_precision = precision


def _matmul_settings() -> tuple[Any, Any]:
    return torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
