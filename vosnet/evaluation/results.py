"""Scores of one sequence: masks on disk or in memory against its annotations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vosnet.errors import InputError
from vosnet.files import natural_key
from vosnet.masks import object_ids, read_label_map, read_mask
from vosnet.masks.labels import Mask
from vosnet.metrics import ObjectScores, annotated_objects, score_frames
from vosnet.metrics.summary import VOID

_JUNK = {"Thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class Truth:
    """What one sequence is scored against; small, so that it travels to another process.

    Attributes:
        name: of the sequence.
        stems: annotated frames in order.
        annotations: the mask of each, or the file it is read from when needed.
        frames: stems of all frames of the sequence: a result for another one is extra.
        starts: object id -> index into `stems` of its first frame (YouTube-VOS). None is the DAVIS rule: the
            objects of the first annotation, the first and the last frame not counted.

    Raises:
        InputError: by the DAVIS rule no frame counts (E234).
    """

    name: str
    stems: tuple[str, ...]
    annotations: tuple[Path | Mask, ...]
    frames: frozenset[str]
    starts: dict[int, int] | None = None

    def __post_init__(self) -> None:
        if not self.counted:
            raise InputError(
                "E234",
                f"sequence {self.name}: {len(self.stems)} of {len(self.frames)} frames are annotated; "
                "the first and the last do not count",
                "For a test set build a zip with --submission.",
            )

    def mask(self, place: int) -> Mask:
        """The annotation at `place`, [H, W]; void (255) is background.

        Raises:
            InputError: the file cannot be read.
        """
        annotation = self.annotations[place]
        ids = read_mask(annotation).ids if isinstance(annotation, Path) else annotation
        return np.where(ids == VOID, np.uint8(0), ids)

    @property
    def objects(self) -> list[int]:
        """Ids that are scored.

        Raises:
            InputError: the first annotation cannot be read.
        """
        return annotated_objects(self.mask(0)) if self.starts is None else sorted(self.starts)

    @property
    def counted(self) -> range:
        """Places of the frames that count."""
        return range(1, len(self.stems) - 1) if self.starts is None else range(len(self.stems))


@dataclass(frozen=True)
class SequenceResult:
    """Scores of one sequence, or the problems that forbid them.

    Attributes:
        name: of the sequence.
        problems: everything wrong with its result; the scores are worthless unless this is empty.
        scores: by object id.
        stems: by object id, the frames its scores belong to.
        missing: frames that scored 0 because the result lacks them.
    """

    name: str
    problems: tuple[str, ...] = ()
    scores: dict[int, ObjectScores] = field(default_factory=dict)
    stems: dict[int, tuple[str, ...]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


def score_masks(truth: Truth, predicted: Iterable[tuple[str, Mask]]) -> SequenceResult:
    """Score masks as they are made.

    Args:
        truth: the annotations.
        predicted: (stem, ids [H, W]) of the frames; those without an annotation are skipped. A frame without
            a mask scores 0 and is listed as missing.
    """
    places = {stem: place for place, stem in enumerate(truth.stems)}
    came: set[str] = set()

    def pairs() -> Iterator[tuple[int, Mask, Mask]]:
        for stem, mask in predicted:
            if stem in places:
                came.add(stem)
                yield places[stem], mask, truth.mask(places[stem])

    objects = truth.objects
    if not objects:
        return SequenceResult(truth.name, (_no_object(truth),))
    result = _score(truth, objects, pairs())
    return SequenceResult(
        truth.name, (), result.scores, result.stems, tuple(stem for stem in truth.stems if stem not in came)
    )


def score_folder(truth: Truth, folder: Path, *, allow_missing: bool = False) -> SequenceResult:
    """Check every frame of a result on disk and score it; problems are collected, not raised.

    Differs: the official DAVIS tool never opens the first and the last frame, which do not count; here they
    must exist and be valid, because a result without them is incomplete.

    Args:
        truth: the annotations.
        folder: one PNG per frame.
        allow_missing: a missing frame scores 0 instead of being a problem.
    """
    if not folder.is_dir() and not allow_missing:
        return SequenceResult(truth.name, (f"{truth.name}: no folder {folder}",))
    problems, missing = _check_names(truth, folder, allow_missing=allow_missing)
    try:
        objects = truth.objects
    except InputError as error:
        return SequenceResult(truth.name, (*problems, f"{truth.name}: {error}"))
    if not objects:
        return SequenceResult(truth.name, (*problems, _no_object(truth)))
    wrong: dict[str, list[str]] = {}
    result = _score(truth, objects, _checked_frames(truth, folder, objects, set(missing), wrong))
    problems += [f"{truth.name}: {what} in {_shortened(truth, stems)}" for what, stems in wrong.items()]
    if problems:
        return SequenceResult(truth.name, tuple(problems))
    return SequenceResult(truth.name, (), result.scores, result.stems, tuple(missing))


def _no_object(truth: Truth) -> str:
    return f"{truth.name}: no object in its first annotation"


def _check_names(truth: Truth, folder: Path, *, allow_missing: bool) -> tuple[list[str], list[str]]:
    """Problems with the set of files, and the stems that are missing."""
    listing = folder.iterdir() if folder.is_dir() else ()
    files = [path for path in listing if not path.name.startswith(".") and path.name not in _JUNK]
    have = {path.stem for path in files if path.suffix == ".png" and path.is_file()}
    odd = [path.name for path in files if path.suffix != ".png" or not path.is_file()]
    extra = [f"{stem}.png" for stem in have - truth.frames]
    missing = [stem for stem in truth.stems if stem not in have]
    problems = []
    for what, names in (("extra", extra), ("not a PNG", odd)):
        if names:
            listed = ", ".join(sorted(names, key=natural_key))
            problems.append(f"{truth.name}: {what} ({len(names)}): {listed}")
    if missing and not allow_missing:
        problems.append(f"{truth.name}: no result for {_shortened(truth, missing)}")
    return problems, missing


def _checked_frames(
    truth: Truth, folder: Path, objects: list[int], missing: set[str], wrong: dict[str, list[str]]
) -> Iterator[tuple[int, Mask, Mask]]:
    """Place, predicted and annotated ids of every readable frame; `wrong` collects frames by problem."""
    for place, stem in enumerate(truth.stems):
        if stem in missing:
            continue
        path = folder / f"{stem}.png"
        try:
            pred, true = read_label_map(path), truth.mask(place)
        except InputError as error:
            wrong.setdefault(error.message.replace(f"{path}: ", ""), []).append(stem)
            continue
        if pred.shape != true.shape:
            sizes = [f"{mask.shape[1]}x{mask.shape[0]}" for mask in (pred, true)]
            wrong.setdefault(f"size {sizes[0]} where the annotation has {sizes[1]}", []).append(stem)
            continue
        strange = [index for index in object_ids(pred) if index not in objects]
        if strange:
            wrong.setdefault(f"ids {strange} where the annotation has {objects}", []).append(stem)
        yield place, pred, true


def _shortened(truth: Truth, stems: Sequence[str]) -> str:
    """Every frame by name, runs of neighbors as "00003-00009"."""
    order = {stem: place for place, stem in enumerate(truth.stems)}
    runs: list[list[str]] = []
    for stem in stems:
        if runs and order[stem] == order[runs[-1][-1]] + 1:
            runs[-1].append(stem)
        else:
            runs.append([stem])
    shown = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs]
    return f"{len(stems)} frame(s): {', '.join(shown)}"


def _score(truth: Truth, objects: list[int], frames: Iterable[tuple[int, Mask, Mask]]) -> SequenceResult:
    """Scores per object and frame: 0 without a mask, nothing before an object's first frame."""
    counted, places = truth.counted, []

    def pairs() -> Iterator[tuple[Mask, Mask]]:
        for place, pred, true in frames:
            if place in counted:
                places.append(place - counted.start)
                yield pred, true

    scores: dict[int, ObjectScores] = {}
    stems: dict[int, tuple[str, ...]] = {}
    for index, score in score_frames(pairs(), objects).items():
        region, boundary = np.zeros(len(counted)), np.zeros(len(counted))
        region[places], boundary[places] = score.region, score.boundary
        start = 0 if truth.starts is None else truth.starts[index]
        scores[index] = ObjectScores(region[start:], boundary[start:])
        stems[index] = tuple(truth.stems[place] for place in counted[start:])
    return SequenceResult(truth.name, (), scores, stems)
