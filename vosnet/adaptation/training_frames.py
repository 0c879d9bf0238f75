"""What the appearance model learns from: a bounded, even sample of a clip's frames, and random batches."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from vosnet.transforms import nearest_index, random_similarity, warp_images, warp_nearest
from vosnet.transforms.photometric import ColorJitter, jitter_colors
from vosnet.video.selection import Direction

Decay = Literal["exponential", "linear"]


def known_ids(given: Mapping[int, Collection[int]], index: int, direction: Direction) -> set[int]:
    """Objects that a propagation has heard of at frame `index`.

    Args:
        given: object ids by annotated frame.
        index: of the frame.
        direction: as propagated: "both" is forward from the first annotated frame, then backward from it.
    """
    start = min(given)
    if direction == "both" and index < start:
        return set(given[start])
    seen = (i >= index if direction == "backward" else i <= index for i in given)
    return {label for ids, there in zip(given.values(), seen) if there for label in ids}


def frame_weights(distances: Sequence[int], *, decay: Decay, last_weight: float) -> Tensor:
    """How often each frame is drawn, relative to the annotated one: frames near it have drifted least.

    "We put more weights on the early frames in the video sequence" (appendix B of Zhu et al. 2020); the
    function is ours.

    Args:
        distances: frames between each frame and the one where propagation started.
        decay: "exponential" or "linear" from 1 at distance 0 to `last_weight` at the largest distance.
        last_weight: above 0, at most 1.

    Returns:
        [len(distances)] float64.
    """
    position = torch.tensor(distances, dtype=torch.float64) / max(1, *distances, 1)
    return last_weight**position if decay == "exponential" else 1 - (1 - last_weight) * position


def fit(frame: np.ndarray, size: int) -> np.ndarray:
    """A frame as the network sees it, [size, size, 3] uint8; the aspect is not kept."""
    if frame.shape[:2] == (size, size):
        return frame
    way = cv2.INTER_AREA if min(frame.shape[:2]) >= size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(frame, (size, size), interpolation=way))


class TrainingFrames:
    """At most `capacity` frames beside the annotated ones, spread evenly over however many are added.

    Args:
        ids: object of each channel from 1 on.
        size: side of the stored pictures in pixels.
        capacity: frames kept; when one more arrives, every second one is dropped and the step doubles.
    """

    def __init__(self, ids: Sequence[int], size: int, capacity: int) -> None:
        self.size, self._capacity, self._step = size, capacity, 1
        self._channel = np.zeros(256, np.uint8)
        self._channel[list(ids)] = np.arange(1, len(ids) + 1)
        self._ids = list(ids)
        self._frames: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._added = 0
        self._loose: dict[int, int] = {}  # place in the order of arrival -> frame index

    @property
    def indices(self) -> list[int]:
        """Frames that are kept, ascending."""
        return sorted(self._frames)

    def add(
        self, index: int, frame: np.ndarray, mask: np.ndarray, known: Collection[int], *, keep: bool
    ) -> None:
        """Offer the frame `index`.

        Args:
            index: in the clip.
            frame: [H, W, 3] uint8.
            mask: object ids, [H, W] uint8.
            known: objects annotated so far.
            keep: never drop it.
        """
        place, self._added = self._added, self._added + (not keep)
        if not keep and place % self._step:
            return
        small = cv2.resize(mask, (self.size, self.size), interpolation=cv2.INTER_NEAREST_EXACT)
        there = np.array([True, *(i in known for i in self._ids)])
        self._frames[index] = (fit(frame, self.size), self._channel[small], there)
        if not keep:
            self._loose[place] = index
            self._thin()

    def _thin(self) -> None:
        while len(self._loose) > self._capacity:
            self._step *= 2
            for place in [place for place in self._loose if place % self._step]:
                del self._frames[self._loose.pop(place)]

    def read(self, indices: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Frames [N, 3, S, S] in 0..1 (channels last in memory), channels [N, S, S] int64, known [N, K]."""
        frames, labels, known = (np.stack(part) for part in zip(*(self._frames[i] for i in indices)))
        images = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float() / 255
        return images, torch.from_numpy(labels).to(device).long(), torch.from_numpy(known).to(device)


class Batches:
    """Random, augmented batches; a function of the seed alone.

    Args:
        frames: what to draw from.
        weights: of `frames.indices`.
        given: annotated frames.
        given_share: probability that a sample is one of them.
        jitter: of colors.
        flip_probability: of mirroring left and right.
        zoom: smallest and largest side of the visible part relative to the frame.
        seed: of everything random here.
    """

    def __init__(
        self,
        frames: TrainingFrames,
        weights: Tensor,
        given: Collection[int],
        *,
        given_share: float,
        jitter: ColorJitter,
        flip_probability: float,
        zoom: tuple[float, float],
        seed: int,
    ) -> None:
        self._frames, self._jitter, self._zoom = frames, jitter, zoom
        self._flip_probability = flip_probability
        first = torch.tensor([i in given for i in frames.indices])
        shares = torch.zeros_like(weights)
        for part, share in ((first, given_share), (~first, 1 - given_share)):
            if bool(part.any()):
                shares[part] = share * weights[part] / weights[part].sum()
        self._shares = shares
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """`count` samples as `TrainingFrames.read` gives them, augmented."""
        places = torch.multinomial(self._shares, count, replacement=True, generator=self._generator)
        chosen = [self._frames.indices[i] for i in places.tolist()]
        images, labels, known = self._frames.read(chosen, device)
        images = jitter_colors(
            images, torch.rand(count, ColorJitter.DRAWS, generator=self._generator), self._jitter
        )
        images, labels = self._moved(images, labels)
        return images.contiguous(memory_format=torch.channels_last), labels, known

    def _moved(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        options = {"zoom": self._zoom, "flip_probability": self._flip_probability}
        theta = torch.stack([random_similarity(self._generator, **options) for _ in images]).to(images.device)  # type: ignore[arg-type]
        if self._zoom == (1.0, 1.0):  # a plain mirror needs no interpolation
            flip = (theta[:, 0, 0] < 0)[:, None, None]
            return torch.where(flip[:, None], images.flip(-1), images), torch.where(
                flip, labels.flip(-1), labels
            )
        index = nearest_index(theta, labels.shape[-2], labels.shape[-1])
        moved = warp_nearest(labels[:, None, None], index)[:, 0, 0]
        return warp_images(images[:, None], theta)[:, 0], moved
