"""Similarity transforms between the two views of a clip: a flip, then a zoom into part of the frame.

A transform is `theta` [B, 2, 3] as `affine_grid` reads it with `align_corners=False`: it maps a point of
the output (regularizing view) to the input (main view), where the frame spans [-1, 1] in both:

    x_in = flip * (scale * x_out + shift_x)        y_in = scale * y_out + shift_y

The flip happens before the crop, so it also multiplies the horizontal shift.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def similarity_theta(scale: Tensor, shift_x: Tensor, shift_y: Tensor, flip: Tensor) -> Tensor:
    """Output-to-input matrices of flip-then-zoom, [B, 2, 3].

    Args:
        scale: side of the visible part relative to the frame, [B]; below 1 zooms in.
        shift_x: center of the visible part in the flipped frame, [B], frame spans [-1, 1].
        shift_y: the same, vertically.
        flip: mirror left to right, [B] bool.
    """
    sign = torch.where(flip, -1.0, 1.0).to(scale)
    zero = torch.zeros_like(scale)
    row_x = torch.stack([sign * scale, zero, sign * shift_x], dim=-1)
    row_y = torch.stack([zero, scale, shift_y], dim=-1)
    return torch.stack([row_x, row_y], dim=-2)


def random_similarity(
    generator: torch.Generator, *, zoom: tuple[float, float] = (0.5, 1.0), flip_probability: float = 0.5
) -> Tensor:
    """One random flip-then-zoom that never looks outside the frame, theta [2, 3]: DUL's second view.

    Differs: the position of the visible part is continuous, where the authors' code takes whole pixels.

    Args:
        generator: always advanced by four numbers.
        zoom: smallest and largest side of the visible part relative to the frame, uniform, at most 1.
        flip_probability: how often the view is mirrored.

    Raises:
        ValueError: the zoom range is not within (0, 1].
    """
    low, high = zoom
    if not 0 < low <= high <= 1:
        raise ValueError(f"zoom must be 0 < low <= high <= 1 (it may not look outside the frame), got {zoom}")
    flip, size, x, y = torch.rand(4, generator=generator, dtype=torch.float64)
    scale = low + (high - low) * size
    reach = 1 - scale
    theta = similarity_theta(scale, (2 * x - 1) * reach, (2 * y - 1) * reach, flip < flip_probability)
    return theta.to(torch.float32)


def invert_similarity(theta: Tensor) -> Tensor:
    """The transform that undoes `theta` (input to output), [B, 2, 3]."""
    inverse = torch.linalg.inv(theta[..., :2])
    return torch.cat([inverse, -inverse @ theta[..., 2:]], dim=-1)


def nearest_index(theta: Tensor, h: int, w: int) -> Tensor:
    """The cell of an h x w grid that each output cell copies in nearest-neighbor warping, [B, h * w].

    Row-major `y * w + x`; -1 where the transform looks outside the grid. The same cells as `affine_grid` and
    `grid_sample(mode="nearest", padding_mode="zeros", align_corners=False)`.
    """
    grid = F.affine_grid(theta, [theta.shape[0], 1, h, w], align_corners=False)
    x = torch.round(((grid[..., 0] + 1) * w - 1) / 2)
    y = torch.round(((grid[..., 1] + 1) * h - 1) / 2)
    valid = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    return torch.where(valid, y * w + x, -1.0).to(torch.int64).flatten(1)


def warp_nearest(feature: Tensor, index: Tensor) -> Tensor:
    """Copy cells of every frame by `index`; cells with -1 become zero.

    Args:
        feature: [B, T, C, h, w].
        index: from `nearest_index`, [B, h * w].

    Returns:
        [B, T, C, h, w].
    """
    source = index.clamp(min=0)[:, None, None].expand(-1, *feature.shape[1:3], -1)
    warped = feature.flatten(3).gather(3, source) * (index >= 0)[:, None, None].to(feature.dtype)
    return warped.view(feature.shape)


def warp_images(frames: Tensor, theta: Tensor) -> Tensor:
    """Frames warped by `theta`, bilinear, with the same transform for all frames of a clip.

    Args:
        frames: [B, T, 3, H, W] float.
        theta: output to input, [B, 2, 3].

    Returns:
        [B, T, 3, H, W]; the border pixel is repeated outside the frame.
    """
    B, _, _, H, W = frames.shape
    grid = F.affine_grid(theta, [B, 1, H, W], align_corners=False).to(frames.dtype)
    images = frames.flatten(1, 2)  # [B, T * 3, H, W]: one set of coordinates serves every frame and channel
    warped = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return warped.view(frames.shape)
