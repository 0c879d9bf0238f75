"""Clips of generated videos, and the pseudo masks of an objective's own encoder to go with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.streams import stream_of
from vosnet.datasets.source import VideoSource
from vosnet.datasets.stream import ClipStream
from vosnet.objectives import Objective, RefreshJob
from vosnet.transforms import Clip, assemble_clip


def paired_stream(clip_len: int = 4, batch_size: int = 3) -> ClipStream:
    """A frame, its successor, and frames at least five away, in crops of 32 pixels."""
    return stream_of(
        "",
        batch_size=batch_size,
        sources=[VideoSource(layout="generated", count=3, num_frames=10, size=(48, 64))],
        clip_len=clip_len,
        frame_gap=1,
        order="paired",
        crop_size=32,
        short_side=(32, 45),
        cache_mb=10,
    )


def masked_clip(objective: Objective, folder: Path, color_space: Any = "rgb", **options: Any) -> Clip:
    """A batch of different videos, after the objective made its pseudo masks of them."""
    stream = paired_stream(**options)
    list(objective.refresh(RefreshJob(folder, stream.videos())))
    objective.use_refreshed(folder)
    return assemble_clip(stream.batch(0), color_space=color_space)
