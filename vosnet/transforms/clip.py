"""Batches of training clips: frames in two views and the transform between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from vosnet.transforms.lab import ColorSpace, encoder_input
from vosnet.transforms.similarity import warp_images

_TENSORS = ("frames", "view", "theta", "draws", "ids")  # of a Clip, sample by sample


@dataclass(frozen=True)
class Cut:
    """Where the frames of a batch were cut from, so that label maps of the video can be cut the same way.

    Args:
        frame_ids: which frames of the video, counted after `frame_step`, [B, T] int64.
        boxes: top, left and side of each frame's square in pixels of the decoded frame, [B, T, 3] int64.
        flip: which clips were mirrored left to right after the cut, [B] bool.
        size: height and width of the decoded frames, [B, 2] int64.
    """

    frame_ids: Tensor
    boxes: Tensor
    flip: Tensor
    size: Tensor

    def part(self, start: int, stop: int) -> Cut:
        """Samples `start` to `stop` (exclusive) of the batch."""
        return Cut(*(t[start:stop] for t in self.tensors()))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The fields in order."""
        return self.frame_ids, self.boxes, self.flip, self.size


@dataclass(frozen=True)
class Crops:
    """A batch before normalization, small enough to be sent between processes.

    Args:
        frames: main view, RGB, [B, T, H, W, 3] uint8.
        theta: main view to regularizing view, output to input, [B, 2, 3].
        draws: each sample's own random numbers in [0, 1) for the objective, [B, 4] float32.
        ids: position of each sample in its epoch, [B] int64.
        names: the video each sample was cut from.
        bad: videos that could not be read and were replaced, each with the reason.
        cut: where the frames were cut from; None if they come from no video.
    """

    frames: Tensor
    theta: Tensor
    draws: Tensor
    ids: Tensor
    names: tuple[str, ...]
    bad: tuple[tuple[str, str], ...] = ()
    cut: Cut | None = None

    @classmethod
    def joined(cls, parts: Sequence[Crops]) -> Crops:
        """The batches `parts` as one; all of them have a `cut`."""
        tensors = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("frames", "theta", "draws", "ids")
        }
        cuts = [part.cut.tensors() for part in parts if part.cut is not None]
        return cls(
            **tensors,
            names=tuple(name for part in parts for name in part.names),
            bad=tuple(pair for part in parts for pair in part.bad),
            cut=Cut(*map(torch.cat, zip(*cuts, strict=True))),
        )


@dataclass(frozen=True)
class Clip:
    """A batch of clips, the input of an objective.

    Args:
        frames: main view in the encoder's colors (see `encoder_input`), float32, [B, T, 3, H, W]. Frame 0 is
            the anchor frame of DUL.
        view: regularizing view of the same frames, [B, T, 3, H, W].
        theta: similarity transform between them, regularizing-view point to main-view point, [B, 2, 3].
        draws: each sample's own random numbers in [0, 1) for the objective, [B, 4] float32, so that a clip
            gives the same loss on every rank and after a resume.
        ids: position of each sample in its epoch, [B] int64.
        names: the video each sample was cut from.
        cut: where the frames were cut from, on the CPU; None if they come from no video.
    """

    frames: Tensor
    view: Tensor
    theta: Tensor
    draws: Tensor
    ids: Tensor
    names: tuple[str, ...] = ()
    cut: Cut | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Clip:
        """The same clip on `device`."""
        moved = {key: getattr(self, key).to(device, non_blocking=non_blocking) for key in _TENSORS}
        return replace(self, **moved)

    def __len__(self) -> int:
        return self.frames.shape[0]

    def part(self, start: int, stop: int) -> Clip:
        """Samples `start` to `stop` (exclusive) of the batch, for gradient accumulation."""
        fields: dict[str, Any] = {key: getattr(self, key)[start:stop] for key in (*_TENSORS, "names")}
        cut = None if self.cut is None else self.cut.part(start, stop)
        return replace(self, cut=cut, **fields)


def assemble_clip(crops: Crops, device: torch.device | str = "cpu", color_space: ColorSpace = "rgb") -> Clip:
    """Normalize crops for the encoder and make the regularizing view, on `device`."""
    images = rearrange(crops.frames.to(device, non_blocking=True), "b t h w c -> b t c h w")
    theta = crops.theta.to(device, non_blocking=True)
    frames = encoder_input(images, color_space)
    view = warp_images(frames, theta)
    draws, ids = crops.draws.to(device, non_blocking=True), crops.ids.to(device, non_blocking=True)
    return Clip(frames, view, theta, draws, ids, crops.names, crops.cut)
