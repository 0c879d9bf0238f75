"""YouTube-VOS on disk: meta.json, objects that appear later, and the frames that are asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vosnet.errors import InputError, UsageError
from vosnet.evaluation.benchmark import AnnotatedVideo, Benchmark, list_images, stems_of
from vosnet.evaluation.results import Truth
from vosnet.files import expand, inside, natural_key
from vosnet.masks import read_mask
from vosnet.masks.labels import Mask


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
class Video(AnnotatedVideo):
    """One video of YouTube-VOS; a validation set annotates only frames where objects appear.

    Attributes:
        objects: by id.
    """

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


class YouTubeVosBenchmark(Benchmark):
    """One split of YouTube-VOS: `meta.json`, `JPEGImages/<video>/*.jpg`, `Annotations/<video>/*.png`.

    Args:
        root: the folder of all splits, or of one.
        split: "valid", "train" or another folder of `root`; or a file that lists videos of `root` itself, one
            a line.
        train_meta: meta.json of the training set, whose categories are the seen ones; by default the one in
            `train` beside the split.
        all_frames: read frames from `<split>_all_frames` where that exists: what lies between the annotated
            frames helps propagation.

    Raises:
        UsageError: `split` is neither a folder nor a file (E141).
        InputError: something is missing (E230, E232), or meta.json is not understood (E231).
    """

    prefix = "Annotations/"
    sequence: Callable[[str], Video]

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        train_meta: str | os.PathLike[str] | None = None,
        *,
        all_frames: bool = True,
    ) -> None:
        base, listed = expand(root), None
        if expand(split).is_file():
            listed = [line.strip() for line in expand(split).read_text(encoding="utf-8").splitlines()]
        elif (base / split / "meta.json").is_file():
            base /= split
        elif base.name != split:
            raise UsageError("E141", f"no split {split!r}: no such file, no meta.json in {base / split}")
        if not (base / "meta.json").is_file():
            raise InputError("E230", f"no YouTube-VOS split at {base}: it has no meta.json")
        self.root, self.split = base, Path(split).stem
        self.objects = read_meta(base / "meta.json")
        if listed is not None:
            chosen = [name for name in listed if name and not name.startswith("#")]
            unknown = [name for name in chosen if name not in self.objects]
            if unknown:
                raise InputError(
                    "E232", f"videos listed in {split} but not in meta.json: {', '.join(unknown[:5])}"
                )
            self.objects = {name: self.objects[name] for name in chosen}
        self.names = list(self.objects)
        self._train_meta = expand(train_meta) if train_meta else base.parent / "train" / "meta.json"
        more = base.parent / f"{base.name}_all_frames" / "JPEGImages"
        self._frames = more if all_frames and more.is_dir() else base / "JPEGImages"
        self.sequence = cache(self._video)

    def given(self, name: str) -> dict[str, Mask]:
        video = self.sequence(name)
        paths = {path.stem: path for path in video.annotations}
        masks = {}
        for stem, ids in video.appearing.items():
            mask = read_mask(paths[stem]).ids
            masks[stem] = np.where(np.isin(mask, ids), mask, np.uint8(0))
        return masks

    def asked(self, name: str) -> tuple[str, ...]:
        return self.sequence(name).asked

    def truth(self, name: str) -> Truth:
        video = self.sequence(name)
        annotations = {path.stem: path for path in video.annotations}
        missing = [stem for stem in video.asked if stem not in annotations]
        if missing:
            raise InputError(
                "E234",
                f"video {name}: {len(missing)} of {len(video.asked)} frames asked for are not annotated",
                "Only the official server can score it: build a zip with --submission.",
            )
        return Truth(
            name,
            video.asked,
            tuple(annotations[stem] for stem in video.asked),
            frozenset(stems_of(video.frames)),
            {index: video.asked.index(item.frames[0]) for index, item in video.objects.items()},
        )

    def seen(self, keys: Sequence[str]) -> dict[str, bool] | None:
        if not self._train_meta.is_file():
            raise InputError(
                "E230",
                f"no {self._train_meta}: it says which categories are seen in training",
                "Name the training set's meta.json with --train-meta.",
            )
        meta = read_meta(self._train_meta)
        known = {item.category for objects in meta.values() for item in objects.values()}
        split = [key.rpartition("_") for key in keys]
        return {
            f"{name}_{index}": self.objects[name][int(index)].category in known for name, _, index in split
        }

    def _video(self, name: str) -> Video:
        if name not in self.objects:
            raise InputError("E232", f"video {name!r} is not in {self.root / 'meta.json'}")
        folders = inside(self._frames, name), inside(self.root / "Annotations", name)
        frames, annotations = (list_images(folder) if folder.is_dir() else () for folder in folders)
        video = Video(name, frames, annotations, self.objects[name])
        missing = set(video.asked) - set(stems_of(frames))
        unmarked = set(video.appearing) - set(stems_of(annotations))
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
