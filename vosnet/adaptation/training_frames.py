"""What the appearance model learns from: a bounded, even sample of a clip's frames, and random batches."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vosnet.adaptation.annotations import Annotations
from vosnet.adaptation.settings import AdaptationSettings, Decay
from vosnet.transforms import nearest_index, random_similarity, warp_images, warp_nearest
from vosnet.transforms.photometric import ColorJitter, jitter_colors


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
    """The annotated frames and at most `capacity` others, spread evenly over however many are added.

    Args:
        annotations: their objects are the channels from 1 on.
        size: side of the stored pictures in pixels.
        capacity: frames kept; when one more arrives, every second one is dropped and the step doubles.
    """

    def __init__(self, annotations: Annotations, size: int, capacity: int) -> None:
        self.annotations, self.size, self._capacity, self._step = annotations, size, capacity, 1
        self._ids = annotations.objects
        self._channel = np.zeros(256, np.uint8)
        self._channel[self._ids] = np.arange(1, len(self._ids) + 1)
        self._frames: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._offered = 0
        self._loose: dict[int, int] = {}  # place in the order of arrival -> frame index

    @property
    def indices(self) -> list[int]:
        """Frames that are kept, ascending."""
        return sorted(self._frames)

    def add(self, index: int, frame: np.ndarray, mask: np.ndarray) -> None:
        """Offer the frame `index` of the clip.

        Args:
            index: in the clip.
            frame: [H, W, 3] uint8.
            mask: propagated object ids, [H, W] uint8; given pixels go over them.
        """
        if index not in self.annotations.masks:
            place, self._offered = self._offered, self._offered + 1
            if place % self._step:
                return
            self._loose[place] = index
        mask = self.annotations.over(index, mask)
        small = cv2.resize(mask, (self.size, self.size), interpolation=cv2.INTER_NEAREST_EXACT)
        known = self.annotations.known(index)
        there = np.array([True, *(i in known for i in self._ids)])
        self._frames[index] = (fit(frame, self.size), self._channel[small], there)
        while len(self._loose) > self._capacity:
            self._step *= 2
            for place in [place for place in self._loose if place % self._step]:
                del self._frames[self._loose.pop(place)]

    def read(self, indices: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Frames [N, 3, S, S] in 0..1 (channels last in memory), channels [N, S, S] int64, known [N, K]."""
        frames, labels, known = (np.stack(part) for part in zip(*(self._frames[i] for i in indices)))
        images = rearrange(torch.from_numpy(frames).to(device), "n h w c -> n c h w").float() / 255
        return images, torch.from_numpy(labels).to(device).long(), torch.from_numpy(known).to(device)


class Batches:
    """Random, augmented batches; a function of the seed alone.

    Args:
        frames: what to draw from.
        settings: how often which frames are drawn, and how they are augmented.
    """

    def __init__(self, frames: TrainingFrames, settings: AdaptationSettings) -> None:
        self._frames, self._settings = frames, settings
        given = frames.annotations
        distances = [given.distance(index) for index in frames.indices]
        weights = frame_weights(distances, decay=settings.decay, last_weight=settings.last_weight)
        annotated = torch.tensor([index in given.masks for index in frames.indices])
        self._shares = torch.zeros_like(weights)
        for part, share in ((annotated, settings.given_share), (~annotated, 1 - settings.given_share)):
            if bool(part.any()):
                self._shares[part] = share * weights[part] / weights[part].sum()
        self._generator = torch.Generator().manual_seed(settings.seed)

    def draw(self, count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """`count` samples as `TrainingFrames.read` gives them, augmented."""
        places = torch.multinomial(self._shares, count, replacement=True, generator=self._generator)
        chosen = [self._frames.indices[i] for i in places.tolist()]
        images, labels, known = self._frames.read(chosen, device)
        draws = torch.rand(count, ColorJitter.DRAWS, generator=self._generator)
        images, labels = self._moved(jitter_colors(images, draws, self._settings.jitter), labels)
        return images.contiguous(memory_format=torch.channels_last), labels, known

    def _moved(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        zoom, flip = self._settings.zoom, self._settings.flip_probability
        moves = [random_similarity(self._generator, zoom=zoom, flip_probability=flip) for _ in images]
        theta = torch.stack(moves).to(images.device)
        if zoom == (1.0, 1.0):  # a plain mirror needs no interpolation
            mirrored = (theta[:, 0, 0] < 0)[:, None, None]
            images = torch.where(mirrored[:, None], images.flip(-1), images)
            return images, torch.where(mirrored, labels.flip(-1), labels)
        index = nearest_index(theta, labels.shape[-2], labels.shape[-1])
        moved = warp_nearest(labels[:, None, None], index)[:, 0, 0]
        return warp_images(images[:, None], theta)[:, 0], moved
