"""Frames of indexed videos: decoded on demand, or kept in memory at a small size."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vosnet.datasets.index import VideoEntry
from vosnet.datasets.settings import ClipSettings
from vosnet.errors import InputError
from vosnet.synthetic import Scene
from vosnet.transforms.crop import Frames, resize_short_side
from vosnet.video import open_video


class FrameStore:
    """Reads frames of a set of videos; small videos stay in memory as long as the budget lasts.

    A video that fits into the rest of the budget is decoded whole when it is first needed, and never evicted:
    every epoch reads every video once. What does not fit is decoded on the fly. Frames are the same either
    way. Thread-safe.

    Args:
        frame_step: only every frame_step-th raw frame exists for the caller.
        short_side: frames are scaled down to this shorter side in pixels; None keeps their size.
        budget_bytes: memory for decoded frames; 0 decodes always.
    """

    def __init__(self, frame_step: int = 1, short_side: int | None = None, budget_bytes: int = 0) -> None:
        self.frame_step, self.short_side, self.budget_bytes = frame_step, short_side, budget_bytes
        self.used_bytes = 0
        self._kept: dict[str, _Decoded] = {}
        self._lock = threading.Lock()
        self._busy: dict[str, threading.Lock] = {}

    def __reduce__(self) -> tuple[type[FrameStore], tuple[int, int | None]]:
        """For worker processes: without locks, kept frames or budget, which are this process's."""
        return FrameStore, (self.frame_step, self.short_side)

    def serves(self, clips: ClipSettings) -> bool:
        """Whether it holds the frames that such clips are cut from, at their size."""
        return (self.frame_step, self.short_side) == (clips.frame_step, clips.decode_short_side)

    def num_frames(self, entry: VideoEntry) -> int:
        """Frames of a video after `frame_step`."""
        return -(-entry.num_frames // self.frame_step)

    def read(self, entry: VideoEntry, indices: Sequence[int]) -> Frames:
        """The frames `indices` (counted after `frame_step`), RGB [n, H, W, 3] uint8.

        Raises:
            VosnetError: the video cannot be read, or one of these frames is broken.
        """
        key = entry.path or entry.name
        with self._lock:
            busy = self._busy.setdefault(key, threading.Lock())
        with busy:  # two samples of one video must not decode it twice
            decoded = self._kept.get(key)
            if decoded is None and self._reserve(entry):
                decoded = self._kept[key] = self._decode(entry, range(self.num_frames(entry)))
        decoded = decoded or self._decode(entry, sorted(set(indices)))
        if broken := decoded.broken.intersection(indices):
            raise InputError("E263", f"{len(broken)} of the frames drawn from {entry.path} are broken")
        return decoded.frames[[decoded.indices.index(i) for i in indices]]

    def _reserve(self, entry: VideoEntry) -> bool:
        H, W = entry.size
        scale = min(1.0, self.short_side / min(H, W)) if self.short_side else 1.0
        size = self.num_frames(entry) * (round(H * scale) * round(W * scale)) * 3
        with self._lock:
            fits = self.used_bytes + size <= self.budget_bytes
            self.used_bytes += size if fits else 0
        return fits

    def _decode(self, entry: VideoEntry, indices: Sequence[int]) -> _Decoded:
        raw = [i * self.frame_step for i in indices]
        if entry.generator_seed is not None:
            scene = Scene(entry.generator_seed, size=entry.size)
            return _Decoded(indices, np.stack([self._small(scene.render(i)[0]) for i in raw]), frozenset())
        with open_video(entry.path, threads=1) as reader:  # the workers are what runs side by side
            if raw and raw[-1] >= len(reader):
                message = f"{entry.path} has {len(reader)} frames, not {entry.num_frames}"
                hint = "It has changed since it was indexed: run `vosnet prepare` again."
                raise InputError("E263", message, hint)
            frames = np.stack([self._small(reader[i]) for i in raw])
            bad = set(reader.bad_frames)
        return _Decoded(indices, frames, frozenset(i for i, j in zip(indices, raw) if j in bad))

    def _small(self, frame: Frames) -> Frames:
        return resize_short_side(frame, self.short_side) if self.short_side else frame


class StoredVideo:
    """One video of a store, for those who read it as a whole.

    Args:
        entry: which one.
        store: where its frames come from.
    """

    def __init__(self, entry: VideoEntry, store: FrameStore) -> None:
        self.entry, self.store = entry, store

    @property
    def name(self) -> str:
        """As in `Clip.names`."""
        return self.entry.name

    def __len__(self) -> int:
        return self.store.num_frames(self.entry)

    def read(self, indices: Sequence[int]) -> Frames:
        """Frames as clips are cut from, RGB [n, H, W, 3] uint8; see `FrameStore.read`."""
        return self.store.read(self.entry, indices)


class _Decoded(NamedTuple):
    indices: Sequence[int]
    frames: Frames
    broken: frozenset[int]  # of `indices`
