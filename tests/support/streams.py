"""Clip streams over small folders, with every setting by its recipe key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vosnet.datasets.settings import ClipSettings
from vosnet.datasets.source import VideoSource
from vosnet.datasets.stream import ClipStream, open_stream
from vosnet.transforms import Crops

SMALL: dict[str, Any] = {"clip_len": 3, "frame_gap": 2, "crop_size": 16, "short_side": (16, 33)}


def stream_of(root: Path | str, **settings: Any) -> ClipStream:
    """A stream over `root`, or over `sources` where given; `seed` and `batch_size` may be given too."""
    sources = settings.pop("sources", None) or [VideoSource(root=str(root))]
    run = {"seed": 1, "batch_size": 2} | {k: settings.pop(k) for k in ("seed", "batch_size") if k in settings}
    return open_stream(sources, ClipSettings(**(SMALL | settings)), **run)


def same(a: Crops, b: Crops) -> bool:
    """Whether two batches hold the same clips, cut and drawn alike."""
    assert a.cut is not None
    assert b.cut is not None
    tensors = [(getattr(a, k), getattr(b, k)) for k in ("frames", "theta", "draws", "ids")]
    tensors += zip(a.cut.tensors(), b.cut.tensors(), strict=True)
    return a.names == b.names and all(torch.equal(x, y) for x, y in tensors)
