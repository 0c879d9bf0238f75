"""DAVIS-2016 and DAVIS-2017 on disk: splits, frames, annotations."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path

from vosnet.errors import InputError, UsageError
from vosnet.files import expand, inside, natural_key
from vosnet.video.listing import is_image

_RESOLUTIONS = ("480p", "Full-Resolution", "")


@dataclass(frozen=True)
class Sequence:
    """One annotated video of a data set.

    Attributes:
        name: folder name.
        frames: every frame in natural order.
        annotations: annotated frames in natural order; stems as in `frames`, but they may be fewer.
    """

    name: str
    frames: tuple[Path, ...]
    annotations: tuple[Path, ...]


class DavisRoot:
    """A folder with `JPEGImages/480p/<seq>/*.jpg`, `Annotations/480p/<seq>/*.png`, `ImageSets/**/NAME.txt`.

    Args:
        root: the data set's folder. `Full-Resolution` instead of `480p`, or neither, is found too.
        annotations: folders searched for a sequence's annotation, the first that has it wins; by default
            `Annotations` below `root`. Relative ones are looked for below `root` first.

    Raises:
        InputError: `root`, its frames, or an annotation folder are missing.
    """

    def __init__(
        self, root: str | os.PathLike[str], annotations: Many[str | os.PathLike[str]] | None = None
    ) -> None:
        self.root = expand(root)
        if not (self.root / "JPEGImages").is_dir():
            raise InputError(
                "E230",
                f"no DAVIS data set at {self.root}",
                "Expected there: JPEGImages/480p/SEQUENCE/00000.jpg and Annotations/480p/SEQUENCE/00000.png.",
            )
        self._annotations = [self._annotation_folder(folder) for folder in annotations or ["Annotations"]]

    def split(self, name_or_file: str | os.PathLike[str]) -> list[str]:
        """Sequence names of a split, in the order of its file and without repeats.

        Args:
            name_or_file: a file, or NAME for `ImageSets/**/NAME.txt` ("2016/val" where "val" alone is found
                twice). A line is a sequence, or a pair "/JPEGImages/480p/SEQ/00000.jpg /Annotations/..." as
                DAVIS-2016 has them; empty lines and those from # on are skipped.

        Raises:
            UsageError: no such split, or several of that name.
            InputError: the file is not text, names no sequence, or an unsafe name.
        """
        path = self._split_file(os.fspath(name_or_file))
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

    def sequence(self, name: str) -> Sequence:
        """Frames and annotations of one sequence.

        Raises:
            InputError: unsafe name, no such sequence, no frame, or an annotation without its frame.
        """
        frames = _images(self._find([self.root / "JPEGImages"], name, "frames"))
        annotations = _images(self._find(self._annotations, name, "annotations"))
        stems = {path.stem for path in frames}
        orphans = [path.name for path in annotations if path.stem not in stems]
        if not frames or not annotations or orphans:
            what = f"annotations without a frame: {', '.join(orphans[:5])}" if orphans else "no image"
            raise InputError("E232", f"sequence {name} in {self.root} is incomplete: {what}")
        return Sequence(name, frames, annotations)

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

    def _find(self, bases: Many[Path], name: str, what: str) -> Path:
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


def _images(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(filter(is_image, folder.iterdir()), key=lambda path: natural_key(path.name)))
