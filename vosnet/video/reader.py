"""One reader for a video file, a folder of frames, or a still picture."""

from __future__ import annotations

import logging
import operator
import os
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vosnet.errors import InputError, UsageError, VosnetError
from vosnet.files import expand
from vosnet.video import handles
from vosnet.video.choice import Decoder, DecoderChoice, DecodingPlan, Options, plan_decoding
from vosnet.video.decord_decoder import first_line
from vosnet.video.info import Frame

_log = logging.getLogger(__name__)

OnBadFrame = Literal["hold", "stop"]
# Stills carry no time; DAVIS and most cameras are close to this rate.
DEFAULT_IMAGE_FPS = 25.0


class WarningLog:
    """Collects what a reader warns of and logs each line once. Decoders hold it instead of their reader."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, warning: str) -> None:
        if warning not in self.lines:
            self.lines.append(warning)
            _log.warning(warning)


class VideoReader:
    """Frames of a clip by index, in any order, upright, as RGB [H, W, 3] uint8.

    The same index always gives the same frame. The decoder is opened when a frame is first asked for, in the
    process that asks: a reader may be pickled or inherited through a fork at any time. One reader holds one
    decoder and one frame; memory does not grow with the length of the clip.

    Args:
        path: video file, folder of frames, or one picture; `~` and environment variables are expanded.
        on_bad_frame: "hold" repeats the last good frame and lists the index in `bad_frames`; "stop" raises.
        image_fps: frame rate that is assumed for a folder of frames.
        threads: decoder threads, 0 for the decoder's choice; 1 is best in data-loading workers.
        decode_timeout_s: decode in a process of its own and give up when it crashes, or when one frame takes
            longer than this. Without it a crashing decoder takes the program with it.
        decoder: "auto", or "decord" or "pyav" to insist on one.

    Raises:
        InputError: missing, unreadable, without a picture track or without a frame.
    """

    _decoder: Decoder | None
    _last: tuple[int, Frame] | None
    _lock: Any  # threading.RLock is a function before Python 3.13

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        on_bad_frame: OnBadFrame = "hold",
        image_fps: float = DEFAULT_IMAGE_FPS,
        threads: int = 0,
        decode_timeout_s: float | None = None,
        decoder: DecoderChoice = "auto",
    ) -> None:
        if on_bad_frame not in {"hold", "stop"}:
            raise UsageError("E110", f"on_bad_frame must be hold or stop, got {on_bad_frame!r}")
        self.path = expand(path)
        if not self.path.exists():
            raise InputError("E210", f"{self.path} does not exist", "Check the path.")
        self._on_bad_frame = on_bad_frame
        self._bad: set[int] = set()
        self._warn = WarningLog()
        self._reset()
        options = Options(image_fps, threads, decode_timeout_s, decoder)
        plan, opened = plan_decoding(self.path, options, self._warn)
        self._use(plan)
        if opened is not None:
            self._keep(opened)
        for warning in self.info.warnings:
            self._warn(warning)

    def _use(self, plan: DecodingPlan) -> None:
        self._plan, self.info = plan, plan.info
        _log.info("%s: decoded by %s (%s)", self.path.name, self.decoder, self.reason)

    def __len__(self) -> int:
        return len(self.info.pts_s)

    def __getitem__(self, index: int) -> Frame:
        """Frame `index`, negative from the end.

        Raises:
            IndexError: beyond the clip.
            InputError: the frame cannot be decoded and `on_bad_frame` is "stop", or no frame can be.
        """
        place = self._place(index)
        with self._lock:
            if self._last is None or self._last[0] != place:
                self._last = (place, self._read(place))
            return self._last[1].copy()

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    def frames(self, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[Frame]:
        """Frames `range(start, stop, step)` one after the other; `step` may be negative."""
        for index in range(*slice(start, stop, step).indices(len(self))):
            yield self[index]

    def batch(self, indices: Sequence[int]) -> Frame:
        """Frames `indices` in the given order, [n, H, W, 3]; decoded in storage order, repeats once."""
        places = np.array([self._place(index) for index in indices])
        out = np.empty((len(places), *self.size, 3), np.uint8)
        for place in np.unique(places):
            out[places == place] = self[place]
        return out

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the upright frames in pixels."""
        return self.info.size

    @property
    def pts_s(self) -> NDArray[np.float64]:
        """Presentation time of each frame in seconds, float64 [T]."""
        return self.info.pts_s

    @property
    def fps(self) -> float:
        """Frames per second, the mean where the rate varies."""
        return self.info.fps

    @property
    def names(self) -> list[str]:
        """Output stem of each frame: the picture's own, or its number in five digits."""
        return list(self.info.names)

    @property
    def decoder(self) -> str:
        """Name of the decoder in use: decord, pyav or images."""
        return self.info.decoder

    @property
    def reason(self) -> str:
        """Why this decoder was chosen, in one line."""
        return self.info.reason

    @property
    def rotation(self) -> int:
        """Degrees counter-clockwise that were applied to stand the frames upright."""
        return self.info.rotation

    @property
    def bad_frames(self) -> list[int]:
        """Indices that were asked for and could not be decoded, so far."""
        return sorted(self._bad)

    @property
    def warnings(self) -> list[str]:
        """What the user should know about the input, as far as it was read; one line each."""
        return list(self._warn.lines)

    @property
    def is_open(self) -> bool:
        """Whether a decoder is held at the moment."""
        return self._decoder is not None

    def close(self) -> None:
        """Drop the decoder and the kept frame. Reading again opens it again."""
        self.release()
        self._last = None

    def release(self, *, wait: bool = True) -> None:
        """Drop the decoder but not what is known of the clip; without `wait` only if no thread reads."""
        if not self._lock.acquire(blocking=wait):
            return
        try:
            handles.closed(self)
            if self._decoder is not None:
                self._decoder.close()
                self._decoder = None
        finally:
            self._lock.release()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_decoder", None) is not None:
            self.release()

    def __repr__(self) -> str:
        height, width = self.size
        return f"VideoReader({str(self.path)!r}, {len(self)} frames {width}x{height}, {self.decoder})"

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_decoder", "_lock", "_last"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def _place(self, index: int) -> int:
        """`index` counted from the start."""
        place = operator.index(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"frame {place} of {self.path} asked for, it has {len(self)} frames")
        return place % len(self)

    def _reset(self) -> None:
        self._decoder = None
        self._last = None
        self._lock = threading.RLock()

    def _keep(self, decoder: Decoder) -> None:
        self._decoder = decoder
        handles.opened(self, greedy=decoder.name == "decord")

    def _open(self) -> Decoder:
        if self._decoder is None:
            self._keep(self._plan.open(self._warn))
        assert self._decoder is not None
        return self._decoder

    def _read(self, index: int) -> Frame:
        frame = self._decode(index)
        if frame is not None:
            return frame
        if self._on_bad_frame == "stop":
            raise InputError(
                "E216", f"frame {index} of {self.path} cannot be decoded", "Use --on-bad-frame hold."
            )
        # The last good frame before it; at the start of a clip the first one after it.
        for near in [*range(index - 1, -1, -1), *range(index + 1, len(self))]:
            if self._last is not None and self._last[0] == near:
                return self._last[1]
            frame = self._decode(near)
            if frame is not None:
                return frame
        raise InputError("E214", f"{self.path} has no frame that can be decoded", "Copy it again.")

    def _decode(self, index: int) -> Frame | None:
        if index in self._bad:
            return None
        try:
            frame = self._open().frame(index)
        except Exception as error:
            self.release()
            if self.decoder != "decord" or isinstance(error, VosnetError):
                raise
            # decord gives up at the first damaged packet; PyAV reads what is left.
            self._use(self._plan.by("pyav", f"decord failed at frame {index}: {first_line(error)}"))
            frame = self._open().frame(index)
        if frame is None:
            self._bad.add(index)
            _log.warning("%s: frame %d cannot be decoded", self.path.name, index)
        return frame


open_video = VideoReader
