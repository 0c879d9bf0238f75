"""The appearance model of one video: a U-Net that names the object of each pixel, frame by frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vosnet.adaptation.segmentation_loss import merge_unknown
from vosnet.adaptation.settings import AdaptationSettings
from vosnet.adaptation.training_frames import fit
from vosnet.models.inference import can_autocast_bfloat16
from vosnet.models.unet import UNet, build_unet
from vosnet.transforms import normalize_images

_CHANNELS = 32  # objects that are enlarged to the source's size at once


class AppearanceModel:
    """The U-Net of one video.

    Args:
        ids: object of each channel from 1 on.
        settings: see `AdaptationSettings`.
        device: where it trains and answers.
    """

    def __init__(self, ids: Sequence[int], settings: AdaptationSettings, device: torch.device) -> None:
        self.ids, self.settings, self.device = list(ids), settings, device
        unet = build_unet(
            len(ids) + 1,
            seed=settings.seed,
            decoder_dims=settings.decoder_dims,
            bn_momentum=settings.bn_momentum,
        )
        self.unet: UNet = unet.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        slow = can_autocast_bfloat16(device)
        self.autocast = settings.precision == "bfloat16" or (settings.precision == "auto" and slow is None)

    @torch.no_grad()
    def predict(self, frames: Sequence[np.ndarray], known: Sequence[set[int]]) -> list[np.ndarray]:
        """Label maps of frames, each from that frame alone.

        Args:
            frames: [H, W, 3] uint8 each.
            known: for each frame, the objects that may be answered.

        Returns:
            [H, W] uint8 each.
        """
        self.unet.eval()
        small = np.stack([fit(frame, self.settings.size) for frame in frames])
        images = torch.from_numpy(small).to(self.device).permute(0, 3, 1, 2)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            logits: Tensor = self.unet(normalize_images(images))
        there = torch.tensor([[True, *(i in ids for i in self.ids)] for ids in known], device=self.device)
        logits = merge_unknown(logits.float(), there)
        return [
            self._decide(one, (frame.shape[0], frame.shape[1]))
            for one, frame in zip(logits.unbind(0), frames)
        ]

    def _decide(self, logits: Tensor, size: tuple[int, int]) -> np.ndarray:
        """The most likely object at the source's size, [H, W] uint8; a few channels are large at a time."""
        best: Tensor | None = None
        channel = torch.zeros(size, dtype=torch.long, device=logits.device)
        for first in range(0, logits.shape[0], _CHANNELS):
            part = logits[None, first : first + _CHANNELS].clamp_min(-1e4)  # -inf would spread as NaN
            large = functional.interpolate(part, size, mode="bilinear", align_corners=False)[0]
            value, index = large.max(0)
            better = torch.ones_like(index, dtype=torch.bool) if best is None else value > best
            channel = torch.where(better, index + first, channel)
            best = value if best is None else torch.maximum(best, value)
        lookup = torch.tensor([0, *self.ids], dtype=torch.uint8, device=logits.device)
        found: np.ndarray = lookup[channel].cpu().numpy()
        return found
