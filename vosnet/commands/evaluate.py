"""`vosnet evaluate`: J and F of results, of a checkpoint, of one result against another; submission zips."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from vosnet.commands.cli import (
    add_assignments,
    add_protocol,
    existing_results,
    fields_of,
    make_parser,
    parse_assignments,
    printer,
)
from vosnet.errors import UsageError
from vosnet.evaluation.options import EvaluateOptions
from vosnet.files import expand

_EXAMPLES = [
    "--root DAVIS --split 2017/val --results results/osvos --json osvos.json",
    "--root DAVIS --split 2016/val --checkpoint random --out runs/random",
    "--root DAVIS --split 2017/val --compare results/before results/after",
    "--dataset ytvos --root YT --split valid --results out --submission a.zip",
    "--root DAVIS --split 2017/val --results masks --adapt --out adapted",
]
_DESCRIPTION = """\
Region similarity J and boundary accuracy F by the rules of davis2017-evaluation, or YouTube-VOS'
mean over seen and unseen categories. A checkpoint is first run on every sequence; under torchrun
(torchrun --nproc-per-node 4 tools/evaluate.py ...) the sequences are spread over the processes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, evaluate, compare or build a submission, and print what came out."""
    arguments = _parser().parse_args(argv)
    options = _options(arguments)
    from vosnet.evaluation.evaluate import compare, evaluate, submit
    from vosnet.evaluation.tables import as_json

    document: dict[str, Any] | None = None
    say = printer(to_stderr=arguments.json == "-")
    if options.compare:
        document = vars(compare(options, say))
    elif options.submission:
        submit(options, say)
    else:
        evaluation = evaluate(options, say)
        document = as_json(evaluation) if evaluation else None
    if document and arguments.json == "-":
        print(json.dumps(document, indent=2, allow_nan=False))
    return 0


def _options(arguments: argparse.Namespace) -> EvaluateOptions:
    if arguments.adapt_set and not arguments.adapt:
        raise UsageError("E140", "--adapt-set and --adapt-curve go with --adapt only")
    adaptation = None
    if arguments.adapt:
        from vosnet.adaptation.settings import make_settings

        adaptation = make_settings(**parse_assignments(arguments.adapt_set))
    values = {
        **fields_of(EvaluateOptions, arguments),
        "adaptation": adaptation,
        "switches": parse_assignments(arguments.set),
        "existing": existing_results(arguments, "E140"),
        "json": expand(arguments.json) if arguments.json and arguments.json != "-" else None,
    }
    return EvaluateOptions(**values)


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
        default=[],
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
    what.add_argument(
        "--compare", nargs=2, type=expand, metavar=("A", "B"), help="two result folders, or two JSON files"
    )
    method = parser.add_argument_group("with --checkpoint")
    add_protocol(method)
    method.add_argument("--out", type=expand, metavar="DIR", help="keep masks and report there")
    method.add_argument("--resume", action="store_true", help="continue an interrupted --out")
    method.add_argument("--overwrite", action="store_true", help="replace an earlier result in --out")
    adapted = parser.add_argument_group("online adaptation, on --checkpoint's masks or on those of --results")
    adapted.add_argument("--adapt", action="store_true", help="a U-Net per sequence makes the final masks")
    add_assignments(adapted, "--adapt-set", "override a setting of --adapt")
    adapted.add_argument(
        "--adapt-curve",
        dest="curve_every",
        type=int,
        default=0,
        metavar="N",
        help="J and F every N iterations, for studies",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", help="write all numbers there; - is stdout")
    output.add_argument(
        "--csv", type=expand, metavar="DIR", help="write the official tool's two CSV files there"
    )
    output.add_argument("--picture", type=expand, metavar="FILE", help="worst frames with both outlines")
    output.add_argument("--allow-missing", action="store_true", help="count missing frames as 0, and say so")
    output.add_argument(
        "--submission", type=expand, metavar="ZIP", help="build and check a zip instead of scoring"
    )
    output.add_argument(
        "--workers", type=int, metavar="N", help="scoring processes (default: cores, at most 8)"
    )
    output.add_argument("--progress", choices=["auto", "bar", "lines", "json", "quiet"], default="auto")
    return parser
