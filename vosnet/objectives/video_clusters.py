"""The space-time clusters of one video: which cells of its frames belong together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from vosnet.datasets.frames import StoredVideo
from vosnet.errors import SettingError
from vosnet.objectives.clustering import assign_clusters, cell_points, fit_clusters
from vosnet.objectives.label_maps import NO_LABEL, LabelMaps, VideoMaps
from vosnet.objectives.settings import check_at_least
from vosnet.transforms import encoder_input, resize_short_side
from vosnet.transforms.lab import ColorSpace

_BATCH_FRAMES = 8


@dataclass(frozen=True)
class ClusterSettings:
    """How a video is divided; num_clusters and the sinusoidal (t, y, x) are the paper's, the rest is ours.

    Args:
        num_clusters: M, at most 254.
        position_dim: length of the position vector.
        position_weight: its weight beside a unit feature.
        centroid_every: centroids are fitted on every so-many-th frame; every frame is assigned to them.
        max_points: centroids are fitted on fewer frames than that when they have more cells together.
        short_side: frames are first scaled down to this shorter side in pixels; None: not at all.
        upsample: the features that are assigned are first enlarged so many times, bilinearly, which gives
            the clusters smooth borders between cells; centroids are fitted on the features as they are.
        seed: of k-means.
    """

    num_clusters: int = 5
    position_dim: int = 24
    position_weight: float = 0.5
    centroid_every: int = 4
    max_points: int = 100_000
    short_side: int | None = 256
    upsample: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.num_clusters < NO_LABEL:
            raise SettingError("num_clusters", f"must be 2 to {NO_LABEL - 1}, got {self.num_clusters}")
        if self.position_dim < 6 or self.position_dim % 6:
            raise SettingError("position_dim", f"must be a positive multiple of 6, got {self.position_dim}")
        check_at_least(0, self, "position_weight")
        check_at_least(1, self, "centroid_every", "max_points", "upsample", "short_side")


def cluster_video(
    video: StoredVideo, encoder: nn.Module, settings: ClusterSettings, *, bfloat16: bool = False
) -> VideoMaps:
    """The space-time clusters of all frames of one video.

    Frames are encoded a few at a time, each once: memory holds the features that centroids are fitted on,
    their points, and the label maps.

    Args:
        video: frames are read as they are needed.
        encoder: images to features, [N, 3, H, W] -> [N, C, h, w], with `output_stride`. Runs in eval mode, on
            its own device; left in the mode it was in.
        settings: how the video is divided.
        bfloat16: whether the encoder runs in bfloat16.

    Raises:
        InputError: the video has fewer different cells than clusters, or cannot be read.
    """
    encoded = _EncodedVideo(video, encoder, settings, bfloat16)
    count = len(video)
    first, size = encoded.features([0])
    h, w = first.shape[-2:]
    every = max(settings.centroid_every, -(-count * h * w // settings.max_points))
    fitted = range(0, count, every)
    features = torch.cat([first, *(encoded.features(ids)[0] for ids in _batches(fitted[1:]))])
    centroids = fit_clusters(
        encoded.points(features, fitted), settings.num_clusters, seed=settings.seed
    ).centroids
    labels: LabelMaps = np.empty((count, h * settings.upsample, w * settings.upsample), np.uint8)
    for part, ids in zip(torch.split(features, _BATCH_FRAMES), _batches(fitted), strict=True):
        labels[ids] = encoded.labels(part, ids, centroids)
    for ids in _batches([i for i in range(count) if i % every]):
        labels[ids] = encoded.labels(encoded.features(ids)[0], ids, centroids)
    side = float(encoder.output_stride) / settings.upsample  # type: ignore[arg-type]
    return VideoMaps(labels, (side / size[0], side / size[1]))


def _batches(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + _BATCH_FRAMES] for start in range(0, len(ids), _BATCH_FRAMES))


@dataclass(frozen=True)
class _EncodedVideo:
    """Features, points and labels of some frames of a video; `ids` says which."""

    video: StoredVideo
    encoder: nn.Module
    settings: ClusterSettings
    bfloat16: bool

    @torch.no_grad()
    def features(self, ids: Sequence[int]) -> tuple[Tensor, tuple[int, int]]:
        """[frames, C, h, w] float32, and the (H, W) that the encoder saw."""
        frames, device = self.video.read(ids), next(self.encoder.parameters()).device
        if self.settings.short_side is not None:
            frames = np.stack([resize_short_side(frame, self.settings.short_side) for frame in frames])
        images = torch.from_numpy(np.ascontiguousarray(frames)).to(device).permute(0, 3, 1, 2)
        color_space = cast("ColorSpace", getattr(self.encoder, "color_space", "rgb"))
        was_training = self.encoder.training
        self.encoder.eval()
        try:
            with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
                inputs = encoder_input(images, color_space).contiguous(memory_format=torch.channels_last)
                features: Tensor = self.encoder(inputs)
        finally:
            self.encoder.train(was_training)
        return features.float(), (frames.shape[1], frames.shape[2])

    def points(self, features: Tensor, ids: Sequence[int], upsample: int = 1) -> Tensor:
        """The points to cluster, with time counted over the whole video."""
        last = max(1, len(self.video) - 1)
        return cell_points(
            features,
            torch.tensor([i / last for i in ids], device=features.device),
            position_dim=self.settings.position_dim,
            position_weight=self.settings.position_weight,
            upsample=upsample,
        )

    def labels(self, features: Tensor, ids: Sequence[int], centroids: Tensor) -> LabelMaps:
        """Nearest centroids as maps, [frames, h, w] with h and w times `upsample`."""
        h, w = (self.settings.upsample * n for n in features.shape[-2:])
        label = assign_clusters(self.points(features, ids, self.settings.upsample), centroids)[0]
        return label.to(torch.uint8).view(-1, h, w).cpu().numpy()
