"""Results on disk: does a folder hold what is asked for, and how good is it? One sequence at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vosnet.errors import InputError
from vosnet.evaluation.davis import Sequence
from vosnet.evaluation.youtube_vos import Video
from vosnet.files import natural_key
from vosnet.masks import object_ids, read_label_map, read_mask
from vosnet.metrics import ObjectScores, annotated_objects, score_frames
from vosnet.metrics.summary import VOID

Mask = npt.NDArray[np.uint8]
_JUNK = {"Thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class ScoringTask:
    """What it takes to score one sequence; small, so that it travels to another process.

    Attributes:
        name: of the sequence.
        annotations: annotated frames in order.
        results: folder with one PNG per frame.
        allowed: stems of all frames of the sequence: a result for another one is extra.
        starts: object id -> index into `annotations` of its first frame (YouTube-VOS). None is the DAVIS
            rule: the objects of the first annotation, the first and the last frame not counted.
        allow_missing: a missing frame scores 0 instead of being a problem.
    """

    name: str
    annotations: tuple[Path, ...]
    results: Path
    allowed: frozenset[str]
    starts: dict[int, int] | None = None
    allow_missing: bool = False


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


def davis_task(sequence: Sequence, results: Path, *, allow_missing: bool = False) -> ScoringTask:
    """Score `sequence` by the DAVIS rule.

    Raises:
        InputError: fewer than three frames are annotated, as in the test sets.
    """
    if len(sequence.annotations) < 3:
        count = f"{len(sequence.annotations)} of {len(sequence.frames)}"
        raise InputError(
            "E234",
            f"sequence {sequence.name}: {count} frames are annotated; the first and the last do not count",
            "For a test set build a zip with --submission.",
        )
    stems = frozenset(path.stem for path in sequence.frames)
    return ScoringTask(sequence.name, sequence.annotations, results, stems, allow_missing=allow_missing)


def youtube_vos_task(video: Video, results: Path, *, allow_missing: bool = False) -> ScoringTask:
    """Score every object of `video` from its first annotated frame on, that frame included.

    Raises:
        InputError: annotations are missing for frames that are asked for.
    """
    annotations = {path.stem: path for path in video.annotations}
    missing = [stem for stem in video.asked if stem not in annotations]
    if missing:
        raise InputError(
            "E234",
            f"video {video.name}: {len(missing)} of {len(video.asked)} frames asked for are not annotated",
            "Only the official server can score it: build a zip with --submission.",
        )
    starts = {index: video.asked.index(item.frames[0]) for index, item in video.objects.items()}
    return ScoringTask(
        video.name,
        tuple(annotations[stem] for stem in video.asked),
        results,
        frozenset(path.stem for path in video.frames),
        starts,
        allow_missing=allow_missing,
    )


def score_sequence(task: ScoringTask) -> SequenceResult:
    """Check every frame of a result and score it; problems are collected, not raised.

    Differs: the official DAVIS tool never looks at the first and the last frame, which do not count; here
    they must be there and be right, because a result without them is not complete.
    """
    if not task.results.is_dir() and not task.allow_missing:
        return SequenceResult(task.name, (f"{task.name}: no folder {task.results}",))
    problems, missing = _check_names(task)
    wrong: dict[str, list[str]] = {}
    try:
        first = read_mask(task.annotations[0]).ids
    except InputError as error:
        return SequenceResult(task.name, (*problems, f"{task.name}: {error}"))
    objects = sorted(task.starts) if task.starts is not None else annotated_objects(first)
    if not objects:
        return SequenceResult(task.name, (*problems, f"{task.name}: no object in its first annotation"))
    inner = range(1, len(task.annotations) - 1) if task.starts is None else range(len(task.annotations))
    there = [t for t in inner if task.annotations[t].stem not in missing]
    frames = _checked_frames(task, objects, set(missing), wrong)
    scores = score_frames((pair for t, pair in frames if t in inner), objects)
    problems += [f"{task.name}: {what} in {_shortened(task, stems)}" for what, stems in wrong.items()]
    if problems:
        return SequenceResult(task.name, tuple(problems))
    return _arrange(task, scores, inner, there, missing)


def _check_names(task: ScoringTask) -> tuple[list[str], list[str]]:
    """Problems with the set of files, and the stems that are missing."""
    listing = task.results.iterdir() if task.results.is_dir() else ()
    files = [path for path in listing if not path.name.startswith(".") and path.name not in _JUNK]
    have = {path.stem for path in files if path.suffix == ".png" and path.is_file()}
    odd = [path.name for path in files if path.suffix != ".png" or not path.is_file()]
    extra = [f"{stem}.png" for stem in have - task.allowed]
    missing = [path.stem for path in task.annotations if path.stem not in have]
    problems = []
    for what, names in (("extra", extra), ("not a PNG", odd)):
        if names:
            listed = ", ".join(sorted(names, key=natural_key))
            problems.append(f"{task.name}: {what} ({len(names)}): {listed}")
    if missing and not task.allow_missing:
        problems.append(f"{task.name}: no result for {_shortened(task, missing)}")
    return problems, missing


def _checked_frames(
    task: ScoringTask, objects: list[int], missing: set[str], wrong: dict[str, list[str]]
) -> Iterator[tuple[int, tuple[Mask, Mask]]]:
    """Index, predicted and annotated ids of every readable frame; `wrong` collects frames by problem."""
    for t, path in enumerate(task.annotations):
        if path.stem in missing:
            continue
        result = task.results / f"{path.stem}.png"
        try:
            pred, true = read_label_map(result), read_mask(path).ids
        except InputError as error:
            wrong.setdefault(error.message.replace(f"{result}: ", ""), []).append(path.stem)
            continue
        if pred.shape != true.shape:
            sizes = [f"{mask.shape[1]}x{mask.shape[0]}" for mask in (pred, true)]
            wrong.setdefault(f"size {sizes[0]} where the annotation has {sizes[1]}", []).append(path.stem)
            continue
        strange = [index for index in object_ids(pred) if index not in objects]
        if strange:
            wrong.setdefault(f"ids {strange} where the annotation has {objects}", []).append(path.stem)
        yield t, (pred, np.where(true == VOID, np.uint8(0), true))


def _shortened(task: ScoringTask, stems: list[str]) -> str:
    """Every frame by name, runs of neighbors as "00003-00009"."""
    order = {path.stem: t for t, path in enumerate(task.annotations)}
    runs: list[list[str]] = []
    for stem in stems:
        if runs and order[stem] == order[runs[-1][-1]] + 1:
            runs[-1].append(stem)
        else:
            runs.append([stem])
    shown = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs]
    return f"{len(stems)} frame(s): {', '.join(shown)}"


def _arrange(
    task: ScoringTask, scores: dict[int, ObjectScores], inner: range, there: list[int], missing: list[str]
) -> SequenceResult:
    """Scores at their frames: 0 where a result is missing, and nothing before an object's first frame."""
    full: dict[int, ObjectScores] = {}
    stems: dict[int, tuple[str, ...]] = {}
    place = [t - inner.start for t in there]
    for index, score in scores.items():
        region, boundary = np.zeros(len(inner)), np.zeros(len(inner))
        region[place], boundary[place] = score.region, score.boundary
        start = 0 if task.starts is None else task.starts[index]
        full[index] = ObjectScores(region[start:], boundary[start:])
        stems[index] = tuple(task.annotations[t].stem for t in inner[start:])
    return SequenceResult(task.name, (), full, stems, tuple(missing))
