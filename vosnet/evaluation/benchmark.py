"""Data sets with truth: what a method is given, what is asked for, and what it is scored against."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from vosnet.errors import InputError
from vosnet.evaluation import youtube_vos
from vosnet.evaluation.davis import DavisRoot
from vosnet.evaluation.results import Truth
from vosnet.files import expand, inside
from vosnet.masks import object_ids, read_mask
from vosnet.metrics.summary import VOID

DatasetName = Literal["davis", "ytvos"]


@dataclass(frozen=True)
class ExpectedMasks:
    """What a submission must hold for one sequence.

    Attributes:
        stems: frames whose masks are asked for, in order.
        size: (H, W) of the masks.
        ids: object ids that may occur.
    """

    stems: tuple[str, ...]
    size: tuple[int, int]
    ids: frozenset[int]


class Benchmark(ABC):
    """A split of a data set: what is given, what is asked for, how it is scored.

    Attributes:
        names: sequences in the order of the split.
        split: short name for files.
        prefix: folder inside a submission zip.
    """

    names: list[str]
    split: str
    prefix: str

    @abstractmethod
    def frames(self, name: str) -> tuple[Path, ...]:
        """Every frame of a sequence, in order."""

    @abstractmethod
    def annotations(self, name: str) -> tuple[Path, ...]:
        """Annotated frames of a sequence, in order."""

    @abstractmethod
    def given(self, name: str) -> dict[str, npt.NDArray[np.uint8]]:
        """Masks that a method may see: object ids [H, W] by frame stem, each object in its first frame."""

    @abstractmethod
    def asked(self, name: str) -> tuple[str, ...]:
        """Stems of the frames whose masks are asked for, in order."""

    @abstractmethod
    def truth(self, name: str) -> Truth:
        """What a result of the sequence is scored against.

        Raises:
            InputError: too few frames are annotated, as in the test sets (E234).
        """

    def seen(self, keys: Sequence[str]) -> dict[str, bool] | None:
        """Whether the category of each object ("<sequence>_<id>") occurs in training; None for DAVIS."""
        return None

    def expected(self, name: str) -> ExpectedMasks:
        """What a submission must hold for a sequence."""
        masks = list(self.given(name).values())
        ids = frozenset(index for mask in masks for index in object_ids(mask))
        return ExpectedMasks(self.asked(name), (masks[0].shape[0], masks[0].shape[1]), ids)

    def pictures(self, name: str, stem: str, results: Path) -> tuple[Path, Path, Path]:
        """Files of a frame, of its result and of its annotation."""
        frame = next(path for path in self.frames(name) if path.stem == stem)
        annotation = next(path for path in self.annotations(name) if path.stem == stem)
        return frame, inside(results, name) / f"{stem}.png", annotation


class DavisBenchmark(Benchmark):
    """A DAVIS split, scored by the rules of davis2017-evaluation.

    Args:
        root: see `DavisRoot`.
        split: see `DavisRoot.split`.
        annotations: see `DavisRoot`.
        names: these sequences instead of the split's.
    """

    prefix = ""

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        annotations: Sequence[str | os.PathLike[str]] | None = None,
        *,
        names: Sequence[str] = (),
    ) -> None:
        self._root = DavisRoot(root, annotations)
        self.names = list(names) or self._root.split(split)
        self.split = Path(split).stem
        self._sequence = lru_cache(maxsize=None)(self._root.sequence)

    def frames(self, name: str) -> tuple[Path, ...]:
        return self._sequence(name).frames

    def annotations(self, name: str) -> tuple[Path, ...]:
        return self._sequence(name).annotations

    def given(self, name: str) -> dict[str, npt.NDArray[np.uint8]]:
        first = self.annotations(name)[0]
        mask = read_mask(first).ids
        return {first.stem: np.where(mask == VOID, np.uint8(0), mask)}

    def asked(self, name: str) -> tuple[str, ...]:
        return _stems(self.frames(name))

    def truth(self, name: str) -> Truth:
        paths, frames = self.annotations(name), self.frames(name)
        if len(paths) < 3:
            raise InputError(
                "E234",
                f"sequence {name}: {len(paths)} of {len(frames)} frames are annotated; "
                "the first and the last do not count",
                "For a test set build a zip with --submission.",
            )
        return Truth(name, _stems(paths), paths, frozenset(_stems(frames)))


class YouTubeVosBenchmark(Benchmark):
    """A YouTube-VOS split.

    Args:
        root: see `YouTubeVosRoot`.
        split: see `YouTubeVosRoot`.
        train_meta: meta.json of the training set, whose categories are the seen ones; by default the one in
            `train` beside the split.
    """

    prefix = "Annotations/"

    def __init__(
        self, root: str | os.PathLike[str], split: str, train_meta: str | os.PathLike[str] | None = None
    ) -> None:
        self._root = youtube_vos.YouTubeVosRoot(root, split)
        self.names = self._root.videos
        self.split = Path(split).stem
        self._train_meta = (
            expand(train_meta) if train_meta else self._root.root.parent / "train" / "meta.json"
        )
        self._video = lru_cache(maxsize=None)(self._root.video)

    def frames(self, name: str) -> tuple[Path, ...]:
        return self._video(name).frames

    def annotations(self, name: str) -> tuple[Path, ...]:
        return self._video(name).annotations

    def given(self, name: str) -> dict[str, npt.NDArray[np.uint8]]:
        video = self._video(name)
        paths = {path.stem: path for path in video.annotations}
        masks = {}
        for stem, ids in video.appearing.items():
            mask = read_mask(paths[stem]).ids
            masks[stem] = np.where(np.isin(mask, ids), mask, np.uint8(0))
        return masks

    def asked(self, name: str) -> tuple[str, ...]:
        return self._video(name).asked

    def truth(self, name: str) -> Truth:
        video = self._video(name)
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
            frozenset(_stems(video.frames)),
            {index: video.asked.index(item.frames[0]) for index, item in video.objects.items()},
        )

    def seen(self, keys: Sequence[str]) -> dict[str, bool] | None:
        if not self._train_meta.is_file():
            raise InputError(
                "E230",
                f"no {self._train_meta}: it says which categories are seen in training",
                "Name the training set's meta.json with --train-meta.",
            )
        meta = youtube_vos.read_meta(self._train_meta)
        known = {item.category for objects in meta.values() for item in objects.values()}
        split = [key.rpartition("_") for key in keys]
        return {
            f"{name}_{index}": self._root.objects[name][int(index)].category in known
            for name, _, index in split
        }


def open_benchmark(
    dataset: DatasetName,
    root: str | os.PathLike[str],
    split: str,
    *,
    annotations: Sequence[str | os.PathLike[str]] | None = None,
    train_meta: str | os.PathLike[str] | None = None,
) -> Benchmark:
    """The split of a data set.

    Args:
        dataset: its layout.
        root: its folder.
        split: a name or a file.
        annotations: for DAVIS, see `DavisRoot`.
        train_meta: for YouTube-VOS, see `YouTubeVosBenchmark`.
    """
    if dataset == "ytvos":
        return YouTubeVosBenchmark(root, split, train_meta)
    return DavisBenchmark(root, split, annotations)


def _stems(paths: Sequence[Path]) -> tuple[str, ...]:
    return tuple(path.stem for path in paths)
