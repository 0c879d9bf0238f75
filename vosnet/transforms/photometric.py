"""Color jitter as one 3x3 matrix and one offset per image, cheap enough for every training step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclass(frozen=True)
class ColorJitter:
    """Strengths of the color changes.

    Attributes:
        brightness: factor within 1 +- brightness.
        contrast: factor within 1 +- contrast, about the image's mean luma.
        saturation: factor within 1 +- saturation.
        hue: rotation of the color circle within +- hue, in whole turns.
        probability: of changing an image's colors at all.
        gray_probability: of making it gray.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    probability: float = 1.0
    gray_probability: float = 0.0

    DRAWS = 6  # uniform numbers per image


def jitter_colors(images: Tensor, draws: Tensor, jitter: ColorJitter) -> Tensor:
    """Random brightness, contrast, saturation and hue; some images become gray.

    Differs: torchvision clips after each of the four; here their product is applied and clipped once.

    Args:
        images: RGB in 0..1, [N, 3, H, W].
        draws: uniform in [0, 1), [N, ColorJitter.DRAWS]; each column has a fixed use.
        jitter: the strengths.

    Returns:
        [N, 3, H, W] in 0..1.
    """
    draws = draws.to(images)
    swing = 2 * draws[:, :4] - 1
    active = draws[:, 4] < jitter.probability
    bright, contrast, saturation = (
        torch.where(active, 1 + strength * swing[:, i], 1.0)
        for i, strength in enumerate((jitter.brightness, jitter.contrast, jitter.saturation))
    )
    saturation = torch.where(draws[:, 5] < jitter.gray_probability, 0.0, saturation)
    hue = torch.where(active, jitter.hue * swing[:, 3], 0.0)
    luma = torch.tensor(_LUMA).to(images)
    gray = luma.expand(3, 3)
    color = torch.lerp(gray, torch.eye(3).to(images), saturation[:, None, None]) @ _hue_turn(hue)
    matrix = (bright * contrast)[:, None, None] * color  # [N, 3, 3]
    # hue and saturation keep the luma, so only brightness moves the mean that contrast scales about
    mean = torch.einsum("nchw,c->n", images, luma) / images.shape[-2:].numel() * bright
    offset = ((1 - contrast) * mean)[:, None, None, None]
    return (torch.einsum("nij,njhw->nihw", matrix, images) + offset).clamp(0, 1)


def _hue_turn(turns: Tensor) -> Tensor:
    """Rotations of the chroma plane of YIQ, as RGB matrices [N, 3, 3]."""
    to_yiq = torch.tensor(_YIQ).to(turns)
    angle = 2 * math.pi * turns
    cos, sin, one, zero = angle.cos(), angle.sin(), torch.ones_like(angle), torch.zeros_like(angle)
    rows = [torch.stack(row, -1) for row in ((one, zero, zero), (zero, cos, -sin), (zero, sin, cos))]
    turn: Tensor = torch.linalg.inv(to_yiq) @ torch.stack(rows, -2) @ to_yiq
    return turn
