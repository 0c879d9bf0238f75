"""The momentum encoder: a slow copy of the trained one, for the frames that are read."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from vosnet.errors import SettingError

MemoryNorm = Literal["batch", "copy", "average"]


class MomentumEncoder(nn.Module):
    """theta_r <- m theta_r + (1 - m) theta_q, Eq. 8 of Zhu et al. 2020; it starts as a copy.

    Its parameters get no gradient, so the frames it encodes keep no activations.

    Args:
        encoder: the trained network.
        momentum: m, in [0, 1); 0 follows at once.
        norm: batch normalization, on which the paper is silent. "batch": by the statistics of its own batch,
            as the trained network; its running statistics are its own. "copy": by the trained network's
            running statistics. "average": by running statistics that follow with momentum, as parameters do.
    """

    def __init__(self, encoder: nn.Module, *, momentum: float = 0.999, norm: MemoryNorm = "batch") -> None:
        super().__init__()
        check_momentum(momentum)
        self.network = copy.deepcopy(encoder).requires_grad_(requires_grad=False)
        self.momentum, self.norm = momentum, norm
        self.train(encoder.training)

    def train(self, mode: bool = True) -> MomentumEncoder:  # noqa: FBT001 - the signature of Module
        super().train(mode)
        if self.norm != "batch":
            self.network.eval()
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features of images, [N, C, h, w], without gradient."""
        features: Tensor = self.network(images)
        return features

    @torch.no_grad()
    def follow(self, encoder: nn.Module) -> None:
        """Move towards `encoder` by one step."""
        own, others = ([p.detach() for p in each.parameters()] for each in (self.network, encoder))
        torch._foreach_lerp_(own, others, 1 - self.momentum)
        if self.norm == "batch":
            return
        for mine, theirs in zip(self.network.buffers(), encoder.buffers(), strict=True):
            if self.norm == "average" and mine.is_floating_point():
                mine.lerp_(theirs, 1 - self.momentum)
            else:
                mine.copy_(theirs)


def check_momentum(momentum: float) -> None:
    """Check that a momentum lies in [0, 1).

    Raises:
        SettingError: it does not.
    """
    if not 0 <= momentum < 1:
        raise SettingError("momentum", f"must lie in [0, 1), got {momentum}")
