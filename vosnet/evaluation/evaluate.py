"""Evaluation from options to files: J and F of results or of a checkpoint, comparisons, submission zips."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vosnet.errors import PartialFailureError
from vosnet.evaluation.adapted import BenchmarkAdapter
from vosnet.evaluation.benchmark import Benchmark
from vosnet.evaluation.compare import Comparison, compare_scores, comparison_text
from vosnet.evaluation.evaluator import (
    complete_results,
    open_benchmark,
    score_results,
    summarize_benchmark,
    write_sequence,
)
from vosnet.evaluation.options import EvaluateOptions
from vosnet.evaluation.results import SequenceResult
from vosnet.evaluation.spread import share
from vosnet.evaluation.submission import build_submission
from vosnet.evaluation.tables import Evaluation, as_json, csv_names, read_json, table, write_csv
from vosnet.evaluation.worst_frames import worst_frames, write_worst_frames
from vosnet.export.folder import ResultFolder
from vosnet.files import write_json
from vosnet.progress import Progress
from vosnet.propagation import Propagator
from vosnet.runtime import Ranks, joined_ranks

Say = Callable[[str], None]
_PATIENCE_S = 2 * 86400.0  # ranks wait for the slowest; torchrun itself stops all when one dies


def evaluate(options: EvaluateOptions, say: Say = lambda text: None) -> Evaluation | None:
    """Make the masks if a checkpoint is given, score them, and write what is asked for.

    Args:
        options: what to evaluate.
        say: gets each message for people, the table of scores included.

    Returns:
        All numbers; None on every rank of torchrun but the first.

    Raises:
        UsageError: an unknown split, preset or switch, or a result folder that cannot be resumed.
        InputError: the data set or the results are incomplete or wrong; everything wrong is listed.
        PartialFailureError: some sequences could not be propagated (E302).
    """
    benchmark = _open(options)
    with _masks(options, benchmark, say) as results:
        if results is None:
            return None
        scored = _score(options, benchmark, results)
        evaluation = summarize_benchmark(benchmark, scored)
        say(table(evaluation))
        _write_reports(options, benchmark, results, scored, evaluation, say)
    return evaluation


def submit(options: EvaluateOptions, say: Say = lambda text: None) -> int | None:
    """Build and check the zip for a benchmark's server.

    Returns:
        Number of masks in it; None on every rank of torchrun but the first.

    Raises:
        InputError: masks are missing or wrong; no zip is written.
    """
    assert options.submission is not None
    benchmark = _open(options)
    with _masks(options, benchmark, say) as results:
        if results is None:
            return None
        expected = {name: benchmark.expected(name) for name in benchmark.names}
        count = build_submission(options.submission, results, expected, prefix=benchmark.prefix)
    say(f"{options.submission}: {count} masks of {len(expected)} sequences, checked")
    return count


def compare(options: EvaluateOptions, say: Say = lambda text: None) -> Comparison | None:
    """Compare two results object by object, and write the comparison where `options.json` says.

    Returns:
        The comparison; None on every rank of torchrun but the first.

    Raises:
        InputError: a result cannot be scored or read, or the two hold different objects.
    """
    assert options.compare is not None
    with joined_ranks("gloo", _PATIENCE_S) as ranks:
        if not ranks.is_main:
            return None
        sides = []
        for side in options.compare:
            if side.is_file():
                sides.append(read_json(side))
            else:
                benchmark = _open(options)
                sides.append(summarize_benchmark(benchmark, _score(options, benchmark, side)).objects)
        comparison = compare_scores(*sides)
        say(comparison_text(comparison, *map(str, options.compare)))
        if options.json:
            write_json(options.json, vars(comparison))
    return comparison


def _open(options: EvaluateOptions) -> Benchmark:
    assert options.root is not None
    assert options.split is not None
    return open_benchmark(
        options.dataset, options.root, options.split, options.annotations, options.train_meta
    )


def _score(options: EvaluateOptions, benchmark: Benchmark, results: Path) -> list[SequenceResult]:
    return score_results(
        benchmark,
        results,
        allow_missing=options.allow_missing,
        workers=options.workers,
        progress=options.progress,
    )


@contextlib.contextmanager
def _masks(options: EvaluateOptions, benchmark: Benchmark, say: Say) -> Iterator[Path | None]:
    """The folder with the masks to judge, which may have to be made; None on ranks that do not report."""
    with joined_ranks("gloo", _PATIENCE_S) as ranks, contextlib.ExitStack() as stack:
        results = options.results
        if options.makes_masks:
            temporary = partial(tempfile.TemporaryDirectory, prefix="vosnet-evaluate-")
            out = options.out or Path(stack.enter_context(temporary()))
            results = _make_masks(options, benchmark, ranks, out, say)
        yield results if ranks.is_main else None


def _make_masks(options: EvaluateOptions, benchmark: Benchmark, ranks: Ranks, out: Path, say: Say) -> Path:
    """Propagate or adapt this rank's share of the sequences; the folder with the masks of all ranks."""
    mode = options.progress if ranks.is_main else "quiet"
    propagator = None
    if options.checkpoint is not None:
        propagator = Propagator.from_checkpoint(
            options.checkpoint,
            preset=options.preset,
            device=options.device,
            **{"empty_objects": "lose", **options.switches},  # a benchmark counts a lost object as missed
        )
        if ranks.is_main:
            say(f"encoder: {propagator.source}")
    folder = _claim(out, options, benchmark, propagator, ranks)
    mine = share(benchmark.names, lambda name: len(benchmark.frames(name)), ranks)
    label = "propagate" if ranks.size == 1 else f"propagate, process {ranks.rank} of {ranks.size}"
    total = sum(len(benchmark.frames(name)) for name in mine)
    adapts = options.adaptation is not None
    with Progress(total, label, mode="quiet" if adapts else mode) as progress:  # adapting shows its own
        write: Callable[[str], None]
        if options.adaptation is not None:
            source = propagator or options.results
            assert source is not None
            adapter = BenchmarkAdapter(
                options.adaptation, source, options.device, mode, say, options.curve_every
            )
            write = partial(adapter.write, benchmark, folder=folder)
        else:
            assert propagator is not None
            write = partial(write_sequence, propagator, benchmark, folder=folder, progress=progress)
        failures = complete_results(benchmark, mine, folder, write, progress)
    everywhere = {name: why for part in ranks.gather(failures) for name, why in part.items()}
    if everywhere:
        listed = "\n".join(f"  {name}: {why}" for name, why in everywhere.items())
        count = f"{len(everywhere)} of {len(benchmark.names)}"
        raise PartialFailureError(
            "E302", f"{count} sequences failed, so there is no score (continue with --resume):\n{listed}"
        )
    return folder.root


