"""The command line of `python -m vosnet_kernels.aot`."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

from vosnet_kernels.aot.compiler import TARGETS, Report, compile_case


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, print the table, write JSON if asked; 1 if there is a problem."""
    from vosnet_kernels.aot.cases_triton import cases

    parser = argparse.ArgumentParser(
        prog="python -m vosnet_kernels.aot",
        description="Compile every Triton kernel for named GPUs, none of which need be present.",
    )
    parser.add_argument("--target", action="append", choices=TARGETS, help="repeatable; default: all")
    parser.add_argument("--match", default="", metavar="REGEX", help="only kernels whose name matches")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="number of compiler processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the reports to this file")
    args = parser.parse_args(argv)
    print(
        f"{'target':8}{'kernel':44}{'registers':>10}{'spill B':>8}{'shared B':>9}{'matrix':>7}  warps stages"
    )
    reports = []
    chosen = [
        (target, index)
        for target in args.target or TARGETS
        for index, case in enumerate(cases(target))
        if re.search(args.match, case.name)
    ]
    # Kernels cannot be pickled; a worker finds its own by target and position.
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for report in pool.map(_compile_nth, chosen):
            reports.append(report)
            _print_row(report)
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(report) for report in reports], indent=2) + "\n")
    if not reports:
        print(f"no kernel's name matches {args.match!r}")
    return int(not reports or any(report.problems for report in reports))


def _compile_nth(chosen: tuple[str, int]) -> Report:
    from vosnet_kernels.aot.cases_triton import cases

    target, index = chosen
    return compile_case(list(cases(target))[index], target)


def _print_row(report: Report) -> None:
    print(
        f"{report.target:8}{report.name:44}{report.registers:10}{report.spill_bytes:8}{report.shared_bytes:9}"
        f"{report.matrix_instructions:7}  {report.num_warps:5} {report.num_stages:6}"
        f"{'  <- ' + '; '.join(report.problems) if report.problems else ''}",
        flush=True,
    )
