"""Data sets with truth: what a method is given, what is asked for, and what it is scored against."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vosnet.evaluation.results import Truth
from vosnet.files import inside, natural_key
from vosnet.masks import object_ids
from vosnet.masks.labels import Mask
from vosnet.video.listing import is_image


@dataclass(frozen=True)
class AnnotatedVideo:
    """One video of a data set.

    Attributes:
        name: folder name.
        frames: every frame in natural order.
        annotations: annotated frames in natural order; stems as in `frames`, but they may be fewer.
    """

    name: str
    frames: tuple[Path, ...]
    annotations: tuple[Path, ...]


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
        sequence: frames and annotations of a sequence by its name. It raises an `InputError` when the name is
            unsafe or unknown, or when frames or annotations are missing (E205, E232).
    """

    names: list[str]
    split: str
    prefix: str
    sequence: Callable[[str], AnnotatedVideo]

    @abstractmethod
    def given(self, name: str) -> dict[str, Mask]:
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

    def frames(self, name: str) -> tuple[Path, ...]:
        """Every frame of a sequence, in order."""
        return self.sequence(name).frames

    def annotations(self, name: str) -> tuple[Path, ...]:
        """Annotated frames of a sequence, in order."""
        return self.sequence(name).annotations

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


def list_images(folder: Path) -> tuple[Path, ...]:
    """The pictures of a folder in natural order."""
    return tuple(sorted(filter(is_image, folder.iterdir()), key=lambda path: natural_key(path.name)))


def stems_of(paths: Sequence[Path]) -> tuple[str, ...]:
    """Their names without suffix."""
    return tuple(path.stem for path in paths)
