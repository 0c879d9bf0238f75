"""The machine under a command: device, out-of-memory errors, the ranks of torchrun, hashes of weights."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vosnet.errors import UsageError, VosnetError

_CPU_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory")
_LOST_RANK_WORDS = ("Connection", "closed", "imed out", "timeout", "NCCL", "gloo", "Gloo")


def choose_device(name: str) -> torch.device:
    """The device that `name` means.

    Args:
        name: "auto" (a CUDA device where there is one, else the CPU), "cpu", "cuda" or "cuda:N". Under
            torchrun "auto" and "cuda" are the GPU of this process's local rank.

    Raises:
        UsageError: unknown, or CUDA without a usable device (E162).
    """
    if name == "auto" and not torch.cuda.is_available():
        return torch.device("cpu")
    if name in {"auto", "cuda"} and torch.cuda.is_available():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return torch.device("cuda")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError("E162", f"device {name!r} is unknown", "Use auto, cpu, cuda or cuda:0.") from error
    if device.type not in {"cpu", "cuda"}:
        raise UsageError("E162", f"device {name!r} is not supported", "Use auto, cpu, cuda or cuda:0.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            "E162",
            f"device {name!r} is not there: this torch sees {torch.cuda.device_count()} CUDA devices",
            "Use --device auto or cpu.",
        )
    return device


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error of torch or Python says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _CPU_WORDS)


def peak_memory_bytes(device: torch.device) -> int | None:
    """Most memory in use so far: of the GPU, or of this process; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def state_hash(tensors: Mapping[str, Tensor]) -> str:
    """Hexadecimal SHA-256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Ranks:
    """This process among those that torchrun started; every method is a no-op in a single process.

    Args:
        rank: 0 to size - 1; rank 0 writes the files.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the files and reports."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Elementwise sum of `values` over the ranks; every rank gets the same numbers.

        Raises:
            VosnetError: another rank is gone (E109).
        """
        if self.size == 1:
            return values
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        with lost_rank_is_an_error():
            dist.all_reduce(tensor)
        reduced: list[float] = tensor.tolist()
        return reduced

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, by rank.

        Raises:
            VosnetError: another rank is gone (E109).
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with lost_rank_is_an_error():
            dist.all_gather_object(values, value)
        return values

    def check_same(self, what: str, value: str) -> None:
        """Compare a text over all ranks.

        Raises:
            UsageError: it differs, with each rank's value (E108).
        """
        values = self.gather(value)
        if len(set(values)) > 1:
            shown = ", ".join(f"rank {rank}: {str(text)[:16]}" for rank, text in enumerate(values))
            hint = "Start every rank with the same recipe, overrides and data."
            raise UsageError("E108", f"{what} differs over the ranks ({shown})", hint)

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            with lost_rank_is_an_error():
                dist.barrier()


def current_ranks() -> Ranks:
    """This process's place in the process group; the only one without a group."""
    if not (dist.is_available() and dist.is_initialized()):
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size())


@contextlib.contextmanager
def joined_ranks(backend: str, timeout_s: float) -> Iterator[Ranks]:
    """Join the ranks that torchrun started (RANK, WORLD_SIZE), or be the only one; leave at the end.

    Args:
        backend: "gloo" or "nccl".
        timeout_s: how long a rank waits for the others. A dead peer is noticed at once all the same: gloo
            sees its connection close, and torchrun ends the other ranks.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    dist.init_process_group(backend, timeout=dt.timedelta(seconds=timeout_s))
    try:
        yield Ranks(int(os.environ.get("RANK", "0")), size)
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def lost_rank_is_an_error() -> Iterator[None]:
    """Turn a failed collective into an error that says what happened and what to do (E109)."""
    try:
        yield
    except (RuntimeError, dist.DistBackendError) as error:
        text = str(error)
        if not dist.is_initialized() or not any(word in text for word in _LOST_RANK_WORDS):
            raise
        hint = "Look at that rank's output; resume with --resume auto."
        raise VosnetError(
            "E109", f"another rank stopped answering: {text.splitlines()[0][:160]}", hint
        ) from error
