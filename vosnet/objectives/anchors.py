"""Feature vectors sampled on a rigid grid of one frame."""

from __future__ import annotations

import torch
from torch import Tensor


def grid_index(draws: Tensor, h: int, w: int, grid_size: int) -> Tensor:
    """Cells of a grid_size x grid_size lattice that is shifted rigidly per clip, [B, grid_size ** 2].

    Args:
        draws: uniform numbers in [0, 1) for the vertical and horizontal shift, [B, 2].
        h: grid height in cells.
        w: grid width in cells.
        grid_size: lattice points per side, h // grid_size and w // grid_size cells apart.

    Returns:
        Row-major flat indices `y * w + x`.

    Raises:
        ValueError: the lattice has more points than the frame has cells.
    """
    step_y, step_x = h // grid_size, w // grid_size
    if step_y < 1 or step_x < 1:
        raise ValueError(f"grid_size {grid_size} needs at least as many cells per side, got {h} x {w}")
    shift = (draws * draws.new_tensor([step_y, step_x])).to(torch.int64)  # [B, 2]
    lattice = torch.arange(grid_size, device=draws.device)
    y = lattice[None, :, None] * step_y + shift[:, 0, None, None]
    x = lattice[None, None, :] * step_x + shift[:, 1, None, None]
    return (y * w + x).flatten(1)


def take_cells(feature: Tensor, index: Tensor) -> Tensor:
    """The feature vectors at `index`.

    Args:
        feature: one frame per clip, cells flattened, [B, P, C].
        index: flat cell indices, [B, N].

    Returns:
        [B, N, C].
    """
    return feature.gather(1, index[:, :, None].expand(-1, -1, feature.shape[2]))
