"""Masks drawn over frames, for looking at: pictures, contact sheets, overlay videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vosnet.export.folder import ResultFolder
from vosnet.export.options import ColorScheme, ExportOptions
from vosnet.files import atomic_path
from vosnet.masks import DAVIS_PALETTE
from vosnet.progress import Progress
from vosnet.video import VideoWriter
from vosnet.video.selection import FrameSelection

_SHEET_PICTURES = 8

# Okabe and Ito's colors are told apart with every common form of color blindness.
_OKABE_ITO = [
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
]


def object_colors(scheme: ColorScheme = "davis") -> NDArray[np.uint8]:
    """One color per object id, [256, 3]; id 0 (background) is black and never drawn."""
    if scheme == "davis":
        return np.frombuffer(DAVIS_PALETTE, np.uint8).reshape(256, 3).copy()
    colors = np.array([_OKABE_ITO[(i - 1) % len(_OKABE_ITO)] for i in range(256)], np.uint8)
    colors[0] = 0
    return colors


def draw_mask(
    frame: NDArray[np.uint8],
    mask: NDArray[np.integer],
    *,
    colors: NDArray[np.uint8],
    opacity: float = 0.5,
    contour: bool = True,
) -> NDArray[np.uint8]:
    """Blend object colors over a frame and draw each object's outline in its full color.

    Args:
        frame: RGB, [H, W, 3] uint8; not modified.
        mask: object ids, [H, W]; ids above 255 reuse the colors cyclically.
        colors: color per id, [256, 3]; see `object_colors`.
        opacity: 0 shows the frame alone (with the outline, if drawn), 1 the flat color.
        contour: draw the outline, 1 px wide for frames below 720 lines and 2 px above.

    Returns:
        RGB, [H, W, 3] uint8.
    """
    shade = np.where(mask > 255, (mask - 1) % 255 + 1, mask).astype(np.uint8)
    flat = colors[shade]
    blended = cv2.addWeighted(frame, 1.0 - opacity, flat, opacity, 0.0)
    picture = np.where((shade > 0)[..., None], blended, frame)
    if contour:
        kernel = np.ones((3, 3) if min(shade.shape) < 720 else (5, 5), np.uint8)
        edge = (cv2.erode(shade, kernel) != shade) | (cv2.dilate(shade, kernel) != shade)
        edge &= shade > 0
        picture[edge] = flat[edge]
    return picture


def contact_sheet(
    pictures: Sequence[NDArray[np.uint8]], *, columns: int = 4, width: int = 320
) -> NDArray[np.uint8]:
    """Pictures of one size side by side, each `width` pixels wide, row by row; RGB [h, w, 3] uint8."""
    height = max(1, round(pictures[0].shape[0] * width / pictures[0].shape[1]))
    small = [cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA) for picture in pictures]
    columns = min(columns, len(small))
    blank = np.zeros_like(small[0])
    small += [blank] * (-len(small) % columns)
    rows = [np.concatenate(small[i : i + columns], 1) for i in range(0, len(small), columns)]
    return np.concatenate(rows, 0)


def write_overlay(
    folder: ResultFolder,
    selection: FrameSelection,
    mask_of: Callable[[int], NDArray[np.uint8]],
    options: ExportOptions,
) -> None:
    """Draw masks over the frames: `overlay.mp4` in the source's time if asked for, and `sheet.jpg`.

    Args:
        folder: where both go.
        selection: the frames.
        mask_of: object ids [H, W] of the frame at a place in the selection.
        options: colors, opacity, and whether there is a video.
    """
    draw = partial(
        draw_mask, colors=object_colors(options.colors), opacity=options.opacity, contour=options.contour
    )
    count = len(selection)
    shown = np.linspace(0, count - 1, min(_SHEET_PICTURES, count)).round().astype(int).tolist()
    sheet = []
    if options.overlay:
        reader = selection.reader
        audio = reader.path if selection.indices.step == 1 and reader.decoder != "images" else None
        with (
            VideoWriter(
                folder.path("overlay.mp4"),
                size=reader.size,
                pts_s=reader.pts_s[list(selection.indices)],
                audio_from=audio,
                pixel_aspect=reader.info.pixel_aspect,
            ) as writer,
            Progress(count, "overlay", mode=options.progress) as progress,
        ):
            for place, frame in enumerate(selection):
                picture = draw(frame, mask_of(place))
                writer.write(picture)
                if place in shown:
                    sheet.append(picture)
                progress.advance()
    else:
        sheet = [draw(selection[place], mask_of(place)) for place in sorted(set(shown))]
    with atomic_path(folder.path("sheet.jpg")) as temporary:
        Image.fromarray(contact_sheet(sheet)).save(temporary, quality=90)
