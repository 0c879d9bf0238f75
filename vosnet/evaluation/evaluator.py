"""Open a benchmark, propagate each sequence in memory or to a folder, score, summarize."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from vosnet.errors import InputError, VosnetError
from vosnet.evaluation.benchmark import Benchmark
from vosnet.evaluation.davis import DavisBenchmark
from vosnet.evaluation.results import SequenceResult, Truth, score_folder, score_masks
from vosnet.evaluation.spread import default_workers, map_processes
from vosnet.evaluation.tables import Evaluation, collect
from vosnet.evaluation.youtube_vos import YouTubeVosBenchmark
from vosnet.export.folder import ResultFolder
from vosnet.files import inside
from vosnet.masks import write_mask
from vosnet.masks.labels import Mask
from vosnet.progress import Progress, ProgressMode
from vosnet.propagation import Propagator
from vosnet.video import VideoReader, open_video

DatasetName = Literal["davis", "ytvos"]


def open_benchmark(
    dataset: DatasetName,
    root: str | os.PathLike[str],
    split: str,
    annotations: Sequence[str] = (),
    train_meta: str | os.PathLike[str] | None = None,
) -> Benchmark:
    """The split of a data set; see `DavisBenchmark` and `YouTubeVosBenchmark` for the arguments."""
    if dataset == "ytvos":
        return YouTubeVosBenchmark(root, split, train_meta)
    return DavisBenchmark(root, split, annotations)


def evaluate_in_memory(propagator: Propagator, benchmark: Benchmark) -> Evaluation:
    """Propagate every sequence of a benchmark and score it without writing a file.

    Raises:
        InputError: a sequence cannot be read or scored.
        VosnetError: what propagation raises.
    """
    scored = [
        score_masks(benchmark.truth(name), propagated_masks(propagator, benchmark, name))
        for name in benchmark.names
    ]
    return summarize_benchmark(benchmark, scored)


def score_results(
    benchmark: Benchmark,
    results: Path,
    *,
    allow_missing: bool = False,
    workers: int | None = None,
    progress: ProgressMode = "auto",
) -> list[SequenceResult]:
    """Score masks that lie on disk, several sequences at a time.

    Args:
        benchmark: the truth.
        results: folder with `<sequence>/<stem>.png`.
        allow_missing: see `score_folder`.
        workers: processes; None is one per core, at most 8.
        progress: how progress is shown.

    Raises:
        InputError: a sequence has too few annotations to be scored (E234). Problems with the results are not
            raised here but by `summarize_benchmark`.
    """
    truths = [benchmark.truth(name) for name in benchmark.names]
    score = partial(_score_below, results, allow_missing=allow_missing)
    with Progress(len(truths), "score", unit="sequence", mode=progress) as shown:
        return map_processes(score, truths, workers=workers or default_workers(len(truths)), progress=shown)


def summarize_benchmark(benchmark: Benchmark, scored: Sequence[SequenceResult]) -> Evaluation:
    """Every number of a benchmark from its scored sequences.

    Raises:
        InputError: a result has problems; all of them are listed (E233).
    """
    complete = not any(result.problems for result in scored)
    keys = [f"{result.name}_{index}" for result in scored for index in result.scores]
    return collect(scored, benchmark.seen(keys) if complete else None)


def propagated_masks(propagator: Propagator, benchmark: Benchmark, name: str) -> Iterator[tuple[str, Mask]]:
    """(stem, ids [H, W]) of each frame from the first annotated one on; later objects join at theirs.

    Raises:
        InputError: the reader sees other frames than the data set (E237).
        VosnetError: what propagation raises.
    """
    with open_frames(benchmark, name) as reader:
        stems = list(reader.names)
        given = {stems.index(stem): mask for stem, mask in benchmark.given(name).items()}
        for result in propagator.propagate(reader, given):
            yield stems[result.index], result.mask


@contextlib.contextmanager
def open_frames(benchmark: Benchmark, name: str) -> Iterator[VideoReader]:
    """A reader of a sequence's frames, named as in the data set.

    Raises:
        InputError: the reader sees other frames than the data set (E237).
    """
    stems = [path.stem for path in benchmark.frames(name)]
    with open_video(benchmark.frames(name)[0].parent) as reader:
        if list(reader.names) != stems:
            raise InputError("E237", f"{reader.path}: {len(reader.names)} readable frames, not {len(stems)}")
        yield reader


def write_sequence(
    propagator: Propagator, benchmark: Benchmark, name: str, folder: ResultFolder, progress: Progress
) -> None:
    """Propagate one sequence and write the masks that are asked for as `<name>/<stem>.png`."""
    asked = set(benchmark.asked(name))
    done = 0
    for stem, mask in propagated_masks(propagator, benchmark, name):
        if stem in asked:
            write_mask(folder.path(f"{name}/{stem}.png"), mask)
        progress.advance()
        done += 1
    progress.advance(len(benchmark.frames(name)) - done)  # frames before the first mask have no answer


def complete_results(
    benchmark: Benchmark,
    names: Sequence[str],
    folder: ResultFolder,
    write: Callable[[str], None],
    progress: Progress,
) -> dict[str, str]:
    """Call `write` for each sequence whose masks are not all in `folder`, as after an interrupted run.

    Args:
        benchmark: says which masks are asked for.
        names: sequences to do.
        folder: where masks go.
        write: writes the masks of a sequence.
        progress: counts the frames of sequences that were complete; `write` counts its own.

    Returns:
        What went wrong, by sequence; the others are complete.
    """
    failures: dict[str, str] = {}
    for name in names:
        there = inside(folder.root, name)
        if all((there / f"{stem}.png").is_file() for stem in benchmark.asked(name)):
            progress.advance(len(benchmark.frames(name)))
            continue
        try:
            write(name)
        except VosnetError as error:
            failures[name] = str(error)
    return failures


def _score_below(results: Path, truth: Truth, *, allow_missing: bool) -> SequenceResult:
    return score_folder(truth, inside(results, truth.name), allow_missing=allow_missing)
