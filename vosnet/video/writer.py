"""Write a video that browsers play: H.264, exact time stamps, the source's sound, whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import os
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vosnet.errors import UsageError
from vosnet.files import atomic_path, expand, translate_storage_errors
from vosnet.video.audio import AudioCopy
from vosnet.video.info import Frame

if TYPE_CHECKING:
    import av
    from av.video.stream import VideoStream

_log = logging.getLogger(__name__)

# Units per second in which the usual frame rates and containers count exactly.
_TIME_SCALES = (25, 30, 24, 50, 60, 1000, 30_000, 24_000, 60_000, 600, 12_800, 15_360, 90_000)
_FALLBACK_SCALE = 1_000_000


class VideoWriter:
    """Writes frames as H.264 (yuv420p, fast start) at the given times; used as a context manager.

    The file appears under its name when the block ends without an error. Odd sizes grow by one row or column
    that repeats the last one, because the format stores colors for 2x2 pixels.

    Args:
        path: the file, .mp4, .mov or .mkv.
        size: (H, W) of the frames in pixels.
        pts_s: presentation time of each frame in seconds, ascending, [T]. Varying steps are kept.
        fps: frames per second, instead of `pts_s`.
        audio_from: file whose sound is copied for the time that the frames cover.
        start_s: source time that becomes 0 in the output; without it the first frame's time.
        pixel_aspect: width of a pixel divided by its height.
        crf: x264's quality, 18 is visually lossless; lower is better.
        preset: x264's speed.

    Raises:
        UsageError: both or neither of `pts_s` and `fps`, or times that do not ascend.
        StorageError: disk full or not writable; nothing is left behind.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: tuple[int, int],
        *,
        pts_s: ArrayLike | None = None,
        fps: float | None = None,
        audio_from: str | os.PathLike[str] | None = None,
        start_s: float | None = None,
        pixel_aspect: float = 1.0,
        crf: int = 18,
        preset: str = "medium",
    ) -> None:
        if (pts_s is None) == (fps is None):
            raise UsageError("E112", "a video needs either pts_s or fps", "Give the reader's pts_s.")
        if fps is not None and not 0 < fps < 1e6:
            raise UsageError("E112", f"fps must be positive, got {fps}")
        self.path = expand(path)
        self._size, self._audio_from = size, audio_from
        self._pixel_aspect, self._settings = pixel_aspect, {"crf": str(crf), "preset": preset}
        self._times = None if pts_s is None else _checked_times(pts_s)
        self._fps = fps if fps is not None else _mean_rate(self._times)
        first = 0.0 if self._times is None else float(self._times[0])
        self._start_s = first if start_s is None else start_s
        self._time_base = self._choose_time_base()
        self.frames_written = 0
        self.warnings: list[str] = []
        self._stack = contextlib.ExitStack()
        self._output: av.container.OutputContainer | None = None

    def __enter__(self) -> VideoWriter:
        with contextlib.ExitStack() as stack:
            self._temporary = stack.enter_context(atomic_path(self.path))
            self._open()
            self._stack = stack.pop_all()
        return self

    def write(self, frame: Frame) -> None:
        """Append a frame, RGB [H, W, 3] uint8.

        Raises:
            UsageError: wrong size or type, or more frames than times.
            StorageError: disk full.
        """
        if frame.shape != (*self._size, 3) or frame.dtype != np.uint8:
            height, width = self._size
            raise UsageError(
                "E113",
                f"frame {self.frames_written} must be uint8 [{height}, {width}, 3], "
                f"got {frame.dtype} {list(frame.shape)}",
            )
        if self._times is not None and self.frames_written >= len(self._times):
            raise UsageError("E113", f"more frames than the {len(self._times)} times that were given")
        import av

        picture = av.VideoFrame.from_ndarray(_even(frame), format="rgb24")
        picture.pts, picture.time_base = self._unit(self.frames_written), self._time_base
        self.frames_written += 1
        with translate_storage_errors(self.path):
            self._mux(picture)
            if self._audio is not None:
                self._audio.copy_until(self._time(self.frames_written - 1) - self._start_s)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Close first: the file is renamed or removed next, which Windows refuses while it is open.
        try:
            if kind is None:
                self._finish()
        except BaseException as failed:
            self._abandon()
            if not self._stack.__exit__(type(failed), failed, failed.__traceback__):
                raise
        else:
            if kind is not None:
                self._abandon()
            self._stack.__exit__(kind, error, trace)

    def _open(self) -> None:
        import av

        flags = {"movflags": "+faststart"} if self.path.suffix.lower() in {".mp4", ".m4v", ".mov"} else {}
        with translate_storage_errors(self.path):
            self._output = av.open(str(self._temporary), "w", options=flags)
        rate = Fraction(self._fps).limit_denominator(1001)
        stream = self._output.add_stream("libx264", rate=rate, options=self._settings)
        height, width = (side + side % 2 for side in self._size)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = self._time_base
        stream.codec_context.sample_aspect_ratio = Fraction(self._pixel_aspect).limit_denominator(255)
        self._stream: VideoStream = stream
        self._audio = self._open_audio()

    def _open_audio(self) -> AudioCopy | None:
        if self._audio_from is None:
            return None
        assert self._output is not None
        end = np.inf if self._times is None else float(self._times[-1]) + 1 / self._fps
        audio = AudioCopy(self._audio_from, self._output, self._start_s, end, self.path.suffix)
        if audio.problem:
            self.warnings.append(audio.problem)
            _log.warning(audio.problem)
        return audio

    def _finish(self) -> None:
        assert self._output is not None
        with translate_storage_errors(self.path):
            self._mux(None)
            if self._audio is not None:
                self._audio.copy_until(self._time(self.frames_written) - self._start_s)
            self._output.close()

    def _abandon(self) -> None:
        if self._output is not None:
            with contextlib.suppress(OSError, ValueError):  # the file is thrown away; the first error counts
                self._output.close()

    def _mux(self, picture: av.VideoFrame | None) -> None:
        assert self._output is not None
        for packet in self._stream.encode(picture):
            self._output.mux(packet)

    def _time(self, index: int) -> float:
        """Source time of frame `index` in seconds, extrapolated by the frame rate after the last one."""
        if self._times is None:
            return index / self._fps
        if index < len(self._times):
            return float(self._times[index])
        return float(self._times[-1]) + (index - len(self._times) + 1) / self._fps

    def _unit(self, index: int) -> int:
        return round((self._time(index) - self._start_s) / self._time_base)

    def _choose_time_base(self) -> Fraction:
        """The coarsest usual unit in which every time is a whole number, a microsecond when there is none."""
        if self._times is None:
            return 1 / Fraction(self._fps).limit_denominator(1001)
        times = self._times - self._start_s
        rate = Fraction(self._fps).limit_denominator(1001)
        for scale in (rate, *_TIME_SCALES):
            units = times * float(scale)
            # Time stamps went through float64 seconds; an error of 1e-4 units is rounding, not timing.
            if np.abs(units - np.round(units)).max() < 1e-4:
                return 1 / Fraction(scale)
        return Fraction(1, _FALLBACK_SCALE)


def _checked_times(pts_s: ArrayLike) -> NDArray[np.float64]:
    times = np.asarray(pts_s, np.float64)
    if times.ndim != 1 or not len(times) or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise UsageError("E112", "pts_s must be finite times in ascending order, one per frame")
    return times


def _mean_rate(times: NDArray[np.float64] | None) -> float:
    assert times is not None
    return (len(times) - 1) / float(times[-1] - times[0]) if len(times) > 1 else 25.0


def _even(frame: Frame) -> Frame:
    height, width = frame.shape[:2]
    if height % 2 or width % 2:
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(frame)
