"""Clips with the frame number drawn into the picture, in many containers and codecs, and damaged ones.

Made with PyAV alone. Each frame carries its number as ten blocks, and the inverted blocks below them, so that
a picture read back either gives one number without doubt or none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

BITS = 10
WIDTH, HEIGHT = 160, 96
_RATE = 25
Picture = NDArray[np.uint8]


def barcode(number: int, width: int = WIDTH, height: int = HEIGHT) -> Picture:
    """A picture that shows `number`: upper block i is bright where bit i is set, the lower one inverted."""
    picture = np.empty((height, width, 3), np.uint8)
    columns = np.minimum(np.arange(width) * BITS // width, BITS - 1)
    bits = (number >> columns) & 1
    picture[: height // 2] = np.where(bits, 215, 40)[None, :, None]
    picture[height // 2 :] = np.where(bits, 40, 215)[None, :, None]
    return picture


def read_barcode(picture: Picture) -> int | None:
    """The number that `picture` shows, None when any block is unclear or contradicts its inverse."""
    height, width = picture.shape[:2]
    number = 0
    for i in range(BITS):
        left, right = (i * width) // BITS, ((i + 1) * width) // BITS
        middle = slice(left + (right - left) // 4, right - (right - left) // 4)
        upper = float(picture[height // 8 : height * 3 // 8, middle].mean())
        lower = float(picture[height * 5 // 8 : height * 7 // 8, middle].mean())
        if abs(upper - lower) < 60:
            return None
        number |= int(upper > lower) << i
    return number


def write_clip(
    path: Path,
    count: int = 60,
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    size: tuple[int, int] = (HEIGHT, WIDTH),
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    pts_ms: Sequence[int] | None = None,
    rotation: int = 0,
    pixel_aspect: Fraction | None = None,
    interlaced: bool = False,
    audio: bool = False,
    first: int = 0,
) -> Path:
    """Write a barcode clip of `count` frames. `size` is (H, W) upright; `rotation` is stored as metadata.

    Args:
        path: the file; its suffix chooses the container.
        count: number of frames.
        codec: FFmpeg's encoder.
        pixel_format: FFmpeg's pixel format.
        size: (H, W) of the upright picture.
        options: encoder options.
        container: muxer options.
        pts_ms: presentation times in milliseconds; equal steps of 1/25 s without.
        rotation: degrees counter-clockwise that a reader must turn the stored picture.
        pixel_aspect: width over height of a pixel.
        interlaced: code as interlaced, top field first.
        audio: add a 440 Hz tone as AAC.
        first: number of the first frame.
    """
    height, width = size if rotation % 180 == 0 else size[::-1]
    with av.open(str(path), "w", options=container or {}) as output:
        stream = output.add_stream(codec, rate=_RATE, options=dict(options or {}))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.time_base = Fraction(1, 1000 if pts_ms else _RATE)
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation:
            stream.set_display_rotation(rotation)
        sound = output.add_stream("aac", rate=48_000) if audio else None
        for i in range(count):
            upright = barcode(first + i, size[1], size[0])
            stored = np.ascontiguousarray(np.rot90(upright, -rotation // 90))
            frame = av.VideoFrame.from_ndarray(stored, format="rgb24")
            frame.pts = pts_ms[i] if pts_ms else i
            frame.time_base = stream.codec_context.time_base
            for packet in stream.encode(frame):
                output.mux(packet)
        for packet in stream.encode(None):
            output.mux(packet)
        if sound is not None:
            assert isinstance(sound, av.AudioStream)
            _write_tone(output, sound, count / _RATE)
    return path


def write_audio(path: Path, seconds: float) -> Path:
    """A file with a tone and no picture."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=48_000)
        assert isinstance(stream, av.AudioStream)
        _write_tone(output, stream, seconds)
    return path


