"""Training clips from still images: a square under a homography that changes smoothly over time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vosnet.transforms.crop import Frames, resize_short_side

_CORNERS = ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))  # x, y; clockwise from the top left


def corner_path(generator: torch.Generator, num_frames: int, strength: float) -> Tensor:
    """Corners of a moving unit square, [T, 4, 2] as (x, y), in units of its side.

    Zhu et al. 2020 use "simple homography transformations"; their kinds and sizes are ours: a shift of up to
    `strength`, a rotation of up to `strength` radians, scaling by up to exp(strength), and a shift of each
    corner of up to strength / 4. Each is a quadratic Bezier curve over time, so that motion is smooth and
    does not repeat.

    Args:
        generator: consumed by 36 numbers.
        num_frames: T.
        strength: 0 is no motion.
    """
    control = (torch.rand((3, 12), generator=generator, dtype=torch.float64) * 2 - 1) * strength
    u = torch.linspace(0, 1, num_frames, dtype=torch.float64)[:, None]
    moved = (1 - u) ** 2 * control[0] + 2 * u * (1 - u) * control[1] + u**2 * control[2]
    turn, growth, shift, bend = torch.split(moved, [1, 1, 2, 8], dim=1)
    square = torch.tensor(_CORNERS, dtype=torch.float64)
    cosine, sine = torch.cos(turn) * growth.exp(), torch.sin(turn) * growth.exp()
    x, y = square[:, 0], square[:, 1]
    turned = torch.stack([cosine * x - sine * y, sine * x + cosine * y], dim=2)
    path: Tensor = turned + shift[:, None] + rearrange(bend, "t (corner xy) -> t corner xy", xy=2) / 4
    return path


def place_path(corners: Tensor, side: float, size: tuple[int, int], place: Tensor) -> Tensor:
    """The path in pixels, placed entirely inside a frame.

    Args:
        corners: from `corner_path`, [T, 4, 2].
        side: of the square in pixels; reduced if the path would not fit otherwise.
        size: (H, W) of the frame.
        place: position within the free space, (x, y) in [0, 1].

    Returns:
        Corners as (x, y) with pixel centers at whole numbers, [T, 4, 2].
    """
    room = torch.tensor([size[1] - 1, size[0] - 1], dtype=corners.dtype)
    low, high = corners.flatten(0, 1).amin(0), corners.flatten(0, 1).amax(0)
    scale = min(side, float((room / (high - low)).min()))
    return (corners - low) * scale + place * (room - (high - low) * scale)


def warp_still(frame: Frames, corners: Tensor, crop_size: int) -> Tensor:
    """One image seen through a path of squares.

    The image is first scaled down, with antialiasing, to about the resolution of the result, and then
    sampled bilinearly.

    Args:
        frame: RGB, [H, W, 3] uint8.
        corners: from `place_path`, [T, 4, 2].
        crop_size: side of the result in pixels.

    Returns:
        [T, crop_size, crop_size, 3] uint8.
    """
    H, W = frame.shape[:2]
    sides = (corners - corners.roll(1, 1)).norm(dim=2)
    shrink = max(1.0, float(sides.mean()) / crop_size)
    small = resize_short_side(frame, math.ceil(min(H, W) / shrink))
    h, w = small.shape[:2]
    factor = torch.tensor([w / W, h / H], dtype=corners.dtype)
    points = (corners + 0.5) * factor - 0.5  # pixel centers at whole numbers in both
    grid = _square_grid(_square_to(points), crop_size)  # [T, crop, crop, 2] in pixels
    limit = torch.tensor([w - 1, h - 1], dtype=grid.dtype)
    unit = (grid / limit * 2 - 1).to(torch.float32)
    image = rearrange(torch.from_numpy(small.copy()), "h w c -> c h w").to(torch.float32)
    images = image.expand(len(corners), -1, -1, -1)
    seen = F.grid_sample(images, unit, mode="bilinear", padding_mode="border", align_corners=True)
    return rearrange(seen.round().clamp(0, 255).to(torch.uint8), "t c h w -> t h w c").contiguous()


def _square_to(points: Tensor) -> Tensor:
    """Homographies from the unit square around 0 to quadrilaterals [T, 4, 2]; [T, 3, 3]."""
    x, y = torch.tensor(_CORNERS, dtype=points.dtype).unbind(1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    rows = []
    for target in points:
        u, v = target.unbind(1)
        upper = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], dim=1)
        lower = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], dim=1)
        solved = torch.linalg.solve(torch.cat([upper, lower]), torch.cat([u, v]))
        rows.append(torch.cat([solved, solved.new_ones(1)]).view(3, 3))
    return torch.stack(rows)


def _square_grid(homography: Tensor, crop_size: int) -> Tensor:
    """Where a homography maps the pixel centers of the square, [T, crop_size, crop_size, 2]."""
    center = (torch.arange(crop_size, dtype=homography.dtype) + 0.5) / crop_size - 0.5
    y, x = torch.meshgrid(center, center, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ homography.transpose(1, 2)[:, None]
    return points[..., :2] / points[..., 2:]
