"""From what is read out of memory to the masks of a frame: copied as they are, or decoded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from vosnet.errors import UsageError
from vosnet.matching import Chunks
from vosnet.models.inference import FeatureExtractor
from vosnet.models.segmenter import MaskSegmenter, refinement_rounds


@dataclass(frozen=True)
class PreparedFrame:
    """A frame as networks and memory see it.

    Attributes:
        image: normalized, [3, H, W].
        features: as they are compared, [C, h, w].
    """

    image: Tensor
    features: Tensor


class Copying:
    """The masks read out of memory are the answer, and masks are all that memory holds.

    Args:
        output_stride: the encoder's.

    Attributes:
        mask_stride: pixels of the image per cell of the answer.
    """

    def __init__(self, output_stride: int) -> None:
        self.mask_stride = output_stride

    def to(self, device: torch.device) -> None:
        """Nothing to move."""

    def planes(self, channels: Iterable[int]) -> list[int]:
        """What memory holds of value channels: themselves."""
        return list(channels)

    def mask_grid(self, frame: PreparedFrame) -> tuple[int, int]:
        """The grid of the answer."""
        return frame.features.shape[1], frame.features.shape[2]

    def answer(self, frame: PreparedFrame, planes: Tensor) -> tuple[Tensor, Tensor]:
        """What was read, as the answer and as the masks that were copied, [1 + K, h, w] both."""
        return planes, planes

    def store(self, frame: PreparedFrame, probs: Tensor) -> Tensor:
        """What memory keeps of a frame, [1 + K, h, w]."""
        return probs


class Decoding:
    """Mask-embedded segmentation (Li et al. 2023) on top of any readout.

    What memory holds of a frame are planes: one for the background, then for every object its mask followed
    by the channels of V([frame, mask]). A readout copies all of them alike, which gives the coarse masks
    Y-bar_q and V_q = A^T V_r; then every round is Y-hat_q = D([V_q, V([I_q, Y-bar_q])]), fed back as the next
    Y-bar_q.

    Args:
        segmenter: V and D.
        extractor: for its device, its precision and its stride.
        rounds: passes through V and D, at least 1.
        chunks: `channels // 4` objects go through V and D at once; less memory, the same result.

    Attributes:
        mask_stride: pixels of the image per cell of the answer.
    """

    def __init__(
        self, segmenter: MaskSegmenter, extractor: FeatureExtractor, rounds: int, chunks: Chunks
    ) -> None:
        self._segmenter, self._extractor = segmenter.eval(), extractor
        self._rounds, self._chunks = rounds, chunks
        self._width = 1 + segmenter.mask_dim
        self._fine = bool(segmenter.settings["upsample"])
        self.mask_stride = 4 if self._fine else extractor.output_stride
        self.to(extractor.device)

    def to(self, device: torch.device) -> None:
        """Move the networks."""
        self._segmenter.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def planes(self, channels: Iterable[int]) -> list[int]:
        """Planes of value channels, where channel 0 is background and channel k the k-th object."""
        starts = [1 + (channel - 1) * self._width if channel else 0 for channel in channels]
        return [plane for start in starts for plane in range(start, start + (self._width if start else 1))]

    def mask_grid(self, frame: PreparedFrame) -> tuple[int, int]:
        """The grid of the answer."""
        if not self._fine:
            return frame.features.shape[1], frame.features.shape[2]
        height, width = frame.image.shape[1:]
        return -(-height // 4), -(-width // 4)

    @torch.no_grad()
    def answer(self, frame: PreparedFrame, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities after the last round, and the masks that were copied.

        Args:
            frame: the query.
            planes: read out of memory, [P, h, w].

        Returns:
            [1 + K, h', w'] on `mask_grid`, which sum to 1, and [1 + K, h, w]; channel 0 is background.
        """
        objects = rearrange(planes[1:], "(k d) h w -> 1 k d h w", d=self._width)
        coarse, support = objects[:, :, 0], objects[:, :, 1:]

        def refine(masks: Tensor) -> Tensor:
            parts = zip(*(torch.split(x, self._objects_at_once, dim=1) for x in (support, masks, coarse)))
            with self._extractor.autocast():
                refined = [self._segmenter.refine(frame.image[None], *part) for part in parts]
            return torch.cat(refined, dim=1)

        probs = refinement_rounds(refine, coarse, self._rounds)[-1].softmax(1)[0]
        return probs, torch.cat([planes[:1], coarse[0]])

    @torch.no_grad()
    def store(self, frame: PreparedFrame, probs: Tensor) -> Tensor:
        """What memory keeps of a frame.

        Args:
            frame: the frame.
            probs: masks of background and objects, [1 + K, h', w'].

        Returns:
            Planes, [P, h, w] float32.
        """
        grid = frame.features.shape[1:]
        values = probs
        if probs.shape[1:] != grid:
            values = functional.interpolate(probs[None], grid, mode="area")[0]
        with self._extractor.autocast():
            embedded = [
                self._segmenter.embed(frame.image[None], part[None]).features.float()
                for part in torch.split(probs[1:], self._objects_at_once)
            ]
        objects = torch.cat([values[1:, None], torch.cat(embedded)], dim=1)
        return torch.cat([values[:1], rearrange(objects, "k d h w -> (k d) h w")])

    @property
    def _objects_at_once(self) -> int:
        return max(1, self._chunks.channels // 4)  # a pass through V and D holds far more than a mask


def make_strategy(
    segmenter: MaskSegmenter | None, extractor: FeatureExtractor, rounds: int, chunks: Chunks
) -> Copying | Decoding:
    """Decoding where there are rounds, else copying.

    Raises:
        UsageError: rounds without a segmenter (E186).
    """
    if rounds == 0:
        return Copying(extractor.output_stride)
    if segmenter is None:
        message = f"rounds is {rounds}, but there is no mask encoder and mask decoder"
        raise UsageError("E186", message, "Give a segmenter, or use rounds=0, which copies masks without it.")
    return Decoding(segmenter, extractor, rounds, chunks)
