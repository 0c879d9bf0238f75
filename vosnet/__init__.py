"""Self-supervised video object segmentation: learn correspondence from raw video, propagate a mask."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vosnet.evaluation.evaluate import evaluate
    from vosnet.evaluation.options import EvaluateOptions
    from vosnet.export.options import PropagateOptions
    from vosnet.export.propagate import propagate_files
    from vosnet.propagation import PRESETS, Propagator, Protocol, Tracker

__version__ = "0.1.0"
__all__ = [
    "PRESETS", "EvaluateOptions", "PropagateOptions", "Propagator", "Protocol", "Tracker", "__version__",
    "evaluate", "propagate_files",
]  # fmt: skip
_HOMES = {
    **dict.fromkeys(["PRESETS", "Propagator", "Protocol", "Tracker"], "propagation"),
    "EvaluateOptions": "evaluation.options",
    "evaluate": "evaluation.evaluate",
    "PropagateOptions": "export.options",
    "propagate_files": "export.propagate",
}


def __getattr__(name: str) -> Any:
    # looked up on first use: importing torch takes seconds, and `--help` must not wait for it
    if name in _HOMES:
        return getattr(importlib.import_module(f"vosnet.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
