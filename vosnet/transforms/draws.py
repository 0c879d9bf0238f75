"""Counter-based random numbers: any amount, derived from a sample's own few draws."""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, the increment of SplitMix64
_MIX = (-4658895280553007687, -7723592293110705685)  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def more_draws(draws: Tensor, count: int, salt: int) -> Tensor:
    """Uniform numbers that depend on `draws` and `salt` alone: equal on every device, rank and resume.

    A counter-based generator: the finalizer of SplitMix64 (Steele et al. 2014) over the bits of a sample's
    draws and a counter.

    Args:
        draws: a sample's own numbers in [0, 1), [B, D] float32, as `Clip.draws`.
        count: numbers wanted per sample.
        salt: random stream id, one per purpose.

    Returns:
        Uniform in [0, 1), [B, count] float32.
    """
    bits = (draws.double() * 2**24).to(torch.int64)
    key = torch.full_like(bits[:, 0], salt)
    for column in bits.unbind(1):
        key = _mixed(key * _GOLDEN + column)
    counter = torch.arange(1, count + 1, device=draws.device) * _GOLDEN
    mixed = _mixed(key[:, None] + counter)
    return ((mixed >> 40) & 0xFFFFFF).to(torch.float32) / 2**24


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's finalizer in int64, whose products wrap around."""
    x = (x ^ _shifted(x, 30)) * _MIX[0]
    x = (x ^ _shifted(x, 27)) * _MIX[1]
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """`x >> by` without sign extension."""
    shifted: Tensor = (x >> by) & (2 ** (64 - by) - 1)
    return shifted