def _write_tone(output: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    wave = np.sin(2 * np.pi * 440 * np.arange(int(seconds * 48_000)) / 48_000).astype(np.float32) * 0.3
    for start in range(0, len(wave), 1024):
        frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48_000, start
        for packet in stream.encode(frame):
            output.mux(packet)
    for packet in stream.encode(None):
        output.mux(packet)


def cut_without_decoding(source: Path, target: Path, start_s: float) -> Path:
    """Copy packets from the key frame before `start_s`; an edit list hides what comes before it.

    What `ffmpeg -ss START -c copy` and the trim tool of a phone do.
    """
    with (
        av.open(str(source)) as clip,
        av.open(str(target), "w", options={"use_editlist": "1", "avoid_negative_ts": "disabled"}) as output,
    ):
        stream = clip.streams.video[0]
        assert stream.time_base is not None
        copy = output.add_stream_from_template(stream)
        offset = round(start_s / stream.time_base)
        clip.seek(offset, stream=stream, backward=True)
        for packet in clip.demux(stream):
            if packet.dts is None or packet.pts is None:
                continue
            packet.pts, packet.dts, packet.stream = packet.pts - offset, packet.dts - offset, copy
            output.mux(packet)
    return target


def truncate(source: Path, target: Path, part: float) -> Path:
    """The first `part` of a file."""
    content = source.read_bytes()
    target.write_bytes(content[: int(len(content) * part)])
    return target


def corrupt(source: Path, target: Path, start: float, count: int) -> Path:
    """Overwrite `count` bytes from `start` (a part of the file's length) with noise."""
    content = bytearray(source.read_bytes())
    begin = int(len(content) * start)
    content[begin : begin + count] = np.random.default_rng(0).bytes(count)
    target.write_bytes(bytes(content))
    return target


VFR_MS = [0, 40, 80, 200, 240, 280, 290, 330, 600, 640]


def vfr_times(count: int) -> list[int]:
    """Presentation times in milliseconds with steps of 10 to 270 ms."""
    return [VFR_MS[i % 10] + 700 * (i // 10) for i in range(count)]


@dataclass(frozen=True)
class Animal:
    """One clip of the zoo: how to make it, and the numbers its frames show."""

    name: str
    suffix: str
    make: Callable[[Path], Path]
    numbers: tuple[int, ...]


def _plain(name: str, suffix: str, count: int = 50, **settings: object) -> Animal:
    return Animal(name, suffix, lambda path: write_clip(path, count, **settings), tuple(range(count)))  # type: ignore[arg-type]


_X265 = {"x265-params": "log-level=none:pools=none:keyint=20:bframes=8"}
_GOP = {"g": "12", "bf": "2"}


def _cut(path: Path, start: int, **settings: object) -> Path:
    whole = write_clip(path.with_name("whole_" + path.name), 60, **settings)  # type: ignore[arg-type]
    return cut_without_decoding(whole, path, start / _RATE)


ANIMALS = [
    _plain("constant rate", ".mp4", options=_GOP),
    _plain("constant rate, one long GOP", ".mp4", options={"g": "250", "bf": "3"}),
    _plain("all key frames", ".mp4", options={"g": "1"}),
    _plain("variable rate", ".mp4", options=_GOP, pts_ms=vfr_times(50)),
    _plain("variable rate", ".mkv", options=_GOP, pts_ms=vfr_times(50)),
    Animal("edit list", ".mp4", lambda p: _cut(p, 17, options={"g": "30", "bf": "2"}), tuple(range(17, 60))),
    _plain("open GOP H.264", ".mp4", options={"g": "12", "bf": "3", "x264-params": "open-gop=1"}),
    _plain("intra refresh H.264", ".mp4", options={"g": "20", "x264-params": "intra-refresh=1"}),
    _plain("open GOP", ".mp4", 100, codec="libx265", options=_X265),
    Animal(
        "edit list, open GOP",
        ".mp4",
        lambda p: _cut(p, 21, codec="libx265", options=_X265),
        tuple(range(21, 60)),
    ),
    _plain(
        "AV1",
        ".mp4",
        40,
        codec="libsvtav1",
        options={"preset": "8", "g": "10", "crf": "12", "svtav1-params": "lp=1"},
    ),
    _plain(
        "VP9", ".webm", 40, codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8", "g": "12"}
    ),
    _plain(
        "VP8, hidden frames",
        ".webm",
        40,
        codec="libvpx",
        options={"auto-alt-ref": "1", "lag-in-frames": "16"},
    ),
    _plain("FFV1", ".mkv", codec="ffv1"),
    _plain("GIF", ".gif", codec="gif", pixel_format="rgb8"),
    _plain("ProRes 10-bit", ".mov", 30, codec="prores_ks", pixel_format="yuv422p10le"),
    _plain("H.264 10-bit", ".mp4", pixel_format="yuv420p10le", options=_GOP),
    _plain(
        "4:4:4, odd size",
        ".mp4",
        30,
        pixel_format="yuv444p",
        size=(361, 641),
        options={"preset": "ultrafast"},
    ),
    _plain("rotation 90", ".mp4", options=_GOP, rotation=90),
    _plain("rotation 180", ".mp4", options=_GOP, rotation=180),
    _plain("rotation 270", ".mp4", options=_GOP, rotation=270),
    _plain("non-square pixels", ".mp4", options=_GOP, pixel_aspect=Fraction(4, 3)),
    _plain("interlaced flag", ".mp4", options={**_GOP, "flags": "+ildct+ilme", "x264-params": "tff=1"}),
    _plain("with audio", ".mp4", options=_GOP, audio=True),
    _plain("MPEG-TS", ".ts", options=_GOP),
    _plain("MPEG-4 with B-frames", ".avi", codec="mpeg4", options={"bf": "2", "g": "12"}),
    _plain("MPEG-2", ".mpg", codec="mpeg2video", options={"g": "12", "bf": "2"}),
    _plain("elementary stream", ".h264", options=_GOP),
    _plain("one frame", ".mp4", 1),
]
