"""Deterministic prefetching of batches, independent of the number of workers."""

from __future__ import annotations

import functools
import io
import itertools
import multiprocessing
import multiprocessing.connection
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from vosnet.datasets.stream import ClipStream
from vosnet.errors import VosnetError
from vosnet.transforms import Crops

TIMEOUT_S = 180.0
_NAME_BYTES = 400


def prefetched(
    stream: ClipStream,
    *,
    start: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    depth: int = 3,
    warn: Callable[[str], None] = print,
    timeout_s: float = TIMEOUT_S,
) -> Iterator[Crops]:
    """The batches of steps `start`, `start + 1`, ..., the same ones for any number of workers.

    A worker process that dies or hangs is named with the video it was reading, and all workers are started
    once more from the missing step. Batches come through pipes, so a small /dev/shm does not matter.

    Args:
        stream: makes the batch of a step.
        start: first step.
        rank: this process among `world`.
        world: number of processes that share a batch.
        workers: processes; 0 makes batches in one thread of this process. A stream that keeps decoded frames
            gets threads instead of processes, because they share its memory.
        depth: batches made ahead.
        warn: called with a message when the workers are restarted.
        timeout_s: how long one batch of a worker process may take.

    Raises:
        VosnetError: a worker died or hung, and again after one restart; or what `ClipStream.batch` raises.
    """
    make = functools.partial(stream.batch, rank=rank, world=world)
    if workers == 0 or stream.store.budget_bytes:
        pool: _Threads | _Processes = _Threads(make, max(1, workers))
    else:
        pool = _Processes(make, workers, warn, timeout_s)
    try:
        for step in range(start, start + depth):
            pool.ask(step)
        for step in itertools.count(start):
            batch = pool.take(step)
            pool.ask(step + depth)
            stream.bad |= dict(batch.bad)
            yield batch
    finally:
        pool.close()


class _Threads:
    def __init__(self, make: Callable[..., Crops], workers: int) -> None:
        self._make = make
        # one thread each for torch, too: the model's threads must not wait for ours
        self._pool = ThreadPoolExecutor(workers, "batches", initializer=torch.set_num_threads, initargs=(1,))
        self._pending: dict[int, Future[Crops]] = {}

    def ask(self, step: int) -> None:
        self._pending[step] = self._pool.submit(self._make, step)

    def take(self, step: int) -> Crops:
        return self._pending.pop(step).result()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class _Processes:
    def __init__(
        self, make: Callable[..., Crops], num_workers: int, warn: Callable[[str], None], timeout_s: float
    ) -> None:
        self._make, self._num_workers, self._warn, self._timeout_s = make, num_workers, warn, timeout_s
        self._asked: list[int] = []
        self._ready: dict[int, Crops | Exception] = {}
        self._restarted = False
        self._start()

    def ask(self, step: int) -> None:
        self._asked.append(step)
        self._worker(step).send(step)

    def take(self, step: int) -> Crops:
        deadline = time.monotonic() + self._timeout_s
        while step not in self._ready:
            failure = self._worker(step).receive(self._ready, deadline - time.monotonic())
            if failure is not None:
                self._restart(step, failure)
                deadline = time.monotonic() + self._timeout_s
        self._asked.remove(step)
        result = self._ready.pop(step)
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()

    def _start(self) -> None:
        self._workers = [_Worker(self._make) for _ in range(self._num_workers)]

    def _worker(self, step: int) -> _Worker:
        return self._workers[step % self._num_workers]

    def _restart(self, step: int, failure: str) -> None:
        where = f"a data worker {failure} while reading {self._worker(step).reading()} (step {step})"
        self.close()
        if self._restarted:
            hint = "Look at that video with `vosnet prepare --verify`; training.workers=0 needs no processes."
            raise VosnetError("E190", f"{where}, after one restart", hint)
        self._warn(f"{where}; starting all workers once more from the same step")
        self._restarted = True
        self._start()
        for asked in self._asked:
            if asked not in self._ready:
                self._worker(asked).send(asked)


class _Worker:
    """One process, the pipe to it, and in shared memory the name of the video it is reading."""

    def __init__(self, make: Callable[..., Crops]) -> None:
        context = multiprocessing.get_context("spawn")  # fork would copy locks that other threads hold
        self._reading: Any = context.Array("c", _NAME_BYTES)
        self._pipe, far_end = context.Pipe()
        self.process = context.Process(target=_work, args=(far_end, self._reading, make), daemon=True)
        self.process.start()
        far_end.close()

    def send(self, step: int) -> None:
        try:
            self._pipe.send(step)
        except OSError:
            return  # it has died; `receive` finds that out and says so

    def receive(self, ready: dict[int, Crops | Exception], timeout_s: float) -> str | None:
        """Put one result into `ready`, or return what happened to the worker."""
        signs = multiprocessing.connection.wait([self._pipe, self.process.sentinel], max(0.0, timeout_s))
        if not signs:
            return "gave no answer in time"
        try:
            if self._pipe.poll():
                step, result = self._pipe.recv()
                ready[step] = result
                return None
        except (EOFError, OSError):
            pass  # it died in the middle of a message: its exit code says more
        self.process.join(5.0)
        code = self.process.exitcode
        return f"was killed by signal {-code}" if code and code < 0 else f"ended with exit code {code}"

    def reading(self) -> str:
        return bytes(self._reading.value).decode(errors="replace") or "its first video"

    def stop(self) -> None:
        self._pipe.close()
        self.process.terminate()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _work(pipe: Any, reading: Any, make: Callable[..., Crops]) -> None:
    """Body of a worker process: steps come in, batches go out; it ends when the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process to handle
    torch.set_num_threads(1)

    def watch(name: str) -> None:
        reading.value = name.encode()[: _NAME_BYTES - 1]

    while True:
        try:
            step = pipe.recv()
            result: Crops | Exception
            try:
                result = make(step, watch=watch)
            except Exception as error:  # carried over to the main process, which raises it at this step
                result = error
            message = io.BytesIO()
            _ArrayPickler(message, protocol=5).dump((step, result))
            pipe.send_bytes(message.getbuffer())
        except (EOFError, OSError):
            return  # the main process has gone


class _ArrayPickler(pickle.Pickler):
    """Tensors as arrays: faster than by torch, and not through /dev/shm as `Connection.send` would."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented
