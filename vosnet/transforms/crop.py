"""Resizing decoded frames and cutting square crops out of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

Frames = npt.NDArray[np.uint8]


def resize_short_side(frame: Frames, short_side: int) -> Frames:
    """The frame with its shorter side at most `short_side` pixels, same aspect, bilinear with antialiasing.

    Smaller frames are returned unchanged: enlarging adds bytes, not content.

    Args:
        frame: RGB, [H, W, 3] uint8.
        short_side: pixels.
    """
    H, W = frame.shape[:2]
    if min(H, W) <= short_side:
        return frame
    scale = short_side / min(H, W)
    size = (max(short_side, round(W * scale)), max(short_side, round(H * scale)))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))


def crop_frames(frames: Frames, boxes: Tensor, crop_size: int, *, flip: bool = False) -> Tensor:
    """Cut one square per frame and resize it to `crop_size`, bilinear with antialiasing.

    Differs: the authors resize the whole frame and then crop; cutting first is much cheaper and gives the
    same pixels, except within the filter's reach of the border.

    Args:
        frames: RGB, [T, H, W, 3] uint8.
        boxes: top, left and side of the square per frame in pixels, inside the frame, [T, 3] int64.
        crop_size: side of the result in pixels.
        flip: mirror left to right.

    Returns:
        [T, crop_size, crop_size, 3] uint8.
    """
    pieces = []
    for frame, (top, left, side) in zip(frames, boxes.tolist(), strict=True):
        piece = torch.from_numpy(np.ascontiguousarray(frame[top : top + side, left : left + side]))
        pieces.append(_resize(piece, crop_size))
    crops = torch.stack(pieces)
    return crops.flip(2) if flip else crops


def _resize(piece: Tensor, crop_size: int) -> Tensor:
    if piece.shape[0] == crop_size:
        return piece
    image = rearrange(piece, "h w c -> c h w")[None]  # channels_last strides: uint8 needs no copy
    resized = F.interpolate(image, (crop_size, crop_size), mode="bilinear", antialias=True)
    return rearrange(resized, "1 c h w -> h w c")
