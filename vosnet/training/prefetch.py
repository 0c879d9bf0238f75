"""Batches in step order, made ahead of time by a thread or by worker processes."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from vosnet.errors import VosnetError
from vosnet.transforms import Crops

TIMEOUT_S = 180.0


class BatchSource(Protocol):
    """Where batches come from: a pure function of the step, so any worker may make any batch."""

    def batch(self, step: int, rank: int, world: int) -> Crops: ...


def prefetched(
    source: BatchSource,
    *,
    start: int,
    rank: int,
    world: int,
    workers: int,
    depth: int,
    warn: Callable[[str], None],
    timeout_s: float = TIMEOUT_S,
) -> Iterator[Crops]:
    """The batches of steps `start`, `start + 1`, ..., the same ones for any number of workers.

    Args:
        source: makes the batch of a step.
        start: first step.
        rank: this process among `world`.
        world: number of processes.
        workers: 0 makes batches in a thread of this process; n in n processes.
        depth: batches made ahead, per worker.
        warn: told when the workers are restarted.
        timeout_s: how long one batch of a worker process may take.

    Raises:
        VosnetError: a worker died or hung, and again after one restart.
    """
    if workers == 0:
        yield from _threaded(source, start, rank, world, depth)
        return
    step, restarted_at = start, -1
    while True:
        batches = _processes(source, step, rank, world, workers, depth, timeout_s)
        try:
            for crops in batches:
                yield crops
                step += 1
        except RuntimeError as error:
            reason = _worker_failure(error)
            if reason is None:
                raise
            where = f"data workers failed at step {step}: {reason}"
            if restarted_at >= 0:
                hint = "training.workers=0 makes batches in a thread: no processes, no shared memory."
                raise VosnetError("E120", f"{where}, and once before at step {restarted_at}", hint) from error
            restarted_at = step
            warn(f"{where}; starting them once more from the same step")


def _threaded(source: BatchSource, start: int, rank: int, world: int, depth: int) -> Iterator[Crops]:
    ready: queue.Queue[Crops | BaseException] = queue.Queue(depth)
    over = threading.Event()

    def offer(item: Crops | BaseException) -> None:
        while not over.is_set():
            try:
                return ready.put(item, timeout=0.2)
            except queue.Full:
                continue

    def work() -> None:
        torch.set_num_threads(1)  # of this thread: the model's threads must not wait for ours
        try:
            for step in itertools.count(start):
                if over.is_set():
                    return
                offer(source.batch(step, rank, world))
        except BaseException as error:  # carried over to the thread that trains, which raises it
            offer(error)

    thread = threading.Thread(target=work, name="vosnet-batches", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        over.set()
        thread.join()


class _Steps(Dataset[Crops]):
    def __init__(self, source: BatchSource, rank: int, world: int) -> None:
        self.source, self.rank, self.world = source, rank, world

    def __getitem__(self, step: int) -> Crops:
        return self.source.batch(step, self.rank, self.world)


def _processes(
    source: BatchSource, start: int, rank: int, world: int, workers: int, depth: int, timeout_s: float
) -> Iterator[Crops]:
    loader = DataLoader(
        _Steps(source, rank, world),
        batch_size=None,
        sampler=itertools.count(start),  # type: ignore[arg-type] - an endless sampler has no length
        num_workers=workers,
        prefetch_factor=depth,
        timeout=timeout_s,
    )
    return iter(loader)


def _worker_failure(error: RuntimeError) -> str | None:
    """One line for what befell a worker process; None when the error is of another kind."""
    text = str(error)
    if "DataLoader worker" not in text and "DataLoader timed out" not in text:
        return None
    if "timed out" in text:
        return "no batch arrived in time"
    if "bus error" in text.lower() or "shared memory" in text or "shm" in text:
        return "shared memory (/dev/shm) is too small"
    return text.splitlines()[0]
