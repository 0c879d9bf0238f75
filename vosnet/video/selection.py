"""Part of a clip, read forward or backward without decoding a group of pictures once per frame."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Literal, overload

from vosnet.errors import UsageError
from vosnet.video.info import Frame
from vosnet.video.reader import VideoReader

Direction = Literal["forward", "backward", "both"]  # in which order frames are walked, from annotated ones
_CHUNK_BYTES = 64 * 2**20


class FrameSelection(Sequence[Frame]):
    """Frames `range(start, stop, step)` of a reader as a sequence.

    Going backward through compressed video would decode from the last key frame for every single frame, so
    a chunk that ends at the frame asked for is decoded at once and kept; memory stays bounded.

    Args:
        reader: an open clip.
        start: first frame, inclusive.
        stop: end, exclusive; None for the end of the clip.
        step: distance of neighboring frames, at least 1.

    Raises:
        UsageError: the range is empty or leaves the clip.
    """

    def __init__(self, reader: VideoReader, start: int = 0, stop: int | None = None, step: int = 1) -> None:
        end = len(reader) if stop is None else stop
        if step < 1 or not 0 <= start < end <= len(reader):
            raise UsageError(
                "E131",
                f"frames {start} to {end} in steps of {step} are not a part of {reader.path}, "
                f"which has {len(reader)} frames",
                "Choose 0 <= --start < --end <= frames and --stride >= 1.",
            )
        self.reader = reader
        self.indices = range(start, end, step)
        height, width = reader.size
        self._chunk_len = max(1, min(64, _CHUNK_BYTES // (height * width * 3)))
        self._chunk: dict[int, Frame] = {}
        self._last_asked = -1

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, place: int) -> Frame: ...
    @overload
    def __getitem__(self, place: slice) -> FrameSelection: ...
    def __getitem__(self, place: int | slice) -> Frame | FrameSelection:
        if isinstance(place, slice):
            part = self.indices[place]
            return FrameSelection(self.reader, part.start, part.stop, part.step)
        place = operator.index(place)
        index = self.indices[place]
        backward = index < self._last_asked
        self._last_asked = index
        if index in self._chunk:
            return self._chunk[index]
        if not backward:
            return self.reader[index]
        place %= len(self)
        wanted = self.indices[max(0, place - self._chunk_len + 1) : place + 1]
        self._chunk = dict(zip(wanted, self.reader.batch(wanted)))
        return self._chunk[index]

    def __iter__(self) -> Iterator[Frame]:
        return (self.reader[index] for index in self.indices)
