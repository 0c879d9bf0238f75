"""Label maps down to value channels on the feature grid, and back up to the size of the source."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vosnet.masks.decision import most_likely
from vosnet.propagation.protocol import Protocol


def input_size(size: tuple[int, int], protocol: Protocol) -> tuple[int, int]:
    """(H, W) that the network sees for a source of `size`.

    Differs: DINO's script derives the long side from its own rounded numbers; here both sides are scaled
    alike and then rounded.
    """
    height, width = size
    if protocol.short_side is not None:
        factor = protocol.short_side / min(size)
        height, width = round(height * factor), round(width * factor)
    return _rounded(height, protocol), _rounded(width, protocol)


def _rounded(side: int, protocol: Protocol) -> int:
    multiple = protocol.multiple
    count = side // multiple if protocol.rounding == "floor" else -(-side // multiple)
    return max(count, 1) * multiple


def mask_to_values(
    mask: np.ndarray, ids: Sequence[int], grid: tuple[int, int], protocol: Protocol, output_stride: int
) -> Tensor:
    """One channel per id on the feature grid, [len(ids), h, w] float32.

    Args:
        mask: label map, [H, W].
        ids: the objects, and 0 where background is wanted.
        grid: (h, w) of the features.
        protocol: `mask_down` and `down_align_corners` say how.
        output_stride: pixels per cell, the step of "slice".
    """
    labels = torch.from_numpy(mask.astype(np.uint8, order="C"))  # a copy: the mask may be read-only
    seen = input_size((labels.shape[0], labels.shape[1]), protocol)
    # one object at a time: 255 full-size float masks of a 4K frame would take gigabytes
    values = [_to_grid((labels == i).float()[None, None], seen, grid, protocol, output_stride) for i in ids]
    return torch.cat(values)[:, 0]


def _to_grid(
    one: Tensor, seen: tuple[int, int], grid: tuple[int, int], protocol: Protocol, output_stride: int
) -> Tensor:
    resized = seen != tuple(one.shape[-2:])
    if protocol.mask_down == "bilinear":
        if resized:  # otherwise the step down to the grid would skip most pixels
            one = functional.interpolate(one, seen, mode="bilinear", antialias=True)
        corners = protocol.down_align_corners
        return functional.interpolate(one, grid, mode="bilinear", align_corners=corners)
    if protocol.mask_down == "slice":
        one = functional.interpolate(one, seen, mode="nearest-exact") if resized else one
        one = one[..., ::output_stride, ::output_stride]
    # "nearest-exact" looks from cell centers, as Pillow does; a slice already has the grid's size unless the
    # encoder rounds it down
    return functional.interpolate(one, grid, mode="nearest-exact")


def upsample(probs: Tensor, size: tuple[int, int], protocol: Protocol) -> Tensor:
    """[K, h, w] -> [K, H, W] as `mask_up`, `up_align_corners` and `min_max` say."""
    if protocol.mask_up == "nearest":
        large = functional.interpolate(probs[None], size, mode="nearest-exact")[0]
    else:
        corners = protocol.up_align_corners
        large = functional.interpolate(probs[None], size, mode="bilinear", align_corners=corners)[0]
    return stretch(large) if protocol.min_max else large


def stretch(probs: Tensor) -> Tensor:
    """Each channel scaled to 0..1 over the frame; a constant channel becomes 0. Boosts small objects."""
    low, high = probs.amin((1, 2), keepdim=True), probs.amax((1, 2), keepdim=True)
    return (probs - low) / (high - low).clamp_min(torch.finfo(probs.dtype).tiny)


def decide(
    probs: Tensor, ids: Sequence[int], size: tuple[int, int], protocol: Protocol, channels: int = 32
) -> np.ndarray:
    """The label map of the most probable channel, [H, W] uint8.

    Args:
        probs: [K, h, w], channel 0 is background; of equal ones the lowest channel wins.
        ids: of the channels 1..K-1.
        size: (H, W) of the source.
        protocol: see `upsample` and `decide_at`.
        channels: this many are upsampled at once.
    """
    at = size if protocol.decide_at == "source" else input_size(size, protocol)
    mask = most_likely(probs, ids, lambda part: upsample(part, at, protocol), channels)
    if at != size:
        mask = functional.interpolate(mask[None, None].float(), size, mode="nearest-exact")[0, 0].byte()
    return mask.cpu().numpy()