def _claim(
    out: Path, options: EvaluateOptions, benchmark: Benchmark, propagator: Propagator | None, ranks: Ranks
) -> ResultFolder:
    """The result folder; the first rank creates it, then the others join."""
    assert options.root is not None
    settings: dict[str, Any]
    settings = {"dataset": options.dataset, "root": str(options.root.resolve()), "sequences": benchmark.names}
    if propagator is not None:
        settings |= propagator.settings()
    if options.adaptation is not None:
        settings["adaptation"] = dataclasses.asdict(options.adaptation)
        settings["adapted from"] = str(options.results.resolve()) if options.results else None
    folder = ResultFolder(out, settings, existing=options.existing) if ranks.is_main else None
    if folder is not None:
        for name in ("evaluation.json", "evaluation_worst.png", *csv_names(benchmark.split)):
            folder.path(name)
            folder.forget(name)  # should this run fail, old numbers must not stand beside new masks
    ranks.wait()
    folder = folder or ResultFolder(out, settings, existing="resume")
    ranks.wait()  # nobody writes before everybody has removed stale temporaries
    return folder


def _write_reports(
    options: EvaluateOptions,
    benchmark: Benchmark,
    results: Path,
    scored: Sequence[SequenceResult],
    evaluation: Evaluation,
    say: Say,
) -> None:
    """JSON, CSV, picture: those asked for, and all of them in `out`."""
    json_file = options.json or (options.out / "evaluation.json" if options.out else None)
    csv, picture = options.csv or options.out, options.picture
    if json_file:
        write_json(json_file, as_json(evaluation))
        if options.out:
            picture = picture or options.out / "evaluation_worst.png"
        picture = picture or json_file.with_name(f"{json_file.stem}_worst.png")
    if csv:
        write_csv(csv, benchmark.split, evaluation)
    frames = worst_frames(scored)
    if picture and frames:
        files = {(f.sequence, f.stem): benchmark.pictures(f.sequence, f.stem, results) for f in frames}
        write_worst_frames(picture, frames, files)
        say(f"worst frames (true outlines white, predicted colored): {picture}")
