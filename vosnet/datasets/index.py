"""The index of a data set: frames, size and rate of every video, and which videos cannot be read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vosnet.datasets.layouts import Located
from vosnet.errors import InputError, StorageError, VosnetError
from vosnet.files import sha256, write_json
from vosnet.video import open_video
from vosnet.video.listing import is_image

INDEX_VERSION = 1


@dataclass(frozen=True)
class VideoEntry:
    """One video that can be trained on.

    Args:
        name: unique within the data set.
        path: file or folder; empty for generated video.
        num_frames: frames.
        size: (H, W) in pixels.
        fps: frames per second; 0 where the source does not say.
        sha256: of the file, or None when it was not asked for.
        generator_seed: for generated video: which one.
    """

    name: str
    path: str
    num_frames: int
    size: tuple[int, int]
    fps: float = 0.0
    sha256: str | None = None
    generator_seed: int | None = None


@dataclass
class VideoIndex:
    """The videos of a data set and the ones that cannot be read.

    Args:
        root: folder that relative paths start from.
        layout: how the data set lies on disk.
        videos: readable videos.
        bad: unreadable ones, name -> reason.
        complete: False while being made.
    """

    root: str
    layout: str
    videos: list[VideoEntry] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)
    complete: bool = False


def inspect_video(item: Located, *, verify: bool = False) -> VideoEntry:
    """Open one video and read its length, size and rate.

    Args:
        item: where it lies.
        verify: decode every frame and note the SHA-256 of the file.

    Raises:
        VosnetError: it cannot be read, or a frame cannot when verifying.
    """
    with open_video(item.path) as reader:
        entry = VideoEntry(item.name, str(item.path), len(reader), reader.size, float(reader.fps))
        if entry.num_frames < 1:
            raise InputError("E263", f"no frames in {item.path}")
        if verify:
            for _ in reader:
                pass
            if reader.bad_frames:
                count = len(reader.bad_frames)
                raise InputError("E263", f"{count} of {entry.num_frames} frames of {item.path} are broken")
    if verify and item.path.is_file():
        entry = replace(entry, sha256=sha256(item.path))
    return entry


def build_index(
    located: Sequence[Located],
    index: VideoIndex,
    *,
    verify: bool = False,
    convert: Callable[[VideoEntry], VideoEntry] | None = None,
    save: Callable[[VideoIndex], None] | None = None,
    save_every_s: float = 10.0,
    report: Callable[[str], None] | None = None,
) -> VideoIndex:
    """Inspect every video that `index` does not hold yet, in place.

    Args:
        located: all videos of the data set.
        index: a new one, or the unfinished one to continue.
        verify: see `inspect_video`.
        convert: applied to every readable video, such as the extraction of its frames.
        save: called with the unfinished index now and then and with the finished one.
        save_every_s: seconds between two saves.
        report: called with the name of every video that is done.

    Raises:
        StorageError: the disk is full or not writable; the index saved last is intact.
    """
    known = {entry.name for entry in index.videos} | set(index.bad)
    todo = [item for item in located if item.name not in known]
    saved_at = time.monotonic()
    for item in todo:
        try:
            entry = inspect_video(item, verify=verify)
            index.videos.append(convert(entry) if convert else entry)
        except StorageError:
            raise
        except (VosnetError, OSError) as error:
            index.bad[item.name] = str(error)
        if report:
            report(item.name)
        if save and time.monotonic() - saved_at > save_every_s:
            save(index)
            saved_at = time.monotonic()
    place = {item.name: position for position, item in enumerate(located)}
    index.videos = sorted((v for v in index.videos if v.name in place), key=lambda v: place[v.name])
    index.bad = {name: reason for name, reason in index.bad.items() if name in place}
    index.complete = True
    if save:
        save(index)
    return index


def write_index(path: str | Path, index: VideoIndex) -> None:
    """Write an index as JSON; paths below its root become relative, so that the data set can move."""
    root = Path(index.root)
    videos = []
    for entry in index.videos:
        row = {key: value for key, value in asdict(entry).items() if value is not None}
        place = Path(entry.path)
        row["path"] = place.relative_to(root).as_posix() if place.is_relative_to(root) else entry.path
        videos.append(row)
    head = {"version": INDEX_VERSION, "root": index.root, "layout": index.layout, "complete": index.complete}
    write_json(path, head | {"videos": videos, "bad": index.bad})


def read_index(path: str | Path, *, root: str | Path | None = None) -> VideoIndex:
    """Read an index written by `write_index`.

    Args:
        path: the JSON file.
        root: the data set's folder when it has moved since.

    Raises:
        InputError: no such file, no index, or an index of another version.
    """
    path = Path(path)
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if stored["version"] != INDEX_VERSION:
            raise InputError("E264", f"{path} has index version {stored['version']}, this program reads 1")
        base = Path(root or stored["root"])
        videos = [
            VideoEntry(**(row | {"path": str(base / row["path"]), "size": tuple(row["size"])}))
            for row in stored["videos"]
        ]
        return VideoIndex(str(base), stored["layout"], videos, dict(stored["bad"]), bool(stored["complete"]))
    except FileNotFoundError as error:
        raise InputError("E264", f"no index at {path}", "Make it with `vosnet prepare`.") from error
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        hint = "Make it again with `vosnet prepare`."
        raise InputError("E264", f"{path} is no data set index ({error!r})", hint) from error


def is_still(entry: VideoEntry) -> bool:
    """Whether the entry is a single picture, from which clips are made by moving the crop."""
    return entry.num_frames == 1 and is_image(Path(entry.path))
