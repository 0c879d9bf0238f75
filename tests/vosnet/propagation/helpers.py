"""A cheap encoder and scene for propagation tests."""

import numpy as np
import torch
from torch import Tensor, nn

from vosnet.propagation import Propagator

STRIDE = 8


class PatchEncoder(nn.Module):
    """Mean color, gradient energy and a fixed random mixture of each 8x8 patch; counts its calls."""

    def __init__(self, dim: int = 12) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer(
            "mix", torch.randn(dim, 3, STRIDE, STRIDE, generator=torch.Generator().manual_seed(0))
        )

    def forward(self, images: Tensor) -> Tensor:
        self.calls += len(images)
        height, width = images.shape[-2:]
        padded = nn.functional.pad(images, (0, -width % STRIDE, 0, -height % STRIDE))
        return nn.functional.conv2d(padded, self.mix, stride=STRIDE)


def make_propagator(preset: str = "dul", **options: object) -> Propagator:
    return Propagator.from_encoder(PatchEncoder(), STRIDE, preset, "cpu", **options)


def make_scene(num_frames: int = 8, size: tuple[int, int] = (48, 72), seed: int = 0) -> np.ndarray:
    """Frames [T, H, W, 3]: a smooth texture that slides over the picture, with some noise."""
    rng = np.random.default_rng(seed)
    height, width = size
    coarse = rng.uniform(0, 255, (height // 4 + 2, (width + 4 * num_frames) // 4 + 2, 3))
    wide = coarse.repeat(4, axis=0).repeat(4, axis=1)
    frames = [
        wide[:height, 2 * t : 2 * t + width] + rng.normal(0, 6, (height, width, 3)) for t in range(num_frames)
    ]
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)


def make_mask(boxes: dict[int, tuple[int, int, int, int]], size: tuple[int, int] = (48, 72)) -> np.ndarray:
    """A label map with boxes {id: (top, left, bottom, right)}; later ids lie on top."""
    mask = np.zeros(size, np.uint8)
    for i, (top, left, bottom, right) in boxes.items():
        mask[top:bottom, left:right] = i
    return mask
