"""`vosnet evaluate`: J and F of results, of a checkpoint, of one result against another; submission zips."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vosnet.commands.cli import make_parser, parse_assignments
from vosnet.errors import PartialFailureError, UsageError
from vosnet.evaluation.spread import share
from vosnet.files import expand, write_json
from vosnet.progress import Progress, ProgressMode

if TYPE_CHECKING:
    from vosnet.adaptation.settings import AdaptationSettings
    from vosnet.evaluation.benchmark import Benchmark
    from vosnet.evaluation.results import SequenceResult
    from vosnet.export.folder import ResultFolder
    from vosnet.propagation import Propagator
    from vosnet.runtime import Ranks

_EXAMPLES = [
    "--root DAVIS --split 2017/val --results results/osvos --json osvos.json",
    "--root DAVIS --split 2016/val --checkpoint random --out runs/random",
    "--root DAVIS --split 2017/val --compare results/before results/after",
    "--dataset ytvos --root YT --split valid --results out --submission a.zip",
    "--root DAVIS --split 2017/val --results masks --adapt --out adapted",
]
_PATIENCE_S = 2 * 86400.0  # ranks wait for the slowest; torchrun itself stops all when one dies
_DESCRIPTION = """\
Region similarity J and boundary accuracy F by the rules of davis2017-evaluation, or YouTube-VOS'
mean over seen and unseen categories. A checkpoint is first run on every sequence; under torchrun
(torchrun --nproc-per-node 4 tools/evaluate.py ...) the sequences are spread over the processes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, get the results (propagating first if a checkpoint is given), score, report."""
    parser = _parser()
    options = parser.parse_args(argv)
    _check(options)
    if options.compare and all(expand(path).is_file() for path in options.compare):
        return _compare_files(options)
    benchmark = _open_benchmark(options)
    from vosnet.runtime import joined_ranks

    with joined_ranks("gloo", _PATIENCE_S) as ranks, contextlib.ExitStack() as stack:
        if options.checkpoint is not None or options.adapt:
            results = _propagate(options, benchmark, ranks, stack)
        else:
            results = options.results
        if not ranks.is_main:
            return 0
        if options.compare:
            return _compare_folders(options, benchmark)
        if options.submission:
            return _submit(options, benchmark, results)
        scored = _score(options, benchmark, results)
        _report(options, benchmark, results, scored)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("evaluate", _DESCRIPTION, _EXAMPLES)
    data = parser.add_argument_group("data set")
    data.add_argument("--dataset", choices=["davis", "ytvos"], default="davis", help="layout (default davis)")
    data.add_argument("--root", type=expand, help="the data set's folder")
    data.add_argument(
        "--split", help="NAME of ImageSets/**/NAME.txt (davis) or of a folder (ytvos), or a file"
    )
    data.add_argument(
        "--annotations",
        action="append",
        metavar="FOLDER",
        help="davis: where annotations lie (default Annotations); repeat it, the first with a sequence wins",
    )
    data.add_argument(
        "--train-meta", type=expand, metavar="FILE", help="ytvos: meta.json of the training set"
    )
    what = parser.add_argument_group("what is evaluated").add_mutually_exclusive_group(required=True)
    what.add_argument("--results", type=expand, metavar="DIR", help="folder with SEQUENCE/FRAME.png")
    what.add_argument(
        "--checkpoint", metavar="RUN_OR_FILE", help="run folder, weights file, 'random' or 'shipped'"
    )
    what.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two result folders, or two JSON files")
    method = parser.add_argument_group("with --checkpoint")
    method.add_argument(
        "--preset",
        help="inference protocol (default: the one its recipe gave the checkpoint, else dul; shipped: dul)",
    )
    method.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override a protocol switch",
    )
    method.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default auto)")
    method.add_argument("--out", type=expand, metavar="DIR", help="keep masks and report there")
    method.add_argument("--resume", action="store_true", help="continue an interrupted --out")
    method.add_argument("--overwrite", action="store_true", help="replace an earlier result in --out")
    adapted = parser.add_argument_group("online adaptation, on --checkpoint's masks or on those of --results")
    adapted.add_argument("--adapt", action="store_true", help="a U-Net per sequence makes the final masks")
    adapted.add_argument(
        "--adapt-set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting of it",
    )
    adapted.add_argument(
        "--adapt-curve", type=int, default=0, metavar="N", help="J and F every N iterations, for studies"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", help="write all numbers there; - is stdout")
    output.add_argument(
        "--csv", type=expand, metavar="DIR", help="write the official tool's two CSV files there"
    )
    output.add_argument("--picture", type=expand, metavar="FILE", help="worst frames with both outlines")
    output.add_argument(
        "--allow-missing", action="store_true", help="missing frames count as 0, and it says so"
    )
    output.add_argument("--submission", type=expand, metavar="ZIP", help="build and check a zip; no scores")
    output.add_argument(
        "--workers", type=int, metavar="N", help="scoring processes (default: cores, at most 8)"
    )
    output.add_argument("--progress", choices=["auto", "bar", "lines", "json", "quiet"], default="auto")
    return parser


def _check(options: argparse.Namespace) -> None:
    files = options.compare and all(expand(path).is_file() for path in options.compare)
    if not files and not (options.root and options.split):
        raise UsageError("E140", "--root and --split are needed to read a data set")
    if options.resume and options.overwrite:
        raise UsageError("E140", "--resume and --overwrite exclude each other")
    if options.workers is not None and options.workers < 1:
        raise UsageError("E140", f"--workers must be at least 1, got {options.workers}")
    makes_masks = options.checkpoint is not None or options.adapt
    names = ("preset", "set") if makes_masks else ("out", "preset", "resume", "overwrite", "set")
    only_checkpoint = [name for name in names if getattr(options, name)]
    if options.adapt and (options.compare or (options.results and not options.out)):
        raise UsageError("E140", "--adapt goes with --checkpoint, or with --results and --out")
    if (options.adapt_set or options.adapt_curve) and not options.adapt:
        raise UsageError("E140", "--adapt-set and --adapt-curve go with --adapt only")
    if options.adapt_curve and (options.adapt_curve < 0 or not options.out):
        raise UsageError("E140", "--adapt-curve needs a positive number of iterations, and --out")
    if options.results and options.out and options.results.resolve() == options.out.resolve():
        raise UsageError("E140", "--adapt reads --results and writes --out: they must differ")
    if options.checkpoint is None and only_checkpoint:
        raise UsageError("E140", f"--{only_checkpoint[0]} goes with --checkpoint only")
    if options.submission and options.compare:
        raise UsageError("E140", "--submission and --compare exclude each other")
    if makes_masks and not options.out and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("E140", "under torchrun masks need --out, a folder that every process sees")


def _open_benchmark(options: argparse.Namespace) -> Benchmark:
    from vosnet.evaluation.benchmark import open_benchmark

    return open_benchmark(
        options.dataset,
        options.root,
        options.split,
        annotations=options.annotations,
        train_meta=options.train_meta,
    )


def _propagate(
    options: argparse.Namespace, benchmark: Benchmark, ranks: Ranks, stack: contextlib.ExitStack
) -> Path:
    """Run the checkpoint on every sequence, or adapt the masks of --results; the folder with the masks."""
    from functools import partial

    from vosnet import Propagator
    from vosnet.adaptation.settings import make_settings
    from vosnet.evaluation.adapted import BenchmarkAdapter
    from vosnet.evaluation.evaluator import complete_results, write_sequence

    mode: ProgressMode = options.progress if ranks.is_main else "quiet"
    settings = make_settings(**parse_assignments(options.adapt_set)) if options.adapt else None
    propagator = None
    if options.checkpoint is not None:
        propagator = Propagator.from_checkpoint(
            options.checkpoint,
            preset=options.preset,
            device=options.device,
            **{"empty_objects": "lose", **parse_assignments(options.set)},  # a benchmark counts it as missed
        )
        if ranks.is_main:
            _say(options, f"encoder: {propagator.source}")
    folder = _result_folder(options, benchmark, propagator, settings, ranks, stack)
    mine = share(benchmark.names, lambda name: len(benchmark.frames(name)), ranks)
    label = "propagate" if ranks.size == 1 else f"propagate, process {ranks.rank} of {ranks.size}"
    total = sum(len(benchmark.frames(name)) for name in mine)
    with Progress(total, label, mode="quiet" if settings else mode) as progress:  # adapting shows its own
        write: Callable[[str], None]
        if settings is not None:
            adapter = BenchmarkAdapter(
                settings,
                propagator or options.results,
                options.device,
                mode,
                say=lambda text: _say(options, text),
                curve_every=options.adapt_curve,
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


def _result_folder(
    options: argparse.Namespace,
    benchmark: Benchmark,
    propagator: Propagator | None,
    adaptation: AdaptationSettings | None,
    ranks: Ranks,
    stack: contextlib.ExitStack,
) -> ResultFolder:
    """Claimed by the main rank, then joined by the others; a temporary one without --out."""
    from vosnet.export.folder import ResultFolder

    out = options.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vosnet-evaluate-")))
    settings = {
        "dataset": options.dataset,
        "root": str(options.root.resolve()),
        "sequences": benchmark.names,
    }
    if propagator is not None:
        settings["encoder"] = propagator.source
        settings["protocol"] = {key: str(value) for key, value in vars(propagator.protocol).items()}
    if adaptation is not None:
        settings["adaptation"] = dataclasses.asdict(adaptation)
        settings["adapted from"] = str(options.results.resolve()) if options.results else None
    existing: Literal["refuse", "resume", "overwrite"]
    existing = "overwrite" if options.overwrite else "resume" if options.resume else "refuse"
    folder = ResultFolder(out, settings, existing=existing) if ranks.is_main else None
    if folder is not None:
        for name in _report_names(benchmark):
            folder.path(name)
            folder.forget(name)  # should this run fail, old numbers must not stand beside new masks
    ranks.wait()
    folder = folder or ResultFolder(out, settings, existing="resume")
    ranks.wait()  # nobody writes before everybody has removed stale temporaries
    return folder


def _report_names(benchmark: Benchmark) -> list[str]:
    tables = [f"{kind}_results-{benchmark.split}.csv" for kind in ("global", "per-sequence")]
    return ["evaluation.json", "evaluation_worst.png", *tables]


def _score(options: argparse.Namespace, benchmark: Benchmark, results: Path) -> list[SequenceResult]:
    from vosnet.evaluation.evaluator import score_results

    return score_results(
        benchmark,
        results,
        allow_missing=options.allow_missing,
        workers=options.workers,
        progress=options.progress,
    )


def _report(
    options: argparse.Namespace, benchmark: Benchmark, results: Path, scored: Sequence[SequenceResult]
) -> None:
    """Table, JSON, CSV, picture: those asked for, and all of them in --out."""
    from vosnet.evaluation.evaluator import summarize_benchmark
    from vosnet.evaluation.tables import as_json, table, write_csv, write_evaluation
    from vosnet.evaluation.worst_frames import worst_frames, write_worst_frames

    evaluation = summarize_benchmark(benchmark, scored)
    _say(options, table(evaluation))
    json_file = expand(options.json) if options.json and options.json != "-" else None
    beside = options.out or (json_file.parent if json_file else None)
    if options.json == "-":
        print(json.dumps(as_json(evaluation), indent=2, allow_nan=False))
    elif json_file or options.out:
        write_evaluation(json_file or options.out / "evaluation.json", evaluation)
    csv = options.csv or options.out
    if csv:
        write_csv(csv, benchmark.split, evaluation)
    stem = json_file.stem if json_file and not options.out else "evaluation"
    picture = options.picture or (beside / f"{stem}_worst.png" if beside else None)
    frames = worst_frames(scored)
    if picture and frames:
        files = {(f.sequence, f.stem): benchmark.pictures(f.sequence, f.stem, results) for f in frames}
        write_worst_frames(picture, frames, files)
        _say(options, f"worst frames (true outlines white, predicted colored): {picture}")


def _submit(options: argparse.Namespace, benchmark: Benchmark, results: Path) -> int:
    from vosnet.evaluation.submission import build_submission

    wanted = {name: benchmark.expected(name) for name in benchmark.names}
    count = build_submission(options.submission, results, wanted, prefix=benchmark.prefix)
    _say(options, f"{options.submission}: {count} masks of {len(wanted)} sequences, checked")
    return 0


def _compare_files(options: argparse.Namespace) -> int:
    from vosnet.evaluation.tables import read_json

    first, second = (read_json(expand(path)) for path in options.compare)
    return _print_comparison(options, first, second)


def _compare_folders(options: argparse.Namespace, benchmark: Benchmark) -> int:
    from vosnet.evaluation.evaluator import summarize_benchmark
    from vosnet.evaluation.tables import read_json

    sides = []
    for side in map(expand, options.compare):
        if side.is_file():
            sides.append(read_json(side))
        else:
            sides.append(summarize_benchmark(benchmark, _score(options, benchmark, side)).objects)
    return _print_comparison(options, *sides)


def _print_comparison(
    options: argparse.Namespace, first: dict[str, dict[str, float]], second: dict[str, dict[str, float]]
) -> int:
    from vosnet.evaluation.compare import compare_scores

    comparison = compare_scores(first, second)
    a, b = options.compare
    lines = [
        f"A {comparison.first:.3f}  {a}",
        f"B {comparison.second:.3f}  {b}",
        f"B - A {comparison.difference:+.4f} J&F over {len(first)} objects",
        f"95 % {comparison.low:+.4f} to {comparison.high:+.4f}, p {comparison.p_value:.4f}, paired bootstrap",
    ]
    ordered = list(comparison.per_object.items())
    for title, part in (("lost most", ordered[:5]), ("won most", ordered[::-1][:5])):
        lines.append(f"{title}: " + ", ".join(f"{name} {value:+.3f}" for name, value in part))
    _say(options, "\n".join(lines))
    document = vars(comparison)
    if options.json == "-":
        print(json.dumps(document, indent=2))
    elif options.json:
        write_json(expand(options.json), document)
    return 0


def _say(options: argparse.Namespace, text: str) -> None:
    print(text, file=sys.stderr if options.json == "-" else sys.stdout, flush=True)
