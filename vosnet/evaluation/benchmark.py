"""What evaluation asks of a data set, the same for DAVIS and YouTube-VOS."""

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
from vosnet.evaluation.results import ScoringTask, davis_task, youtube_vos_task
from vosnet.files import expand, inside
from vosnet.masks import object_ids, read_mask
from vosnet.metrics.summary import VOID

DatasetName = Literal["davis", "ytvos"]


@dataclass(frozen=True)
class Wanted:
    """What a result must hold for one sequence.

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
    def task(self, name: str, results: Path, *, allow_missing: bool = False) -> ScoringTask:
        """How to score `results / name`."""

    def seen(self, keys: Sequence[str]) -> dict[str, bool] | None:
        """Whether the category of each object ("<sequence>_<id>") occurs in training; None if no matter."""
        return None

    def wanted(self, name: str) -> Wanted:
        """What a submission must hold for a sequence."""
        masks = list(self.given(name).values())
        ids = frozenset(index for mask in masks for index in object_ids(mask))
        return Wanted(self.asked(name), (masks[0].shape[0], masks[0].shape[1]), ids)

    def pictures(self, name: str, stem: str, results: Path) -> tuple[Path, Path, Path]:
        """Files of a frame, of its result and of its annotation."""
        frame = next(path for path in self.frames(name) if path.stem == stem)
        annotation = next(path for path in self.annotations(name) if path.stem == stem)
        return frame, inside(results, name) / f"{stem}.png", annotation


class DavisBenchmark(Benchmark):
    """A DAVIS split, scored by the rules of davis2017-evaluation."""

    prefix = ""

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        annotations: Sequence[str | os.PathLike[str]] | None = None,
    ) -> None:
        self._root = DavisRoot(root, annotations)
        self.names = self._root.split(split)
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
        return tuple(path.stem for path in self.frames(name))

    def task(self, name: str, results: Path, *, allow_missing: bool = False) -> ScoringTask:
        return davis_task(self._sequence(name), inside(results, name), allow_missing=allow_missing)


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

    def task(self, name: str, results: Path, *, allow_missing: bool = False) -> ScoringTask:
        return youtube_vos_task(self._video(name), inside(results, name), allow_missing=allow_missing)

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
