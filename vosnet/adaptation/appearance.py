"""The appearance model of one video: a U-Net that segments each frame by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from vosnet.adaptation.segmentation_loss import merge_unknown
from vosnet.adaptation.settings import AdaptationSettings
from vosnet.adaptation.training_frames import fit
from vosnet.masks.decision import most_likely
from vosnet.models.inference import can_autocast_bfloat16
from vosnet.models.unet import UNet, build_unet
from vosnet.transforms import normalize_images


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
        self._trained: Callable[[Tensor], Tensor] = torch.compile(unet) if settings.compiled else self.unet
        slow = can_autocast_bfloat16(device)
        self._autocast = settings.precision == "bfloat16" or (settings.precision == "auto" and slow is None)

    def logits(self, images: Tensor) -> Tensor:
        """Logits of RGB images with values 0..255, [N, 3, S, S] -> [N, K, S, S]."""
        network = self._trained if self.unet.training else self.unet
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            return network(normalize_images(images))

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
        images = rearrange(torch.from_numpy(small).to(self.device), "n h w c -> n c h w")
        there = torch.tensor([[True, *(i in ids for i in self.ids)] for ids in known], device=self.device)
        logits = merge_unknown(self.logits(images).float(), there)
        return [self._decide(one, frame.shape[:2]) for one, frame in zip(logits, frames)]

    def _decide(self, logits: Tensor, size: tuple[int, ...]) -> np.ndarray:
        """The most likely object at the size of the source, [H, W] uint8."""

        def enlarge(part: Tensor) -> Tensor:
            finite = part[None].clamp_min(-1e4)  # -inf would spread as NaN
            return functional.interpolate(finite, size, mode="bilinear", align_corners=False)[0]

        found: np.ndarray = most_likely(logits, self.ids, enlarge).cpu().numpy()
        return found
