"""Many sequences, several processes: workers that score, and ranks of torchrun that propagate."""

from __future__ import annotations

import contextlib
import datetime as dt
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

from vosnet.errors import OutOfMemoryError
from vosnet.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")
_PATIENCE = dt.timedelta(days=2)  # ranks wait for the slowest; torchrun itself stops all when one dies


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


@dataclass(frozen=True)
class Ranks:
    """This process among those that torchrun started; alone without torchrun."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this one evaluates and reports."""
        return self.rank == 0

    def share(self, items: Sequence[Item], weight: Callable[[Item], int]) -> list[Item]:
        """This rank's part: heaviest first, each to the rank with the least so far; all ranks agree on it."""
        loads = [0] * self.size
        parts: list[list[Item]] = [[] for _ in range(self.size)]
        for item in sorted(items, key=weight, reverse=True):
            lightest = loads.index(min(loads))
            loads[lightest] += weight(item)
            parts[lightest].append(item)
        return parts[self.rank]

    def wait(self) -> None:
        """Until every rank is here."""
        self.gather(None)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, by rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


@contextlib.contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join the ranks that torchrun started (RANK and WORLD_SIZE); without them this is the only process."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=_PATIENCE)  # only small objects are exchanged
    try:
        yield Ranks(int(os.environ["RANK"]), size)
    finally:
        dist.destroy_process_group()
