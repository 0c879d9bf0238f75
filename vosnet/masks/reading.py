"""Reading masks of any kind; how a file was read is decided by its content and stated in the result."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from vosnet.errors import InputError
from vosnet.masks.colors import ids_from_colors
from vosnet.masks.labels import object_ids, summarize_mask
from vosnet.masks.palette import RGB, palette_colors

MAX_PIXELS = 8192 * 8192  # below Pillow's own limit, which only warns up to twice its value
LOSSY_FORMATS = frozenset({"JPEG", "MPO", "JPEG2000", "WEBP", "AVIF"})
_EXIF_ORIENTATION = 0x0112
_FLAT = 0.5  # share of in-between pixels equal to their right and lower neighbors: ids have more, edges less


@dataclass(frozen=True)
class MaskFile:
    """A mask and how it was read.

    Attributes:
        path: the image file.
        ids: object ids, [H, W]; 0 is background.
        kind: "palette", "grey", "binary", "color", "color with alpha", or with a "16-bit " / "1-bit " prefix.
        warnings: messages for the user.
        colors: object id -> color, of color masks only; pass it on as `known_colors`.
    """

    path: str
    ids: npt.NDArray[np.uint8]
    kind: str
    warnings: tuple[str, ...] = ()
    colors: Mapping[int, RGB] = field(default_factory=dict)

    @property
    def object_ids(self) -> list[int]:
        """Ids present, ascending, without background."""
        return object_ids(self.ids)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.ids.shape[0], self.ids.shape[1]

    def summary(self) -> str:
        """One line such as "2 objects: 1 8.1 %, 2 3.0 %"."""
        return summarize_mask(self.ids)

    def require_objects(self) -> MaskFile:
        """Itself, if it has at least one object.

        Raises:
            InputError: every pixel is background.
        """
        if not self.ids.any():
            raise InputError(
                "E245", f"{self.path}: the mask is empty ({self.kind}, all background)", "Mark an object."
            )
        return self


def read_mask(
    path: str | os.PathLike[str],
    *,
    from_jpeg: bool = False,
    known_colors: Mapping[int, RGB] | None = None,
) -> MaskFile:
    """Read object ids from a palette, gray, binary, color, 16-bit or 1-bit image.

    Palette indices and gray values are ids, kept exactly. An image of only 0 and 255 (or 65535) is one
    object with id 1. Colors become ids by `ids_from_colors`; black and transparent are background. Soft
    edges are cut at one half, with a warning. An EXIF rotation is applied.

    Args:
        path: the image file.
        from_jpeg: accept lossy formats and remove their compression noise.
        known_colors: id -> color of an earlier mask of the same video, so that a color keeps its id.

    Raises:
        InputError: missing, unreadable, too large, lossy without `from_jpeg`, not a mask, over 255 objects.
    """
    name = os.fspath(path)
    with _open(name) as image:
        lossy = image.format in LOSSY_FORMATS
        if lossy and not from_jpeg:
            raise InputError(
                "E242",
                f"{name}: {image.format} changes colors, so ids cannot be read exactly",
                "Save the mask as PNG, or accept the loss with --mask-from-jpeg.",
            )
        upright, notes = _decode(image, name)
    known = {color: index for index, color in (known_colors or {}).items()}
    mask = _understand(upright, name, known, lossy=lossy)
    notes.extend(mask.warnings)
    if mask.ids.all():
        notes.append("no background: every pixel belongs to an object")
    return MaskFile(name, mask.ids, mask.kind, tuple(notes), mask.colors)


def read_label_map(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """Object ids [H, W] of a result, read as the official evaluations do, without interpretation.

    Palette indices (mode P) and gray values (mode L) are ids, except that a gray file of only 0 and 255 is
    one object with id 1. Much faster than `read_mask`.

    Raises:
        InputError: missing, unreadable, too large, or colors instead of ids.
    """
    name = os.fspath(path)
    with _open(name) as image:
        if image.mode not in {"P", "L", "1"} or image.format in LOSSY_FORMATS:
            raise InputError(
                "E247",
                f"{name}: {image.format} of mode {image.mode} holds colors, not ids",
                "Write palette PNGs (mode P), for example with vosnet.masks.write_mask.",
            )
        try:
            values = np.array(image, dtype=np.uint8)
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError("E240", f"cannot read mask {name}: truncated or corrupt ({error})") from error
        if image.mode == "L" and values.max() == 255 and not ((values != 0) & (values != 255)).any():
            values //= 255
    return values


def _open(name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(name)
    except FileNotFoundError as error:
        raise InputError("E240", f"mask {name} does not exist") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError("E241", f"{name}: larger than {MAX_PIXELS} pixels", "Scale it down.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError("E240", f"cannot read mask {name}: not an image ({error})") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise InputError(
            "E241", f"{name}: {image.width}x{image.height} is more than {MAX_PIXELS} pixels", "Scale it down."
        )
    return image


def _decode(image: Image.Image, name: str) -> tuple[Image.Image, list[str]]:
    """The decoded image, upright, and notes on what was done to it."""
    try:
        image.load()
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        upright = ImageOps.exif_transpose(image)
        frames = getattr(image, "n_frames", 1)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError("E240", f"cannot read mask {name}: truncated or corrupt ({error})") from error
    notes = [f"rotated by its EXIF orientation {orientation}"] if orientation != 1 else []
    if frames > 1:
        notes.append(f"only the first of its {frames} frames is used")
    return upright, notes


def _understand(image: Image.Image, name: str, known: Mapping[RGB, int], *, lossy: bool) -> MaskFile:
    mode = image.mode
    if mode == "1":
        return MaskFile(name, np.asarray(image).astype(np.uint8), "1-bit binary")
    if mode == "P":
        return _from_palette(image, name, known)
    if mode == "L":
        return _from_gray(np.asarray(image), name, lossy=lossy)
    if mode in {"I", "I;16", "I;16B", "I;16L"}:
        return _from_16_bit(np.asarray(image), name)
    if mode in {"LA", "La", "PA", "RGBA", "RGBa"} or (mode == "RGB" and "transparency" in image.info):
        return _from_color(image.convert("RGBA"), name, known, lossy=lossy)
    if mode in {"RGB", "CMYK", "YCbCr"}:
        return _from_color(image.convert("RGB"), name, known, lossy=lossy)
    raise InputError("E246", f"{name}: image mode {mode} is not supported for masks", "Save it as PNG.")


def _from_palette(image: Image.Image, name: str, known: Mapping[RGB, int]) -> MaskFile:
    indices = np.array(image, dtype=np.uint8)
    palette = bytes(image.getpalette("RGB") or [])
    colors = {index: tuple(palette[3 * index : 3 * index + 3]) for index in [0, *object_ids(indices)]}
    black = [index for index, color in colors.items() if color == (0, 0, 0)]
    if palette[:3] not in {b"", b"\0\0\0"} and black:  # the order of a color quantizer, not of ids
        mask = _from_color(image.convert("RGB"), name, known, lossy=False)
        note = f"palette entry 0 is not black but entry {black[0]} is: read by color, not by index"
        return MaskFile(name, mask.ids, mask.kind, (note, *mask.warnings), mask.colors)
    notes = [] if len(colors) == 1 or palette[:3] in {b"", b"\0\0\0"} else ["palette entry 0 is not black"]
    return MaskFile(name, indices, "palette", (*notes, *_void_note(indices)))


def _from_gray(values: npt.NDArray[np.uint8], name: str, *, lossy: bool) -> MaskFile:
    if not ((values != 0) & (values != 255)).any():
        return MaskFile(name, (values == 255).astype(np.uint8), "binary")
    if lossy or _is_soft(values, 255):
        return _cut(values, name, 255)
    return MaskFile(name, np.array(values), "grey", _void_note(values))


def _from_16_bit(values: npt.NDArray[np.generic], name: str) -> MaskFile:
    wide = values.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise InputError("E244", f"{name}: values {wide.min()}..{wide.max()}, object ids are 0..255")
    if not ((wide != 0) & (wide != 65535)).any():
        return MaskFile(name, (wide == 65535).astype(np.uint8), "16-bit binary")
    if wide.max() <= 255:
        return MaskFile(name, wide.astype(np.uint8), "16-bit grey")
    if _is_soft(wide, 65535):
        mask = _cut(wide, name, 65535)
        return MaskFile(name, mask.ids, "16-bit binary", mask.warnings)
    if not (wide % 257).any():
        note = "values are multiples of 257, as when 8-bit ids were stretched to 16 bit: divided by 257"
        return MaskFile(name, (wide // 257).astype(np.uint8), "16-bit grey", (note,))
    raise InputError(
        "E244",
        f"{name}: {len(np.unique(wide)) - 1} objects with ids up to {wide.max()}, a mask holds ids 1..255",
        "Renumber them, or store objects as COCO RLE (--format coco-video).",
    )


def _from_color(image: Image.Image, name: str, known: Mapping[RGB, int], *, lossy: bool) -> MaskFile:
    pixels = np.array(image)  # [H, W, 3 or 4]
    rgb, kind, notes = np.ascontiguousarray(pixels[..., :3]), "color", []
    if pixels.shape[2] == 4 and not (pixels[..., 3] == 255).all():
        alpha, kind = pixels[..., 3], "color with alpha"
        soft = int(((alpha > 0) & (alpha < 255)).sum())
        if soft:
            notes.append(f"soft edges: {soft} semi-transparent pixels cut at one half")
        rgb[alpha < 128] = 0
    gray = rgb[..., 0]
    if (gray == rgb[..., 1]).all() and (gray == rgb[..., 2]).all() and not _is_davis_gray(gray):
        mask = _from_gray(np.ascontiguousarray(gray), name, lossy=lossy)
        kind = f"{kind} ({mask.kind})"
        return MaskFile(name, mask.ids, kind, (*notes, *mask.warnings))
    colored = ids_from_colors(rgb, path=name, known=known, lossy=lossy)
    if colored.blended:
        notes.append(f"soft edges: {colored.blended} blended pixels set to the nearest object color")
    return MaskFile(name, colored.ids, kind, tuple(notes), colored.colors)


def _is_davis_gray(gray: npt.NDArray[np.uint8]) -> bool:
    """All values are grays of the DAVIS palette: (128, 128, 128) is object 7, not object 128."""
    return set(np.unique(gray).tolist()) <= {
        red for red, green, blue in palette_colors() if red == green == blue
    }


def _is_soft(values: npt.NDArray[np.generic], top: int) -> bool:
    """Whether in-between values vary from pixel to pixel (edges) instead of filling areas (ids)."""
    numbers = values.astype(np.int64)
    between = (numbers > 0) & (numbers < top)
    if int(numbers.max()) < (top + 1) // 2 or not between.any():
        return False
    inner = between[:-1, :-1]
    same = (numbers[:-1, :-1] == numbers[:-1, 1:]) & (numbers[:-1, :-1] == numbers[1:, :-1])
    return int((same & inner).sum()) < _FLAT * max(1, int(inner.sum()))


def _cut(values: npt.NDArray[np.generic], name: str, top: int) -> MaskFile:
    numbers = values.astype(np.int64)
    between = int(((numbers > 0) & (numbers < top)).sum())
    note = f"soft edges: {between} pixels between 0 and {top} cut at one half"
    return MaskFile(name, (numbers > top // 2).astype(np.uint8), "binary", (note,))


def _void_note(values: npt.NDArray[np.uint8]) -> tuple[str, ...]:
    ids = object_ids(values)
    if 255 in ids and len(ids) > 1:
        return ("id 255 is kept as an object; in some datasets it means 'ignore'",)
    return ()
