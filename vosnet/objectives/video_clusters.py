"""The space-time clusters of one video: which cells of its frames belong together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
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
    count = len(video)
    features, size = _features(video, [0], encoder, settings, bfloat16=bfloat16)
    h, w = features.shape[-2:]
    every = max(settings.centroid_every, -(-count * h * w // settings.max_points))
    fitted = range(0, count, every)
    parts = [features]
    parts += [_features(video, ids, encoder, settings, bfloat16=bfloat16)[0] for ids in _batches(fitted[1:])]
    features = torch.cat(parts)
    del parts
    points = _points(features, fitted, count, settings)
    centroids = fit_clusters(points, settings.num_clusters, seed=settings.seed).centroids
    del points
    labels: LabelMaps = np.empty((count, h * settings.upsample, w * settings.upsample), np.uint8)
    for start in range(0, len(fitted), _BATCH_FRAMES):
        part = slice(start, start + _BATCH_FRAMES)
        labels[fitted[part]] = _labels(features[part], fitted[part], count, centroids, settings)
    for ids in _batches([i for i in range(count) if i % every]):
        features = _features(video, ids, encoder, settings, bfloat16=bfloat16)[0]
        labels[ids] = _labels(features, ids, count, centroids, settings)
    side = float(encoder.output_stride) / settings.upsample  # type: ignore[arg-type]
    return VideoMaps(labels, (side / size[0], side / size[1]))


def _batches(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + _BATCH_FRAMES] for start in range(0, len(ids), _BATCH_FRAMES))


def _points(
    features: Tensor, ids: Sequence[int], count: int, settings: ClusterSettings, upsample: int = 1
) -> Tensor:
    """Points of the frames `ids` of a video of `count` frames."""
    return cell_points(
        features,
        torch.tensor([i / max(1, count - 1) for i in ids], device=features.device),
        position_dim=settings.position_dim,
        position_weight=settings.position_weight,
        upsample=upsample,
    )


def _labels(
    features: Tensor, ids: Sequence[int], count: int, centroids: Tensor, settings: ClusterSettings
) -> LabelMaps:
    """Nearest centroids of frames as maps, [frames, h, w] with h and w times `upsample`."""
    h, w = (settings.upsample * n for n in features.shape[-2:])
    points = _points(features, ids, count, settings, settings.upsample)
    return assign_clusters(points, centroids)[0].to(torch.uint8).view(-1, h, w).cpu().numpy()


def _features(
    video: StoredVideo,
    ids: Sequence[int],
    encoder: nn.Module,
    settings: ClusterSettings,
    *,
    bfloat16: bool,
) -> tuple[Tensor, tuple[int, int]]:
    """Features of some frames, [frames, C, h, w], and the (H, W) that the encoder saw."""
    frames = video.read(ids)
    if settings.short_side is not None:
        frames = np.stack([resize_short_side(frame, settings.short_side) for frame in frames])
    return _encode(frames, encoder, bfloat16=bfloat16), (frames.shape[1], frames.shape[2])


@torch.no_grad()
def _encode(frames: npt.NDArray[np.uint8], encoder: nn.Module, *, bfloat16: bool) -> Tensor:
    device = next(encoder.parameters()).device
    images = torch.from_numpy(np.ascontiguousarray(frames)).to(device).permute(0, 3, 1, 2)
    color_space = cast("ColorSpace", getattr(encoder, "color_space", "rgb"))
    was_training = encoder.training
    encoder.eval()
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            inputs = encoder_input(images, color_space).contiguous(memory_format=torch.channels_last)
            features: Tensor = encoder(inputs)
    finally:
        encoder.train(was_training)
    return features.float()
