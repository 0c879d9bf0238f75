"""Color jitter in Lab, where brightness is a shift, contrast and saturation scale, and hue rotates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NUM_DRAWS = 5


def jitter_lab(frames: Tensor, draws: Tensor, *, probability: float, strength: float) -> Tensor:
    """Change lightness, contrast, saturation and hue of some frames.

    The papers state only the probability. Ours: brightness shifts L by up to `strength` of its half range,
    contrast scales L about the frame's mean, saturation scales a and b, hue rotates them by up to `strength`
    half turns; each amount is uniform.

    Args:
        frames: scaled Lab, [N, 3, H, W].
        draws: uniform numbers in [0, 1), [N, NUM_DRAWS].
        probability: share of the frames that are changed.
        strength: largest change; 0 changes nothing.
    """
    chosen = (draws[:, 0] < probability).to(frames.dtype)
    amount = (draws[:, 1:] * 2 - 1) * strength * chosen[:, None]
    brightness, contrast, saturation, hue = (
        each[:, None, None] for each in amount.to(frames.dtype).unbind(1)
    )
    lightness, a, b = frames.unbind(1)
    mean = lightness.mean(dim=(1, 2), keepdim=True)
    lightness = mean + (1 + contrast) * (lightness - mean) + brightness
    cosine, sine = (1 + saturation) * torch.cos(math.pi * hue), (1 + saturation) * torch.sin(math.pi * hue)
    return torch.stack([lightness, cosine * a - sine * b, sine * a + cosine * b], dim=1)
