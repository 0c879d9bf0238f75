"""The initial weights of every network."""

from __future__ import annotations

import torch
from torch import nn


def he_initialize(network: nn.Module, generator: torch.Generator | None = None) -> None:
    """He initialization (fan out, ReLU) of every convolution, in the order of the modules; biases start at 0.

    Args:
        network: changed in place.
        generator: where the numbers come from; None: torch's global random state.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
