"""YouTube-VOS on disk: meta.json, objects that appear later, and the frames that are asked for."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vosnet.errors import InputError, UsageError
from vosnet.files import expand, inside, natural_key
from vosnet.video.listing import is_image


@dataclass(frozen=True)
class VideoObject:
    """One object of a video.

    Attributes:
        category: what it is, such as "penguin".
        frames: stems of the frames in which the data set asks for it, in order; the first is annotated.
    """

    category: str
    frames: tuple[str, ...]


@dataclass(frozen=True)
class Video:
    """One video of YouTube-VOS.

    Attributes:
        name: folder name.
        frames: every frame there is, in natural order; all of them should be processed.
        annotations: annotated frames in natural order: of a validation set only where objects appear.
        objects: by id.
    """

    name: str
    frames: tuple[Path, ...]
    annotations: tuple[Path, ...]
    objects: dict[int, VideoObject]

    @property
    def asked(self) -> tuple[str, ...]:
        """Stems of the frames whose masks a submission must hold, in order."""
        stems = {stem for item in self.objects.values() for stem in item.frames}
        return tuple(sorted(stems, key=natural_key))

    @property
    def appearing(self) -> dict[str, list[int]]:
        """Ids of the objects that first appear in a frame, by the frame's stem, in order of frames."""
        first: dict[str, list[int]] = {}
        for index, item in sorted(self.objects.items()):
            first.setdefault(item.frames[0], []).append(index)
        return dict(sorted(first.items(), key=lambda pair: natural_key(pair[0])))


class YouTubeVosRoot:
    """One split of YouTube-VOS: `meta.json`, `JPEGImages/<video>/*.jpg`, `Annotations/<video>/*.png`.

    Args:
        root: the folder of all splits, or of one.
        split: "valid", "train" or another folder of `root`; or a file that lists videos, one per line, of
            `root` itself.
        all_frames: read frames from `<split>_all_frames` where that exists: what lies between the annotated
            frames helps propagation.

    Raises:
        UsageError: `split` is neither a folder nor a file.
        InputError: something is missing, or meta.json is not understood.
    """

    def __init__(self, root: str | os.PathLike[str], split: str, *, all_frames: bool = True) -> None:
        base, listed = expand(root), None
        if expand(split).is_file():
            listed = [line.strip() for line in expand(split).read_text(encoding="utf-8").splitlines()]
        elif (base / split / "meta.json").is_file():
            base /= split
        elif base.name != split:
            raise UsageError("E141", f"no split {split!r}: no such file, no meta.json in {base / split}")
        if not (base / "meta.json").is_file():
            raise InputError("E230", f"no YouTube-VOS split at {base}: it has no meta.json")
        self.root = base
        self.objects = read_meta(base / "meta.json")
        if listed is not None:
            wanted = [name for name in listed if name and not name.startswith("#")]
            unknown = [name for name in wanted if name not in self.objects]
            if unknown:
                raise InputError(
                    "E232", f"videos listed in {split} but not in meta.json: {', '.join(unknown[:5])}"
                )
            self.objects = {name: self.objects[name] for name in wanted}
        more = base.parent / f"{base.name}_all_frames" / "JPEGImages"
        self._frames = more if all_frames and more.is_dir() else base / "JPEGImages"

    @property
    def videos(self) -> list[str]:
        """Names of the split's videos, in the order of meta.json or of the list."""
        return list(self.objects)

    @cached_property
    def categories(self) -> set[str]:
        """Categories of the split's objects."""
        return {item.category for video in self.objects.values() for item in video.values()}

    def video(self, name: str) -> Video:
        """Frames, annotations and objects of one video.

        Raises:
            InputError: unsafe or unknown name, missing frames, or no annotation where an object appears.
        """
        if name not in self.objects:
            raise InputError("E232", f"video {name!r} is not in {self.root / 'meta.json'}")
        frames = _images(inside(self._frames, name))
        annotations = _images(inside(self.root / "Annotations", name))
        video = Video(name, frames, annotations, self.objects[name])
        missing = set(video.asked) - {path.stem for path in frames}
        unmarked = set(video.appearing) - {path.stem for path in annotations}
        if missing or unmarked:
            what, stems = ("frames", missing) if missing else ("first annotations", unmarked)
            shown = ", ".join(sorted(stems, key=natural_key)[:5])
            raise InputError("E232", f"video {name} in {self.root} lacks {what}: {shown}")
        return video


def read_meta(path: Path) -> dict[str, dict[int, VideoObject]]:
    """Objects of each video as meta.json lists them.

    Raises:
        InputError: not JSON, or not {"videos": {name: {"objects": {id: {"category", "frames"}}}}}.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        return {name: _objects(video["objects"]) for name, video in content["videos"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "E231",
            f"{path} is not understood ({type(error).__name__}: {error})",
            'Expected {"videos": {NAME: {"objects": {ID: {"category": ..., "frames": [...]}}}}}.',
        ) from error


def _objects(entries: dict[str, Any]) -> dict[int, VideoObject]:
    objects = {}
    for key, entry in entries.items():
        stems = [str(stem) for stem in entry["frames"]]
        if not stems or not 1 <= int(key) <= 255:
            raise ValueError(f"object {key!r} has no frame, or an id outside 1..255")
        stems.sort(key=natural_key)
        objects[int(key)] = VideoObject(str(entry.get("category", "")), tuple(stems))
    return objects


def _images(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        return ()
    return tuple(sorted(filter(is_image, folder.iterdir()), key=lambda path: natural_key(path.name)))
