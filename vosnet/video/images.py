"""A folder of frames, or one still picture, read like a video."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from vosnet.errors import InputError
from vosnet.files import natural_key
from vosnet.video.info import Frame, VideoInfo
from vosnet.video.listing import is_image, is_junk

_EXIF_ORIENTATION = 0x0112


class ImageDecoder:
    """Reads the pictures of a frame folder by index."""

    name = "images"

    def __init__(self, paths: Sequence[Path], size: tuple[int, int]) -> None:
        self._paths, self._size = paths, size

    def frame(self, index: int) -> Frame | None:
        """Picture `index` as RGB, upright by its EXIF tag; None when it cannot be decoded."""
        picture = read_image(self._paths[index])
        return picture if picture is not None and picture.shape[:2] == self._size else None

    def close(self) -> None:
        """Nothing is held open."""


def read_image(path: Path) -> Frame | None:
    """A picture as RGB uint8 [H, W, 3], turned upright by its EXIF tag; None when it cannot be decoded."""
    import cv2

    encoded = np.fromfile(path, np.uint8)  # cv2.imread cannot open every Unicode path on Windows
    picture = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if len(encoded) else None
    return None if picture is None else np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)


def probe_images(path: Path, fps: float) -> tuple[VideoInfo, list[Path]]:
    """List the frames of a folder (or take one still) in natural order and read their sizes.

    Differing sizes are an error, not a rescaling: they mean that two clips were mixed.

    Raises:
        InputError: no pictures, differing sizes, or two pictures of one name.
    """
    ignored = 0
    if path.is_dir():
        entries = list(path.iterdir())
        frames = [p for p in entries if is_image(p) and p.is_file()]
        ignored = len(entries) - len(frames)
        if not frames:
            raise _no_frames(path, entries)
    else:
        frames = [path]
    frames.sort(key=lambda p: natural_key(p.name))
    _refuse_same_stem(path, frames)
    size, unreadable = _common_size(path, frames)
    warnings = [f"{path.name}: {ignored} entries that are no frames ignored"] if ignored else []
    warnings += [f"{path.name}: {_some(unreadable)} cannot be read"] if unreadable else []
    warnings += _gaps(path, [p.stem for p in frames])
    suffixes = "/".join(sorted({p.suffix.lower().lstrip(".") for p in frames}))
    info = VideoInfo(
        size=size,
        pts_s=np.arange(len(frames)) / fps,
        fps=fps,
        names=tuple(p.stem for p in frames),
        decoder="images",
        reason=f"a folder of {suffixes} pictures" if path.is_dir() else f"one {suffixes} picture",
        codec=suffixes,
        warnings=tuple(warnings),
    )
    return info, frames


def _no_frames(path: Path, entries: list[Path]) -> InputError:
    folders = [p for p in entries if p.is_dir() and not is_junk(p.name)]
    hint = "Give a folder of .jpg or .png frames, or a video file."
    if folders:
        hint = f"It has {len(folders)} folders, for example {folders[0].name}; give one of them."
    return InputError("E214", f"{path} contains no pictures", hint)


def _refuse_same_stem(path: Path, frames: list[Path]) -> None:
    twice = [stem for stem, count in Counter(p.stem for p in frames).items() if count > 1]
    if twice:
        raise InputError(
            "E217",
            f"{path} has several pictures named {_some(twice)}",
            "Outputs are named like the frames; keep one picture per name (masks belong in another folder).",
        )


def _common_size(path: Path, frames: list[Path]) -> tuple[tuple[int, int], list[str]]:
    sizes = {p.name: _header_size(p) for p in frames}
    unreadable = [name for name, size in sizes.items() if size is None]
    counts = Counter(size for size in sizes.values() if size is not None)
    if not counts:
        raise InputError("E212", f"{path}: no picture can be read", "The files are damaged or no images.")
    if len(counts) > 1:
        (usual, _), (other, number) = counts.most_common(1)[0], counts.most_common()[-1]
        example = next(name for name, size in sizes.items() if size == other)
        raise InputError(
            "E215",
            f"{path} mixes picture sizes: {usual[1]}x{usual[0]}, but {example} "
            f"({number} of {len(frames)} like it) is {other[1]}x{other[0]}",
            "Frames of one clip have one size; separate or rescale them.",
        )
    return counts.most_common(1)[0][0], unreadable


def _header_size(path: Path) -> tuple[int, int] | None:
    """(H, W) of the upright picture by its header, None when the header is unreadable."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) in {5, 6, 7, 8}
            width, height = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return (width, height) if turned else (height, width)


def _gaps(path: Path, stems: list[str]) -> list[str]:
    """A warning when the frame numbers do not follow each other in equal steps (YouTube-VOS counts by 5)."""
    found = [re.search(r"(\d+)\D*$", stem) for stem in stems]
    numbers = [int(match.group(1)) for match in found if match]
    if len(numbers) < 3 or len(numbers) < len(stems):
        return []
    steps = np.diff(numbers)
    usual = Counter(steps.tolist()).most_common(1)[0][0]
    holes = [(numbers[i], numbers[i + 1]) for i in np.flatnonzero(steps > max(usual, 1))]
    if not holes:
        return []
    shown = [f"{a} to {b}" for a, b in holes]
    return [f"{path.name}: frame numbers jump from {_some(shown)}; the frames are used as they are"]


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
