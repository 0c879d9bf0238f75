"""Normalization of RGB images for the encoder."""

from __future__ import annotations

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize_images(images: Tensor, *, channel_dim: int = -3) -> Tensor:
    """RGB values 0..255 minus ImageNet's mean over its standard deviation, float32, same memory layout.

    Args:
        images: uint8 or float values in 0..255, any shape with 3 channels at `channel_dim`.
        channel_dim: the channel axis; -3 is `[..., 3, H, W]`.
    """
    shape = [1] * images.dim()
    shape[channel_dim] = 3
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).mul(255.0).view(shape)
    std = torch.tensor(IMAGENET_STD, device=images.device).mul(255.0).view(shape)
    return (images.to(torch.float32) - mean) / std
