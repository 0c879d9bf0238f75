"""Label maps in memory: object ids and areas, one-hot channels, fitting to a video's size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vosnet.errors import InputError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

Mask = npt.NDArray[np.uint8]


def areas(mask: npt.NDArray[Any]) -> dict[int, int]:
    """Pixel count of each object id in `mask` [H, W], ids ascending, without background."""
    # Pillow's histogram of bytes is several times faster than bincount, which converts them to 64 bits first
    counts = (
        Image.fromarray(mask).histogram() if mask.dtype == np.uint8 else np.bincount(mask.ravel()).tolist()
    )
    return {index: count for index, count in enumerate(counts) if index and count}


def object_ids(mask: npt.NDArray[Any]) -> list[int]:
    """Ids present in a label map [H, W], ascending, without background (0)."""
    return list(areas(mask))


def summarize_mask(mask: npt.NDArray[Any]) -> str:
    """One line such as "2 objects: 1 8.1 %, 2 3.0 %": ids and the share of the frame each covers."""
    parts = [f"{index} {100 * area / mask.size:.1f} %" for index, area in areas(mask).items()]
    noun = "object" if len(parts) == 1 else "objects"
    return f"{len(parts)} {noun}" + (": " + ", ".join(parts) if parts else "")


def one_hot(mask: npt.NDArray[Any], ids: Sequence[int]) -> Tensor:
    """One channel per object; channel 0 is the background.

    Args:
        mask: object ids, [H, W].
        ids: the object of each channel from 1 on; an id of `mask` that is not listed counts as background.

    Returns:
        float32 tensor [K, H, W] with K = len(ids) + 1, exactly one 1 per pixel.

    Raises:
        ValueError: an id is 0 or listed twice.
    """
    import torch

    if len(set(ids)) != len(ids) or any(index < 1 for index in ids):
        raise ValueError(f"object ids must be distinct and above 0 (background), got {list(ids)}")
    channels = np.empty((len(ids) + 1, *mask.shape), np.float32)
    for channel, index in enumerate(ids, start=1):
        channels[channel] = mask == index
    channels[0] = 1 - channels[1:].sum(axis=0)
    return torch.from_numpy(channels)


def check_size(
    mask: npt.NDArray[Any], size: tuple[int, int], *, path: str | os.PathLike[str] = "mask"
) -> None:
    """Check that a mask has the video's size.

    Args:
        mask: object ids, [H, W].
        size: (H, W) of the video after rotation.
        path: named in the message.

    Raises:
        InputError: the sizes differ.
    """
    if mask.shape != tuple(size):
        raise InputError(
            "E204",
            f"{path}: mask size {mask.shape[1]}x{mask.shape[0]} does not match video {size[1]}x{size[0]} "
            "(after rotation)",
            "Use --resize-mask nearest, or give a mask of that size.",
        )


def fit_mask(
    mask: Mask, size: tuple[int, int], *, resize: str = "never", path: str | os.PathLike[str] = "mask"
) -> Mask:
    """`mask` at the video's size, resized only if `resize` allows it.

    Args:
        mask: object ids, [H, W].
        size: (H, W) of the video after rotation.
        resize: "never" or "nearest".
        path: named in messages.

    Raises:
        InputError: the sizes differ and `resize` is "never".
        UsageError: `resize` is neither of the two.
    """
    if resize not in {"never", "nearest"}:
        raise UsageError("E145", f"--resize-mask is 'never' or 'nearest', got {resize!r}")
    if mask.shape == tuple(size):
        return mask
    if resize == "never":
        check_size(mask, size, path=path)
    resized = Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized, dtype=np.uint8)


def with_annotation(mask: npt.NDArray[Any], given: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Combine a prediction with an annotation: annotated pixels and objects replace the predicted ones.

    Args:
        mask: predicted ids, [H, W] uint8.
        given: annotated ids, [H, W] integer, 0 where nothing is annotated.
    """
    rest = np.where(np.isin(mask, given[given > 0]), 0, mask)
    return np.where(given > 0, given, rest).astype(np.uint8)
