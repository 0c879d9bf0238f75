"""DAVIS-2016 and DAVIS-2017: splits, frames and annotations on disk, scored as davis2017-evaluation does."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from vosnet.errors import InputError, UsageError
from vosnet.evaluation.benchmark import AnnotatedVideo, Benchmark, list_images, stems_of
from vosnet.evaluation.results import Truth
from vosnet.files import expand, inside
from vosnet.masks import read_mask
from vosnet.masks.labels import Mask
from vosnet.metrics.summary import VOID
from vosnet.video.listing import is_image

_RESOLUTIONS = ("480p", "Full-Resolution", "")


class DavisBenchmark(Benchmark):
    """A folder with `JPEGImages/480p/<seq>/*.jpg`, `Annotations/480p/<seq>/*.png`, `ImageSets/**/NAME.txt`.

    Args:
        root: the data set's folder. `Full-Resolution` instead of `480p`, or neither, is found too.
        split: a file, or NAME for `ImageSets/**/NAME.txt` ("2016/val" where "val" alone is found twice). A
            line is a sequence, or a pair "/JPEGImages/480p/SEQ/00000.jpg /Annotations/..." as DAVIS-2016 has
            them; empty lines, repeats, and what follows a # are skipped.
        annotations: folders searched for a sequence's annotation, the first that has it wins; by default
            `Annotations` below `root`. Relative ones are looked for below `root` first.
        names: these sequences instead of the split's.

    Raises:
        UsageError: no such split, or several of that name (E141).
        InputError: `root`, its frames, or an annotation folder are missing (E230); the split is not text,
            names no sequence (E231), or an unsafe name (E205).
    """

    prefix = ""

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str | os.PathLike[str],
        annotations: Sequence[str | os.PathLike[str]] = (),
        *,
        names: Sequence[str] = (),
    ) -> None:
        self.root = expand(root)
        if not (self.root / "JPEGImages").is_dir():
            raise InputError(
                "E230",
                f"no DAVIS data set at {self.root}",
                "Expected there: JPEGImages/480p/SEQUENCE/00000.jpg and Annotations/480p/SEQUENCE/00000.png.",
            )
        self._annotations = [self._annotation_folder(folder) for folder in annotations or ["Annotations"]]
        self.names = list(names) or self._split_names(os.fspath(split))
        self.split = Path(split).stem
        self.sequence = cache(self._sequence)

    def given(self, name: str) -> dict[str, Mask]:
        first = self.annotations(name)[0]
        mask = read_mask(first).ids
        return {first.stem: np.where(mask == VOID, np.uint8(0), mask)}

    def asked(self, name: str) -> tuple[str, ...]:
        return stems_of(self.frames(name))

    def truth(self, name: str) -> Truth:
        paths = self.annotations(name)
        return Truth(name, stems_of(paths), paths, frozenset(self.asked(name)))

    def _split_names(self, split: str) -> list[str]:
        path = self._split_file(split)
        try:
            lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except UnicodeDecodeError as error:
            raise InputError("E231", f"split {path} is not a text file") from error
        names = list(dict.fromkeys(_sequence_name(line) for line in lines if line))
        if not names:
            raise InputError("E231", f"split {path} names no sequence")
        for name in names:
            inside(self.root, name)
        return names

    def _sequence(self, name: str) -> AnnotatedVideo:
        frames = list_images(self._find([self.root / "JPEGImages"], name, "frames"))
        annotations = list_images(self._find(self._annotations, name, "annotations"))
        stems = stems_of(frames)
        orphans = [path.name for path in annotations if path.stem not in stems]
        if not frames or not annotations or orphans:
            what = f"annotations without a frame: {', '.join(orphans[:5])}" if orphans else "no image"
            raise InputError("E232", f"sequence {name} in {self.root} is incomplete: {what}")
        return AnnotatedVideo(name, frames, annotations)

    def _annotation_folder(self, folder: str | os.PathLike[str]) -> Path:
        given = expand(folder)
        for candidate in (self.root / given, given):
            if candidate.is_dir():
                return candidate
        raise InputError("E230", f"no annotation folder {given} below {self.root} or elsewhere")

    def _split_file(self, name: str) -> Path:
        if expand(name).is_file():
            return expand(name)
        sets = self.root / "ImageSets"
        known = sorted(path.relative_to(sets).with_suffix("").as_posix() for path in sets.rglob("*.txt"))
        found = [known_name for known_name in known if f"/{known_name}".endswith(f"/{name}")]
        if len(found) == 1 or name in found:
            return sets / f"{name if name in found else found[0]}.txt"
        if found:
            raise UsageError("E141", f"split {name!r} is found {len(found)} times", f"Name one of {found}.")
        raise UsageError(
            "E141",
            f"no split {name!r}: neither a file nor in {sets}",
            f"Known there: {', '.join(known) or 'none'}.",
        )

    def _find(self, bases: Sequence[Path], name: str, what: str) -> Path:
        folders = [base / resolution for base in bases for resolution in _RESOLUTIONS]
        for folder in folders:
            if (found := inside(folder, name)).is_dir():
                return found
        there = [path.name for folder in folders if folder.is_dir() for path in folder.iterdir()]
        close = difflib.get_close_matches(name, there, 3)
        hint = f"Did you mean {' or '.join(close)}?" if close else ""
        raise InputError("E232", f"no {what} of sequence {name!r} in {', '.join(map(str, bases))}", hint)


def _sequence_name(line: str) -> str:
    first = Path(line.split(maxsplit=1)[0])
    return first.parent.name if is_image(first) else line.rstrip("/")
