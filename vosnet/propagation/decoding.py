"""Decoding instead of copying: masks from target-specific features that travel beside the mask values."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from vosnet.models.inference import FeatureExtractor
from vosnet.models.segmenter import MaskSegmenter, refinement_rounds


class MaskRounds:
    """Mask-embedded segmentation (Li et al. 2023) on top of any read-out.

    What memory holds of a frame are planes: one for the background, then for every object its mask followed
    by the channels of V([frame, mask]). A read-out copies all of them alike, which gives the coarse masks
    Y-bar_q and V_q = A^T V_r; then every round is Y-hat_q = D([V_q, V([I_q, Y-bar_q])]), fed back as the next
    Y-bar_q.

    Args:
        segmenter: V and D.
        extractor: for its device, its precision and the images that V sees.
        rounds: passes through V and D, at least 1.
    """

    def __init__(self, segmenter: MaskSegmenter, extractor: FeatureExtractor, rounds: int) -> None:
        self.segmenter, self.extractor, self.rounds = segmenter.eval(), extractor, rounds
        self._width = 1 + segmenter.mask_dim
        self.to(extractor.device)

    def to(self, device: torch.device) -> None:
        """Move the networks."""
        self.segmenter.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def planes(self, channels: Iterable[int]) -> list[int]:
        """Planes of value channels, where channel 0 is background and channel k the k-th object."""
        found: list[int] = []
        for channel in channels:
            first = 1 + (channel - 1) * self._width
            found += range(first, first + self._width) if channel else [0]
        return found

    def mask_grid(self, image_size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
        """The grid of the decoded masks, for images of `image_size` with features on `grid`."""
        if not self.segmenter.settings["upsample"]:
            return grid
        return -(-image_size[0] // 4), -(-image_size[1] // 4)

    @property
    def mask_stride(self) -> int:
        """Pixels per cell of `mask_grid`."""
        return 4 if self.segmenter.settings["upsample"] else self.extractor.output_stride

    def copied(self, planes: Tensor) -> Tensor:
        """The copied masks among planes that were read out, background and objects, [1 + K, h, w]."""
        return planes[[0, *range(1, planes.shape[0], self._width)]]

    @torch.no_grad()
    def decode(self, image: Tensor, planes: Tensor, objects_at_once: int) -> Tensor:
        """Probabilities after the last round.

        Args:
            image: the query as the networks see it, [3, H, W].
            planes: read out of memory, [P, h, w].
            objects_at_once: objects per pass; less memory, the same result.

        Returns:
            [1 + K, h', w'] on `mask_grid`, channel 0 is background; they sum to 1.
        """
        objects = planes[1:].view(-1, self._width, *planes.shape[1:])  # [K, 1 + D', h, w]
        coarse, support = objects[None, :, 0], objects[None, :, 1:]

        def refine(masks: Tensor) -> Tensor:
            parts = zip(*(torch.split(x, objects_at_once, 1) for x in (support, masks, coarse)))
            with self.extractor.autocast():
                return torch.cat([self.segmenter.refine(image[None], *part) for part in parts], dim=1)

        return refinement_rounds(refine, coarse, self.rounds)[-1].softmax(1)[0]

    @torch.no_grad()
    def embed(self, image: Tensor, probs: Tensor, grid: tuple[int, int], objects_at_once: int) -> Tensor:
        """What memory keeps of a frame.

        Args:
            image: [3, H, W].
            probs: masks of background and objects, [1 + K, h', w'].
            grid: of the features.
            objects_at_once: see `decode`.

        Returns:
            Planes, [P, h, w] float32.
        """
        values = probs
        if tuple(probs.shape[-2:]) != grid:
            values = functional.interpolate(probs[None], grid, mode="area")[0]
        with self.extractor.autocast():
            embedded = [
                self.segmenter.embed(image[None], part[None]).features.float()
                for part in torch.split(probs[1:], objects_at_once)
            ]
        objects = torch.cat([values[1:, None], torch.cat(embedded)], dim=1)
        return torch.cat([values[:1], objects.flatten(0, 1)])
