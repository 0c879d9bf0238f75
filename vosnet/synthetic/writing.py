"""Generated clips on disk, as a DAVIS dataset or a video."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from vosnet.files import atomic_path, inside, write_bytes
from vosnet.masks import write_mask
from vosnet.synthetic.scene import SyntheticClip
from vosnet.video import VideoWriter


def write_davis(root: str | Path, clips: Mapping[str, SyntheticClip], *, split: str = "val") -> None:
    """Write clips as `JPEGImages/480p`, `Annotations/480p` and `ImageSets/2017/<split>.txt` below `root`.

    Raises:
        InputError: a clip's name would lead out of `root`.
        StorageError: disk full or not writable.
    """
    root = Path(root)
    for name, clip in clips.items():
        images = inside(root / "JPEGImages" / "480p", name)
        annotations = inside(root / "Annotations" / "480p", name)
        for t, (frame, mask) in enumerate(zip(clip.frames, clip.masks)):
            with atomic_path(images / f"{t:05d}.jpg") as temporary:
                Image.fromarray(frame).save(temporary, quality=92)
            write_mask(annotations / f"{t:05d}.png", np.asarray(mask))
    write_bytes(root / "ImageSets" / "2017" / f"{split}.txt", "".join(f"{n}\n" for n in clips).encode())


def write_video(path: str | Path, clip: SyntheticClip, *, fps: float = 25.0) -> None:
    """Write the frames of `clip` as an H.264 file at `fps` frames per second.

    Raises:
        StorageError: disk full or not writable.
    """
    height, width = clip.frames.shape[1:3]
    with VideoWriter(path, size=(height, width), fps=fps) as writer:
        for frame in clip.frames:
            writer.write(frame)
