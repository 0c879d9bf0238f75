"""What one training step sees: sets of frames in two views, and how the views correspond."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vosnet.transforms.lab import ColorSpace, encoder_input
from vosnet.transforms.similarity import warp_images


@dataclass(frozen=True)
class Cut:
    """Where the frames of a batch were cut from, so that stored maps of a video can be cut alike.

    Args:
        frame_ids: which frames of the video, counted after `frame_step`, [B, T] int64.
        boxes: top, left and side of the square per frame in pixels of the frames as they were read,
            [B, T, 3] int64.
        flip: which clips were mirrored left and right after the cut, [B] bool.
        size: height and width of the frames as they were read, [B, 2] int64.
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
    """A batch before normalization: small enough to cross a process boundary.

    Args:
        frames: main view, RGB, [B, T, H, W, 3] uint8.
        theta: main view to regularizing view, output to input, [B, 2, 3].
        draws: uniform numbers in [0, 1) for whatever the objective leaves to chance, [B, 4] float32.
        ids: position of each sample in its epoch, [B] int64.
        names: the video each sample was cut from.
        bad: videos that could not be read and were replaced, with the reason.
        cut: where the frames were cut from; None for frames that come from no video.
    """

    frames: Tensor
    theta: Tensor
    draws: Tensor
    ids: Tensor
    names: tuple[str, ...]
    bad: tuple[tuple[str, str], ...] = ()
    cut: Cut | None = None


@dataclass(frozen=True)
class Clip:
    """A batch of clips as objectives take it.

    Args:
        frames: main view as the encoder takes it (see `encoder_input`), float32, [B, T, 3, H, W]. Frame 0 is
            the anchor frame of DUL.
        view: regularizing view of the same frames, [B, T, 3, H, W].
        theta: similarity transform between them, regularizing-view point to main-view point, [B, 2, 3].
        draws: uniform numbers in [0, 1) for whatever the objective leaves to chance, [B, 4] float32: a clip
            gives the same loss on every rank and after a resume.
        ids: position of each sample in its epoch, [B] int64.
        names: the video each sample was cut from.
        cut: where the frames were cut from; None for frames that come from no video. Stays on the CPU.
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
        tensors = {
            key: getattr(self, key).to(device, non_blocking=non_blocking)
            for key in ("frames", "view", "theta", "draws", "ids")
        }
        return replace(self, **tensors)

    def __len__(self) -> int:
        return self.frames.shape[0]

    def part(self, start: int, stop: int) -> Clip:
        """Samples `start` to `stop` (exclusive) of the batch, for gradient accumulation."""
        return Clip(
            self.frames[start:stop],
            self.view[start:stop],
            self.theta[start:stop],
            self.draws[start:stop],
            self.ids[start:stop],
            self.names[start:stop],
            None if self.cut is None else self.cut.part(start, stop),
        )


def assemble_clip(crops: Crops, device: torch.device | str = "cpu", color_space: ColorSpace = "rgb") -> Clip:
    """Move crops to `device`, bring them into the encoder's colors and make the regularizing view there."""
    on_device = crops.frames.to(device, non_blocking=True)
    theta = crops.theta.to(device, non_blocking=True)
    frames = encoder_input(on_device.permute(0, 1, 4, 2, 3), color_space)
    view = warp_images(frames, theta)
    draws, ids = crops.draws.to(device, non_blocking=True), crops.ids.to(device, non_blocking=True)
    return Clip(frames, view, theta, draws, ids, crops.names, crops.cut)
