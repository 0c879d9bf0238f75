"""Frames by index through decord, for the files that it reads right."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vosnet.video.info import Frame
from vosnet.video.probe import MP4, Probe, Scan

# decord may decode a whole file into memory while nobody reads (see handles.py): only short clips go to it.
MAX_DECODED_BYTES = 128 << 20


class DecordDecoder:
    """Decodes frames of one file by index with decord.

    Args:
        path: the video file.
        size: (H, W) of every frame.
        threads: decoder threads, 0 for decord's choice.

    Raises:
        Exception: whatever decord raises for a file it cannot open.
    """

    name = "decord"

    def __init__(self, path: Path, size: tuple[int, int], threads: int = 0) -> None:
        self._size = size
        decord = import_decord()
        self._reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=threads)

    def __len__(self) -> int:
        return len(self._reader)

    def start_times(self) -> NDArray[np.float64]:
        """Presentation time of each frame in seconds as decord sees it, [T]."""
        return np.asarray(self._reader.get_frame_timestamp(range(len(self)))[:, 0], np.float64)

    def frame(self, index: int) -> Frame:
        """Frame `index`.

        Raises:
            Exception: decord's own error where it cannot decode.
        """
        picture = _array(self._reader[index])
        if picture.shape != (*self._size, 3):  # the size changed on the way, or the clip is a few pixels wide
            raise ValueError(f"its frame has the shape {list(picture.shape)}")
        return picture

    def close(self) -> None:
        """Free the reader and what it decoded ahead."""
        del self._reader


def import_decord() -> Any:
    """The decord module, imported after OpenCV: the other way round `cv2.imread` fails on every PNG.

    Raises:
        ImportError: decord is not installed.
    """
    with contextlib.suppress(ImportError):  # without OpenCV there is nothing that decord could break
        import cv2  # noqa: F401
    import decord

    decord.logging.set_level(decord.logging.QUIET)  # the reader reports what goes wrong, in its own words
    return decord


def open_decord(path: Path, probe: Probe, threads: int = 0) -> DecordDecoder | str:
    """A decord decoder that agrees with the packet index, or one line that says why PyAV must decode."""
    if traits := list(_untrusted_traits(probe)):
        return f"decord is not trusted with {', '.join(traits)}"
    count, (height, width) = len(probe.index.pts), probe.info.size
    if count * height * width * 3 > MAX_DECODED_BYTES:
        return f"long clip, decord may hold all its {count} frames in memory"
    try:
        decoder = DecordDecoder(path, probe.info.size, threads)
    except ImportError:
        return "decord is not installed"
    except Exception as error:  # decord's own classes, and RuntimeError, for bad files
        return f"decord cannot open it ({first_line(error)})"
    tolerance = 0.5 / max(probe.info.fps, 1e-6)
    if len(decoder) != count or not np.allclose(
        decoder.start_times(), probe.info.pts_s, atol=tolerance, rtol=0
    ):
        decoder.close()
        return "decord counts or times the frames differently"
    return decoder


def _untrusted_traits(probe: Probe) -> Iterator[str]:
    """What is known to give wrong frames or no frames in decord 0.6; nothing for plain files."""
    info, scan = probe.info, probe.scan
    if info.codec != "h264":
        yield f"codec {info.codec}"
    if probe.container != MP4:  # a Matroska file that is cut short makes decord read for ever
        yield f"container {probe.container.split(',', maxsplit=1)[0]}"
    if info.pixel_format not in {"yuv420p", "yuvj420p"}:
        yield f"pixel format {info.pixel_format}"
    if scan.hidden or probe.index.pts[0] != 0:
        yield "edit list or start time other than 0"
    if _is_open_gop(scan):
        yield "open GOP"
    if not _is_constant_rate(probe.index.pts):
        yield "variable frame rate"
    if info.rotation:
        yield f"rotation {info.rotation}"
    if info.interlaced:
        yield "interlaced"
    if scan.read_errors or scan.leading:
        yield "damaged"


def _is_open_gop(scan: Scan) -> bool:
    """Whether a frame stored after a key frame is shown before it, so that decoding cannot start there."""
    keys, last_key = set(scan.keys), None
    for pts in scan.shown:
        if pts in keys:
            last_key = pts
        elif last_key is not None and pts is not None and pts < last_key:
            return True
    return False


def _is_constant_rate(pts: NDArray[np.int64]) -> bool:
    steps = np.diff(pts)
    # Containers that count in milliseconds round each step by one unit.
    return len(steps) == 0 or bool(steps.max() - steps.min() <= 1 + (steps.min() > 1))


def first_line(error: BaseException) -> str:
    """The first line of a foreign library's message, shortened; its type where it says nothing."""
    # decord puts "[12:34:56] /source/file.cc:292: " before what it says, sometimes twice.
    text = re.sub(r"(\[[\d:]+\] \S+:\d+: )+", "", str(error)).strip()
    return text.splitlines()[0][:80] if text else type(error).__name__


def _array(picture: Any) -> Frame:
    # decord.bridge may have been switched to torch by other code in the process.
    array = picture.asnumpy() if hasattr(picture, "asnumpy") else np.asarray(picture)
    return np.asarray(array, np.uint8)
