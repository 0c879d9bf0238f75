"""What the training loop knows of an objective."""

from __future__ import annotations

from collections.abc import Iterable
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

    def misfits(self, *, clip_len: int, color_space: str) -> Iterable[tuple[str, str]]:
        """Settings that the rest of the recipe does not allow, as (key of the objective, message).

        Args:
            clip_len: frames per clip.
            color_space: what the encoder sees.
        """
        del clip_len, color_space
        return ()

    def after_step(self) -> None:
        """Called after every optimizer step that was taken, for networks that follow the trained one."""

    def compile_graphs(self, backend: str = "inductor") -> None:
        """Compile the networks and the loss in place, whole graphs only; parameter names do not change."""
        raise NotImplementedError
