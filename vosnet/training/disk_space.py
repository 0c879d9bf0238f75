"""Whether the disk has room for a run's checkpoints, checked before training."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from vosnet.training.step import OptimizerStep
from vosnet.training.versions import KEPT

_RECORDS_BYTES = 50_000_000  # metrics, logs, curves of a long run


def checkpoint_bytes(step: OptimizerStep) -> int:
    """Size of one checkpoint: the encoder's weights and the training state.

    The optimizer's moments are counted although they do not exist before the first step.
    """
    objective = _bytes(step.objective.state_dict().values())
    encoder = _bytes(step.encoder.state_dict().values())
    moments = 1 if isinstance(step.optimizer, torch.optim.SGD) else 2
    average = 0 if step.average is None else encoder
    return encoder + objective + moments * _bytes(step.parameters) + average


def warn_when_low(folder: Path, step: OptimizerStep, present: int, say: Callable[[str], None]) -> None:
    """Say so when the disk of `folder` has less room than the run's checkpoints will take.

    At most `KEPT` checkpoints, the best one and the one being written exist at a time.

    Args:
        folder: the run folder.
        step: what will be saved.
        present: number of checkpoints already there.
        say: told the warning.
    """
    one = checkpoint_bytes(step)
    needed = one * max(1, KEPT + 2 - present) + _RECORDS_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        say(
            f"little disk space: {free / 1e6:,.0f} MB are free for {folder}, and checkpoints of "
            f"{one / 1e6:,.0f} MB each will need about {needed / 1e6:,.0f} MB in all"
        )


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
