"""What a run needs to know about the other ranks; everything is a no-op in a single process."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist

from vosnet.errors import UsageError, VosnetError

# Long enough for the main rank to validate while the others wait. A dead peer is noticed at once all the
# same: gloo sees its connection close, and torchrun ends the other ranks.
TIMEOUT_S = 1800.0


@dataclasses.dataclass(frozen=True)
class World:
    """This process among the ranks of a run.

    Args:
        rank: 0 to size - 1; rank 0 writes the files.
        size: number of processes.
        device: where this rank computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the files."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Elementwise sum of `values` over the ranks; every rank gets the same numbers.

        Raises:
            VosnetError: another rank is gone.
        """
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        with lost_rank_is_an_error():
            dist.all_reduce(tensor)
        reduced: list[float] = tensor.tolist()
        return reduced

    def check_same(self, what: str, value: str) -> None:
        """Compare a text over all ranks.

        Raises:
            UsageError: it differs, with each rank's value.
        """
        if self.size == 1:
            return
        values: list[str | None] = [None] * self.size
        with lost_rank_is_an_error():
            dist.all_gather_object(values, value)
        if len(set(values)) > 1:
            shown = ", ".join(f"rank {rank}: {str(text)[:16]}" for rank, text in enumerate(values))
            hint = "Start every rank with the same recipe, overrides and data."
            raise UsageError("E108", f"{what} differs over the ranks ({shown})", hint)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            with lost_rank_is_an_error():
                dist.barrier()


@contextlib.contextmanager
def lost_rank_is_an_error() -> Iterator[None]:
    """Turn a failed collective into an error that says what happened and what to do."""
    try:
        yield
    except (RuntimeError, dist.DistBackendError) as error:
        text = str(error)
        if not dist.is_initialized() or not any(
            word in text for word in ("Connection", "closed", "imed out", "timeout", "NCCL", "gloo", "Gloo")
        ):
            raise
        hint = "Look at that rank's output; resume with --resume auto."
        raise VosnetError(
            "E109", f"another rank stopped answering: {text.splitlines()[0][:160]}", hint
        ) from error


@contextlib.contextmanager
def joined_world(device: str) -> Iterator[World]:
    """Join the ranks that torchrun started, or be the only one; leaves the group at the end.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N"; with several ranks each takes the GPU of its local rank.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")), size)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        yield World(0, 1, chosen)
        return
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=dt.timedelta(seconds=TIMEOUT_S))
    try:
        yield World(rank, size, chosen)
    finally:
        dist.destroy_process_group()


def _device(name: str, local_rank: int, size: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("E107", "--device cuda, but torch sees no CUDA device", "Use --device cpu or auto.")
    if name == "cuda":
        return torch.device("cuda", local_rank if size > 1 else 0)
    return torch.device(name)
