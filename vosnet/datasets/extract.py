"""Small JPEGs of a video: training reads single frames from them faster than from the video itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image

from vosnet.datasets.index import VideoEntry
from vosnet.errors import InputError
from vosnet.files import atomic_folder, inside
from vosnet.transforms import resize_short_side
from vosnet.video import open_video

JPEG_QUALITY = 95


def extract_frames(entry: VideoEntry, folder: str | Path, *, short_side: int) -> VideoEntry:
    """Write all frames of a video as JPEGs into a folder of its name; a finished one is kept.

    Args:
        entry: the video.
        folder: where the folders of all videos go.
        short_side: frames are scaled down to this shorter side, pixels.

    Returns:
        The entry of the extracted frames.

    Raises:
        VosnetError: the video cannot be read, or the disk is full.
    """
    target = inside(folder, entry.name)
    if not target.is_dir():  # it appears only when it is complete
        with open_video(entry.path) as reader, atomic_folder(target) as temporary:
            for i, frame in enumerate(reader):
                image = Image.fromarray(resize_short_side(frame, short_side))
                image.save(temporary / f"{i:06d}.jpg", quality=JPEG_QUALITY, subsampling=0)
            if reader.bad_frames:
                count = len(reader.bad_frames)
                raise InputError("E263", f"{count} of {entry.num_frames} frames of {entry.path} are broken")
    with Image.open(target / "000000.jpg") as first:
        return replace(entry, path=str(target), size=(first.height, first.width))
