"""Which files are pictures and which are videos, and where they lie below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vosnet.errors import InputError
from vosnet.files import expand, natural_key

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
VIDEO_SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts"),
    *(".wmv", ".flv", ".3gp", ".ogv", ".y4m", ".mxf", ".vob"),
}
_JUNK = {"thumbs.db", "desktop.ini", "__macosx", ".ds_store"}


def is_junk(name: str) -> bool:
    """Whether file systems and archivers leave files or folders of this name behind."""
    return name.startswith(".") or name.lower() in _JUNK


def is_image(path: Path) -> bool:
    """Whether the name is that of a picture."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_junk(path.name)


def is_video(path: Path) -> bool:
    """Whether the name is that of a video file."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not is_junk(path.name)


def walk_files(folder: str | os.PathLike[str], *, follow_links: bool = False) -> Iterator[Path]:
    """Files below `folder`, nested, without hidden files and archivers' leftovers, in no particular order."""
    for place, folders, names in os.walk(folder, followlinks=follow_links):
        folders[:] = [name for name in folders if not is_junk(name)]
        yield from (Path(place, name) for name in names if not is_junk(name))


def list_videos(folder: str | os.PathLike[str]) -> list[Path]:
    """Video files below `folder`, nested, in natural order, without hidden files and archivers' leftovers.

    Raises:
        InputError: `folder` is not a folder.
    """
    root = expand(folder)
    if not root.is_dir():
        raise InputError("E210", f"{root} is not a folder", "Give a folder that contains videos.")
    found = filter(is_video, walk_files(root))
    return sorted(found, key=lambda path: natural_key(path.relative_to(root).as_posix()))
