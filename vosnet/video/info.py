"""What is known of a video before its pictures are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
"""One picture, RGB, upright, [H, W, 3] uint8."""


@dataclass(frozen=True)
class PacketIndex:
    """Where each frame of a video file is found; built from packets, never from the header's frame count.

    Args:
        pts: presentation time stamps of the visible frames in ascending order, in `time_base` units, [T].
        key_pts: time stamps of the key frames, ascending, also of those an edit list hides, [K].
        time_base: seconds per unit of `pts`.
        seekable: frames can be found by time stamp. Otherwise they are counted from the start of the file.
        counted: every frame was decoded once to make this index, so each is known to exist.
    """

    pts: NDArray[np.int64]
    key_pts: NDArray[np.int64]
    time_base: Fraction
    seekable: bool
    counted: bool = False

    def key_before(self, pts: int, *, skip: int = 0) -> int | None:
        """Time stamp of the last key frame at or before `pts`, or of the one `skip` earlier, or None."""
        place = int(np.searchsorted(self.key_pts, pts, side="right")) - 1 - skip
        return int(self.key_pts[place]) if place >= 0 else None


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a clip, read once when it is opened.

    Args:
        size: (H, W) of the upright frames in pixels.
        pts_s: presentation time of each frame in seconds, float64 [T].
        fps: frames per second; the mean rate when the rate varies.
        names: output stem of each frame.
        decoder: "decord", "pyav" or "images".
        reason: one line that says why this decoder was chosen.
        rotation: degrees counter-clockwise that were applied to stand the frames upright.
        pixel_aspect: width of a pixel divided by its height. Frames keep the stored pixel grid.
        interlaced: the frames are flagged as two interleaved fields; they are returned as stored.
        codec: name of the codec, or of the image formats.
        pixel_format: FFmpeg's name of the stored format, "" for images.
        time_base: seconds per unit in which the source counts time.
        warnings: what the user should know about the input, one line each.
    """

    size: tuple[int, int]
    pts_s: NDArray[np.float64]
    fps: float
    names: tuple[str, ...]
    decoder: str
    reason: str
    rotation: int = 0
    pixel_aspect: float = 1.0
    interlaced: bool = False
    codec: str = ""
    pixel_format: str = ""
    time_base: Fraction = Fraction(1, 90_000)
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types; `from_json` turns it back without loss."""
        ratio = [self.time_base.numerator, self.time_base.denominator]
        return {**vars(self), "pts_s": self.pts_s.tolist(), "time_base": ratio}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> VideoInfo:
        """Back from `to_json`."""
        return cls(
            **{
                **value,
                "size": tuple(value["size"]),
                "pts_s": np.array(value["pts_s"], np.float64),
                "names": tuple(value["names"]),
                "time_base": Fraction(*value["time_base"]),
                "warnings": tuple(value["warnings"]),
            }
        )
