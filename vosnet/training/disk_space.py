"""Whether the checkpoints of a run will fit on its disk, asked before hours are spent."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from vosnet.training.checkpoint import KEPT
from vosnet.training.trainer import Trainer

_RECORDS_BYTES = 50_000_000  # metrics, logs, curves of a long run


def checkpoint_bytes(trainer: Trainer) -> int:
    """Size of one checkpoint: the encoder's weights, and all states from which training continues.

    The optimizer's moments are counted although they only come into being with the first step.
    """
    objective = _bytes(trainer.objective.state_dict().values())
    encoder = _bytes(trainer.encoder.state_dict().values())
    moments = 1 if isinstance(trainer.optimizer, torch.optim.SGD) else 2
    average = 0 if trainer.average is None else encoder
    return encoder + objective + moments * _bytes(trainer.parameters) + average


def warn_when_low(folder: Path, trainer: Trainer, present: int, say: Callable[[str], None]) -> None:
    """Say so when the disk of `folder` has less room than the run's checkpoints will take.

    At most the last `KEPT`, the best and the one being written exist at a time.

    Args:
        folder: the run folder.
        trainer: whose states will be saved.
        present: checkpoints that lie there already.
        say: told the warning.
    """
    one = checkpoint_bytes(trainer)
    needed = one * max(1, KEPT + 2 - present) + _RECORDS_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        say(
            f"little disk space: {free / 1e6:,.0f} MB are free for {folder}, and checkpoints of "
            f"{one / 1e6:,.0f} MB each will need about {needed / 1e6:,.0f} MB in all"
        )


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
