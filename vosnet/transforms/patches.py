"""Overlapping patches of randomly cropped frames, the nodes of CRW's space-time graph."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

ATTEMPTS = 10
DRAWS_PER_BOX = 2 * ATTEMPTS + 2


def random_boxes(draws: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """Random boxes in a square, drawn like torchvision's `RandomResizedCrop`.

    Uniform area and log-uniform aspect ratio, drawn up to `ATTEMPTS` times until the box fits into the square
    (the whole square if none does), then a uniform position.
    Differs: positions and sizes are continuous, where torchvision takes whole pixels.

    Args:
        draws: uniform numbers in [0, 1), [..., DRAWS_PER_BOX].
        scale: smallest and largest area, shares of the square.
        ratio: smallest and largest width / height.

    Returns:
        left, top, width, height, with the square spanning [0, 1], [..., 4].
    """
    area, log_ratio = draws[..., :ATTEMPTS], draws[..., ATTEMPTS : 2 * ATTEMPTS]
    area = scale[0] + (scale[1] - scale[0]) * area
    aspect = torch.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * log_ratio)
    sizes = torch.stack([area * aspect, area / aspect], dim=-1).sqrt()  # [..., ATTEMPTS, 2]
    fits = (sizes <= 1).all(dim=-1)
    first = fits.to(torch.int64).argmax(dim=-1, keepdim=True)
    fitting = sizes.gather(-2, first[..., None].expand(*first.shape, 2))[..., 0, :]
    size = torch.where(fits.any(dim=-1, keepdim=True), fitting, 1.0)
    return torch.cat([draws[..., 2 * ATTEMPTS :] * (1 - size), size], dim=-1)


def patches_per_side(side: int, patch_size: int, patch_stride: int) -> int:
    """How many windows of `patch_size` pixels fit into `side` pixels at that stride."""
    return 0 if side < patch_size else (side - patch_size) // patch_stride + 1


def cut_patches(
    frames: Tensor, frame_boxes: Tensor, patch_boxes: Tensor, *, patch_size: int, patch_stride: int
) -> Tensor:
    """Crop and resize every frame, cut it into overlapping patches, then crop and resize each patch.

    Both crops only enlarge. Differs: the authors resize twice; here the two maps are composed and each patch
    is sampled from the frame by one bilinear interpolation, which blurs less.

    Args:
        frames: [F, 3, S, S] float.
        frame_boxes: part of each frame, from `random_boxes`, [F, 4].
        patch_boxes: part of each patch, [F, N, 4] with N = `patches_per_side` ** 2, row-major.
        patch_size: side of a patch in pixels.
        patch_stride: distance of neighboring patches in pixels.

    Returns:
        [F, N, 3, patch_size, patch_size].
    """
    S = frames.shape[-1]
    per_side = patches_per_side(S, patch_size, patch_stride)
    corner = torch.arange(per_side, device=frames.device) * (patch_stride / S)
    along_x, along_y = corner.repeat(per_side), corner.repeat_interleave(per_side)  # [N], row-major
    centers = (torch.arange(patch_size, device=frames.device) + 0.5) / patch_size
    axes = []
    for axis, start in enumerate((along_x, along_y)):
        in_patch = patch_boxes[..., axis, None] + patch_boxes[..., axis + 2, None] * centers
        in_crop = start[:, None] + in_patch * (patch_size / S)  # [F, N, patch_size]
        in_frame = frame_boxes[:, axis, None, None] + frame_boxes[:, axis + 2, None, None] * in_crop
        axes.append(2 * in_frame - 1)
    x, y = axes[0][:, :, None, :], axes[1][:, :, :, None]
    grid = torch.stack([x.expand(-1, -1, patch_size, -1), y.expand(-1, -1, -1, patch_size)], dim=-1)
    grid = rearrange(grid, "f n y x xy -> f (n y) x xy").to(frames.dtype)
    patches = F.grid_sample(frames, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return rearrange(patches, "f c (n y) x -> f n c y x", y=patch_size)
