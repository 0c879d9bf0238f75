"""Small training videos on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_frames(folder: Path, num_frames: int, *, seed: int = 0, size: tuple[int, int] = (40, 56)) -> Path:
    """A folder of JPEGs whose brightness tells the frame number."""
    folder.mkdir(parents=True, exist_ok=True)
    texture = np.random.default_rng(seed).integers(0, 100, (*size, 3))
    for t in range(num_frames):
        Image.fromarray((texture + 4 * t).astype(np.uint8)).save(folder / f"{t:05d}.jpg", quality=95)
    return folder
