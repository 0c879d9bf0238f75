"""Spread sequences over processes: scoring workers, and ranks of torchrun that propagate."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, TypeVar

from vosnet.errors import OutOfMemoryError
from vosnet.progress import Progress

if TYPE_CHECKING:
    from vosnet.runtime import Ranks

Item = TypeVar("Item")
Result = TypeVar("Result")


def default_workers(jobs: int) -> int:
    """As many processes as there are cores for this one, at most 8 and one per job."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, jobs, 8))


def map_processes(
    work: Callable[[Item], Result], items: Sequence[Item], *, workers: int, progress: Progress
) -> list[Result]:
    """`work` of every item, in order, by `workers` fresh processes (1: in this one).

    Raises:
        OutOfMemoryError: a process was killed.
    """
    results: list[Result] = []
    if workers <= 1 or len(items) <= 1:
        for item in items:
            results.append(work(item))
            progress.advance()
        return results
    context = multiprocessing.get_context("spawn")  # a fork would copy locked thread pools
    try:
        with ProcessPoolExecutor(min(workers, len(items)), mp_context=context) as pool:
            for result in pool.map(work, items):
                results.append(result)
                progress.advance()
    except BrokenProcessPool as error:
        raise OutOfMemoryError(
            "E502", "a scoring process was killed, most likely because memory ran out", "Use --workers 1."
        ) from error
    return results


def share(items: Sequence[Item], weight: Callable[[Item], int], ranks: Ranks) -> list[Item]:
    """This rank's part: heaviest first, each to the rank with the least so far; the same on all ranks."""
    loads = [0] * ranks.size
    parts: list[list[Item]] = [[] for _ in range(ranks.size)]
    for item in sorted(items, key=weight, reverse=True):
        lightest = loads.index(min(loads))
        loads[lightest] += weight(item)
        parts[lightest].append(item)
    return parts[ranks.rank]
