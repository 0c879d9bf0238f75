"""Frames by index through PyAV: seek to the key frame before, decode on to the wanted time stamp."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vosnet.video.info import Frame, PacketIndex
from vosnet.video.probe import open_container, packets

if TYPE_CHECKING:
    import av
    from av.video.stream import VideoStream

# Decoding on is cheaper than seeking while the next key frame is at most this many frames ahead.
_SKIP_AHEAD = 16


class PyavDecoder:
    """Decodes frames of one file by index, in any order.

    Args:
        path: the video file.
        index: where its frames are.
        size: (H, W) of the upright frames; a frame stored in another size is rescaled to it.
        rotation: quarter turns counter-clockwise in degrees.
        threads: decoder threads, 0 for as many as FFmpeg likes.
        warn: called with a message about frames of another size.
    """

    name = "pyav"
    _frames: Generator[tuple[int, av.VideoFrame], None, None]
    _pending: tuple[int, av.VideoFrame] | None

    def __init__(
        self,
        path: Path,
        index: PacketIndex,
        size: tuple[int, int],
        rotation: int,
        threads: int,
        warn: Callable[[str], None],
    ) -> None:
        from av.video.reformatter import VideoReformatter

        self._path, self._index, self._threads = path, index, threads
        self._turns = rotation // 90
        self._stored = size if self._turns % 2 == 0 else (size[1], size[0])
        self._order = {int(pts): i for i, pts in enumerate(index.pts)}
        self._reformatter = VideoReformatter()
        self._warn = warn
        self._errors = 0
        self._careful = False
        self._key: int | None = None  # time stamp of the key frame that the stream was last sent to
        self._open()

    def frame(self, index: int) -> Frame | None:
        """Frame `index`, or None when it cannot be decoded."""
        if self._place > index or self._jump_pays(index) or self._needs_fresh_start(index):
            self._seek(index)
        found = self._advance(index)
        if (self._errors or found is None) and not self._careful:
            # Frame threads lose good frames around a damaged one, not always with an error, and which ones
            # depends on timing.
            self._careful = True
            self._seek(index)
            found = self._advance(index)
        if found is None and self._landed:
            # A decoder may need more than the last key frame to recover (intra refresh).
            self._seek(index, skip=1)
            found = self._advance(index)
        if found is None and self._landed and self._index.counted:
            self._restart()  # seeking in program streams is a guess; from the start the frame is there
            found = self._advance(index)
        return None if found is None else self._convert(found)

    def close(self) -> None:
        """Close the file."""
        self._frames.close()
        # Freeing a context waits for its threads and keeps Python's lock, for which a thread that logs an
        # error waits (after av.logging.set_level): bring them to rest first.
        self._stream.codec_context.flush_buffers()
        self._container.close()

    def _jump_pays(self, index: int) -> bool:
        if not self._index.seekable or index - self._place <= _SKIP_AHEAD:
            return False
        key = self._key_of(index)
        return key is not None and key > int(self._index.pts[self._place])

    def _needs_fresh_start(self, index: int) -> bool:
        """In a damaged file every group of pictures is decoded from its own key frame.

        What the decoder makes up for lost parts depends on the frames before, so on the order of access.
        """
        return self._careful and self._key != self._key_of(index)

    def _key_of(self, index: int, skip: int = 0) -> int | None:
        return (
            self._index.key_before(int(self._index.pts[index]), skip=skip) if self._index.seekable else None
        )

    def _advance(self, index: int) -> av.VideoFrame | None:
        """Decode up to frame `index`. `_place` is the lowest index that the stream can still give."""
        while True:
            if self._pending is None:
                self._pending = next(self._frames, None)
            if self._pending is None:
                self._place = len(self._index.pts)
                return None
            place, frame = self._pending
            if place > index:
                self._place = place
                return None  # the decoder passed over it: damaged
            self._pending = None
            self._place = place + 1
            if place == index:
                return frame

    def _restart(self) -> None:
        """Open the file at its start."""
        self.close()
        self._open()

    def _open(self) -> None:
        self._container, self._stream = open_container(self._path)
        context = self._stream.codec_context
        context.thread_type = "SLICE" if self._careful else "AUTO"
        context.thread_count = 1 if self._careful else self._threads
        self._landed = False  # whether decoding began at a key frame that was sought
        self._begin(packets(self._container, self._stream))

    def _begin(self, incoming: Iterator[av.Packet[VideoStream] | Exception]) -> None:
        self._frames = self._decode(incoming)
        self._pending = None
        self._place = 0

    def _seek(self, index: int, skip: int = 0) -> None:
        """Continue from a key frame at or before frame `index`, from the file's start if need be."""
        import av

        if self._careful and self._stream.codec_context.thread_count != 1:
            self._restart()
        key = self._key = self._key_of(index, skip)
        if key is None:
            self._restart()
            return
        try:
            self._container.seek(key, stream=self._stream, backward=True)
        except (av.FFmpegError, OSError):
            self._restart()
            return
        incoming = packets(self._container, self._stream)
        first = next(incoming, None)
        if first is None or isinstance(first, Exception) or first.pts is None or first.pts > key:
            self._restart()  # the container's own index is wrong
            return
        self._landed = True
        self._begin(chain([first], incoming))

    def _decode(
        self, incoming: Iterator[av.Packet[VideoStream] | Exception]
    ) -> Generator[tuple[int, av.VideoFrame], None, None]:
        """Frames in presentation order with their index; damaged packets are counted and passed over."""
        import av

        count = 0
        for packet in incoming:
            if isinstance(packet, Exception):
                self._errors += 1
                continue
            try:
                frames = packet.decode()
            except av.FFmpegError:
                self._errors += 1
                continue
            for frame in frames:
                assert isinstance(frame, av.VideoFrame)
                place = self._place_of(frame, count)
                count += 1
                if frame.is_corrupt:
                    self._errors += 1
                elif place is not None:
                    yield place, frame

    def _place_of(self, frame: av.VideoFrame, count: int) -> int | None:
        """Index of a decoded frame, None for one that an edit list hides or that is beyond the index."""
        if self._index.seekable:
            return None if frame.pts is None else self._order.get(frame.pts)
        return count if count < len(self._index.pts) else None

    def _convert(self, frame: av.VideoFrame) -> Frame:
        height, width = self._stored
        if (frame.height, frame.width) != self._stored:
            self._warn(
                f"{self._path.name}: the frame size changes to {frame.width}x{frame.height} on the way; "
                f"such frames are rescaled to {width}x{height}"
            )
        rgb = self._reformatter.reformat(frame, width=width, height=height, format="rgb24")
        picture = np.asarray(rgb.to_ndarray(), np.uint8)
        return np.ascontiguousarray(np.rot90(picture, self._turns)) if self._turns else picture
