"""Find the videos below a folder."""

from __future__ import annotations

import os
from pathlib import Path

from vosnet.errors import InputError
from vosnet.files import expand, natural_key
from vosnet.video.images import is_junk

VIDEO_SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts"),
    *(".wmv", ".flv", ".3gp", ".ogv", ".y4m", ".mxf", ".vob"),
}


def list_videos(folder: str | os.PathLike[str]) -> list[Path]:
    """Video files below `folder`, nested, in natural order, without hidden files and archivers' leftovers.

    Raises:
        InputError: `folder` is not a folder.
    """
    root = expand(folder)
    if not root.is_dir():
        raise InputError("E210", f"{root} is not a folder", "Give a folder that contains videos.")
    found = []
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not is_junk(name)]
        found += [
            Path(place, name)
            for name in files
            if not is_junk(name) and Path(name).suffix.lower() in VIDEO_SUFFIXES
        ]
    return sorted(found, key=lambda path: natural_key(path.relative_to(root).as_posix()))
