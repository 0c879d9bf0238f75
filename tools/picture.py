"""The animation in the README: the first mask of a generated clip, carried on by the shipped weights."""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from vosnet import Propagator, files
from vosnet.export.overlay import draw_mask, object_colors
from vosnet.synthetic import make_clip

SIZE = (360, 200)  # width and height in pixels
OPACITY = 0.6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images/propagated.gif"))
    parser.add_argument("--seed", type=int, default=20, help="of the generated clip (default 20)")
    parser.add_argument("--frames", type=int, default=60, help="length of the clip (default 60)")
    parser.add_argument("--every", type=int, default=3, help="show every EVERY-th frame (default 3)")
    options = parser.parse_args()
    clip = make_clip(options.seed, num_frames=options.frames)
    results = Propagator.from_checkpoint().propagate(clip.frames, masks={0: clip.masks[0]})
    shown = (result for result in results if result.index % options.every == 0)
    pictures = [colored(clip.frames[result.index], result.mask) for result in shown]
    files.write_bytes(options.out, animation(pictures, num_objects=int(clip.masks.max())))
    print(f"{options.out}: {len(pictures)} pictures, {options.out.stat().st_size // 1000} kB")


def colored(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A gray frame under its colored mask, [h, w, 3] uint8 of `SIZE`."""
    gray = cv2.medianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), 3)  # less noise, a smaller file
    drawn = draw_mask(np.stack([gray] * 3, 2), mask, colors=object_colors("okabe-ito"), opacity=OPACITY)
    return cv2.resize(drawn, SIZE, interpolation=cv2.INTER_AREA)


def animation(pictures: Sequence[np.ndarray], *, num_objects: int, ms_per_picture: int = 160) -> bytes:
    """A GIF that repeats, with a palette of grays and of shades of each object's color."""
    shades = [np.repeat(np.linspace(0, 255, 16)[:, None], 3, 1)]
    for color in object_colors("okabe-ito")[1 : num_objects + 1].astype(float):
        shades += [OPACITY * color + (1 - OPACITY) * shades[0][::3], color[None]]
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate(shades).round().astype(np.uint8).tobytes())
    small = [
        Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures
    ]
    buffer = io.BytesIO()
    small[0].save(buffer, "GIF", save_all=True, append_images=small[1:], duration=ms_per_picture, loop=0)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
