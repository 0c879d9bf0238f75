"""What the training loop knows of an objective."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from vosnet.transforms import Clip


class ObjectiveOutput(NamedTuple):
    """The loss of one batch.

    Args:
        total: what is minimized, scalar float32 with gradient.
        terms: named scalars for the log, detached.
    """

    total: Tensor
    terms: dict[str, Tensor]


class Objective(nn.Module):
    """A loss that owns the networks it trains; `encoder` is the one that is kept after training."""

    encoder: nn.Module

    def forward(self, clip: Clip) -> ObjectiveOutput:
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after every optimizer step that was taken, for networks that follow the trained one."""

    def compile_graphs(self, backend: str = "inductor") -> None:
        """Compile the networks and the loss in place, whole graphs only; parameter names do not change."""
        raise NotImplementedError
