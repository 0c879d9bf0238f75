"""CIE Lab, the color space of MAST and the memory tracker: lightness and two chroma channels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vosnet.transforms.normalize import normalize_images

ColorSpace = Literal["rgb", "lab"]
COLOR_SPACES = ("rgb", "lab")

# sRGB primaries, D65 (IEC 61966-2-1). The white point is the sum of each row: gray has no chroma at all.
_RGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_EPSILON = (6 / 29) ** 3


def rgb_to_lab(images: Tensor, *, channel_dim: int = -3) -> Tensor:
    """CIE Lab of sRGB values: L in [0, 100], a and b about [-100, 100], float32.

    Args:
        images: uint8 or float values in 0..255, any shape with 3 channels at `channel_dim`.
        channel_dim: the channel axis; -3 is `[..., 3, H, W]`.
    """
    linear = _linear_table(images.device)[images.long()] if images.dtype == torch.uint8 else _linear(images)
    red, green, blue = linear.unbind(channel_dim)
    x, y, z = (_root((row[0] * red + row[1] * green + row[2] * blue) / sum(row)) for row in _RGB_TO_XYZ)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=channel_dim)


def scaled_lab(images: Tensor) -> Tensor:
    """Lab scaled for encoders with `color_space: lab`: (L - 50) / 50, a / 127, b / 127, [..., 3, H, W]."""
    offset = torch.tensor([50.0, 0.0, 0.0], device=images.device)[:, None, None]
    scale = torch.tensor([50.0, 127.0, 127.0], device=images.device)[:, None, None]
    return (rgb_to_lab(images) - offset) / scale


def encoder_input(images: Tensor, color_space: ColorSpace) -> Tensor:
    """Images normalized for an encoder of that color space, float32.

    Args:
        images: RGB, [..., 3, H, W], uint8 or float values in 0..255.
        color_space: "rgb": `normalize_images`; "lab": `scaled_lab`.
    """
    return scaled_lab(images) if color_space == "lab" else normalize_images(images)


def _linear(images: Tensor) -> Tensor:
    value = images.to(torch.float32) / 255
    return torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _linear_table(device: torch.device) -> Tensor:
    """`_linear` of all 256 uint8 values: a lookup is cheaper than a power per pixel."""
    return _linear(torch.arange(256, device=device))


def _root(t: Tensor) -> Tensor:
    """Cube root, with CIE's linear segment near black."""
    return torch.where(t > _EPSILON, t.clamp(min=_EPSILON) ** (1 / 3), t / (3 * (6 / 29) ** 2) + 4 / 29)
