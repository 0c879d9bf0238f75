"""Self-supervised video object segmentation: learn correspondence from raw video, propagate a mask."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vosnet.propagation import PRESETS, Propagator, Protocol, Tracker

__version__ = "0.1.0"
__all__ = ["PRESETS", "Propagator", "Protocol", "Tracker", "__version__"]

_PROPAGATION = {"PRESETS", "Propagator", "Protocol", "Tracker"}


def __getattr__(name: str) -> Any:
    # looked up on first use: importing torch takes seconds, and `--help` must not wait for it
    if name in _PROPAGATION:
        return getattr(importlib.import_module("vosnet.propagation"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
