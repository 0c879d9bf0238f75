"""Random textures with structure at every scale, so that correspondence can be learned and tested."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def random_palette(rng: np.random.Generator, num_colors: int = 4) -> NDArray[np.float32]:
    """Colors of one object, [num_colors, 3] in 0..255, spread in brightness so that patterns are visible."""
    brightness = rng.permutation(np.linspace(40, 215, num_colors))
    tint = rng.uniform(-70, 70, (num_colors, 3))
    return np.clip(brightness[:, None] + tint, 0, 255).astype(np.float32)


def random_texture(
    rng: np.random.Generator,
    size: int,
    palette: NDArray[np.float32],
    octaves: tuple[int, ...] = (3, 6, 12, 24),
) -> NDArray[np.float32]:
    """A texture of `size` x `size` pixels, [size, size, 3] in 0..255.

    Smooth noise of several octaves (cells per side) selects the palette color; fine noise modulates the
    brightness.
    """
    height = np.sum([_noise(rng, size, cells) / cells**0.5 for cells in octaves], axis=0)
    rank = np.argsort(np.argsort(height, axis=None)).reshape(height.shape) / height.size
    position = rank * len(palette)
    low = np.minimum(position.astype(np.int64), len(palette) - 1)
    blend = np.clip((position - low - 0.7) / 0.3, 0, 1)[..., None].astype(np.float32)
    color = palette[low] * (1 - blend) + palette[np.minimum(low + 1, len(palette) - 1)] * blend
    shade = 1 + 0.15 * _noise(rng, size, size // 8)[..., None]
    texture: NDArray[np.float32] = np.clip(color * shade, 0, 255).astype(np.float32)
    return texture


def _noise(rng: np.random.Generator, size: int, cells: int) -> NDArray[np.float32]:
    grid = rng.standard_normal((cells + 1, cells + 1)).astype(np.float32)
    return np.asarray(cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC), np.float32)
