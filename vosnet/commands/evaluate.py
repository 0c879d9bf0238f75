"""`vosnet evaluate`: J and F of results, of a checkpoint, of one result against another; submission zips."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vosnet.commands.cli import add_method_options, make_parser, method_options, printer
from vosnet.errors import UsageError
from vosnet.evaluation.options import ADAPTATION, DATA, JUDGED, EvaluateOptions
from vosnet.options import add_options, given_options

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
    options = _options(_parser().parse_args(argv))
    from vosnet.evaluation.evaluate import compare, evaluate, submit
    from vosnet.evaluation.tables import as_json

    document: dict[str, Any] | None = None
    to_stdout = options.json == Path("-")
    if to_stdout:
        options = replace(options, json=None)
    say = printer(to_stderr=to_stdout)
    if options.compare:
        comparison = compare(options, say)
        document = vars(comparison) if comparison else None
    elif options.submission:
        submit(options, say)
    else:
        evaluation = evaluate(options, say)
        document = as_json(evaluation) if evaluation else None
    if document and to_stdout:
        print(json.dumps(document, indent=2, allow_nan=False))
    return 0


def _options(arguments: argparse.Namespace) -> EvaluateOptions:
    if arguments.resume and arguments.overwrite:
        raise UsageError("E140", "--resume and --overwrite exclude each other")
    if arguments.adapt_set and not arguments.adapt:
        raise UsageError("E140", "--adapt-set and --adapt-curve go with --adapt only")
    return EvaluateOptions(**given_options(EvaluateOptions, arguments), **method_options(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("evaluate", _DESCRIPTION, _EXAMPLES)
    titles = {
        DATA: DATA,
        JUDGED: JUDGED,
        "method": "with --checkpoint",
        ADAPTATION: "online adaptation, on --checkpoint's masks or on those of --results",
        "output": "output",
    }
    groups = {name: parser.add_argument_group(title) for name, title in titles.items()}
    add_options(EvaluateOptions, groups)
    add_method_options(groups[ADAPTATION], groups["method"])
    return parser
