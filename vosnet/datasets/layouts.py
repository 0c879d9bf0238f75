"""Where the videos of each data set lie on disk."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vosnet.errors import InputError
from vosnet.files import expand, natural_key
from vosnet.video.listing import is_image, is_video, walk_files

Layout = Literal["folder", "stills", "davis", "ytvos", "oxuva", "trackingnet", "kinetics"]
EXPECTED = {
    "folder": "video files or folders of frames, nested as you like",
    "stills": "image files, nested as you like",
    "davis": "JPEGImages/480p/SEQUENCE/00000.jpg and ImageSets/2017/train.txt",
    "ytvos": "train/JPEGImages/VIDEO/00000.jpg",
    "oxuva": "images/dev/VIDEO/000000.jpeg",
    "trackingnet": "TRAIN_0/frames/VIDEO/0.jpg and so on",
    "kinetics": "train/CLASS/VIDEO.mp4, or CLASS/VIDEO.mp4",
}


@dataclass(frozen=True)
class Located:
    """A video file, a folder of frames, or a still.

    Args:
        name: path below the root with forward slashes; unique within a data set.
        path: where it lies.
    """

    name: str
    path: Path


def find_videos(
    layout: Layout,
    root: str | Path,
    *,
    split: str | None = None,
    names: str | None = None,
    pattern: str = "*",
) -> list[Located]:
    """All videos of a data set in natural order.

    Args:
        layout: one of the keys of `EXPECTED`, which says what lies where.
        root: the data set's folder.
        split: for davis: a file below ImageSets without .txt, such as "2017/train"; for ytvos: "train"
            (every fifth raw frame, what DUL used) or "train_all_frames".
        names: a text file with one name per line, relative to `root`; only those are taken, in its order.
        pattern: only names that match, as in a shell ("davis_*.mp4").

    Raises:
        InputError: root, split or list are missing, a listed name is missing, or nothing was found.
    """
    folder = expand(root)
    if not folder.is_dir():
        raise InputError("E260", f"no data set at {folder}", f"Expected there: {EXPECTED[layout]}.")
    found = (
        _named(folder, names)
        if names
        else sorted(
            _FINDERS[layout](folder, split), key=lambda path: natural_key(path.relative_to(folder).as_posix())
        )
    )
    located = [Located(path.relative_to(folder).as_posix(), path) for path in found]
    chosen = [item for item in located if fnmatch.fnmatchcase(item.name, pattern)]
    if not chosen:
        detail = f" that matches {pattern!r}" if pattern != "*" and located else ""
        hint = f"Expected there: {EXPECTED[layout]}."
        raise InputError("E261", f"no video in {folder}{detail} (layout {layout})", hint)
    return chosen


def listed_names(listing: str | Path) -> list[str]:
    """The lines of a text file without blanks and comments (#).

    Raises:
        InputError: no such file.
    """
    path = expand(listing)
    if not path.is_file():
        raise InputError("E262", f"no list of videos at {path}")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _named(root: Path, names: str) -> list[Path]:
    paths = [root / name for name in listed_names(names)]
    missing = [path for path in paths if not path.exists()]
    if missing:
        message = f"{len(missing)} of {len(paths)} videos listed in {names} are missing, first {missing[0]}"
        raise InputError("E262", message)
    return paths


def _any_video(root: Path, split: str | None) -> list[Path]:
    files = list(walk_files(root, follow_links=True))
    videos = list(filter(is_video, files))
    frame_folders = {path.parent for path in files if is_image(path)} - {root}
    return videos + list(frame_folders)


def _stills(root: Path, split: str | None) -> list[Path]:
    return list(filter(is_image, walk_files(root, follow_links=True)))


def _davis(root: Path, split: str | None) -> list[Path]:
    frames = root / "JPEGImages" / "480p"
    listing = root / "ImageSets" / f"{split or '2017/train'}.txt"
    if not listing.is_file():
        raise InputError("E262", f"no split at {listing}", "Name one of ImageSets, such as 2017/train.")
    lines = [line.split() for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    # DAVIS-2016 lists pairs of frame and mask, one line per frame; DAVIS-2017 one sequence per line
    sequences = dict.fromkeys(Path(line[0]).parent.name if "/" in line[0] else line[0] for line in lines)
    return [frames / name for name in sequences]


def _folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []


def _ytvos(root: Path, split: str | None) -> list[Path]:
    name = split or "train"
    nested = root / name / "JPEGImages"
    return _folders(nested if nested.is_dir() or root.name != name else root / "JPEGImages")


def _oxuva(root: Path, split: str | None) -> list[Path]:
    return [
        video for part in _folders(root / "images") for video in _folders(part) if split in {None, part.name}
    ]


def _trackingnet(root: Path, split: str | None) -> list[Path]:
    parts = [part for part in _folders(root) if part.name.startswith(split or "TRAIN")]
    return [video for part in parts for video in _folders(part / "frames")]


def _kinetics(root: Path, split: str | None) -> list[Path]:
    base = root / (split or "train")
    return list(filter(is_video, walk_files(base if base.is_dir() else root, follow_links=True)))


_FINDERS: dict[str, Callable[[Path, str | None], list[Path]]] = {
    "folder": _any_video,
    "stills": _stills,
    "davis": _davis,
    "ytvos": _ytvos,
    "oxuva": _oxuva,
    "trackingnet": _trackingnet,
    "kinetics": _kinetics,
}
