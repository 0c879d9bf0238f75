"""Pseudo masks: the space-time clusters of every training video, stored per video and cut like the clips."""

from __future__ import annotations

import io
import json
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from vosnet import files
from vosnet.datasets.frames import StoredVideo
from vosnet.errors import InputError, StorageError, VosnetError
from vosnet.masks import DAVIS_PALETTE
from vosnet.objectives.base import RefreshInterval, RefreshJob
from vosnet.objectives.clustering import assign_clusters, cell_points, fit_clusters
from vosnet.transforms import Clip, encoder_input, resize_short_side
from vosnet.transforms.lab import ColorSpace

PUBLISHED_EPOCHS = 10
NO_LABEL = 255  # in the files; -1 for those who read them
MAX_WITHOUT_SHARE = 0.05
_BATCH_FRAMES = 8
_SHEET_VIDEOS, _SHEET_FRAMES, _SHEET_WIDTH = 4, 6, 192
LabelMaps = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ClusterSettings:
    """How a video is divided; the paper gives num_clusters and the sinusoidal (t, y, x), the rest is ours.

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
            raise ValueError(f"num_clusters must be 2 to {NO_LABEL - 1}, got {self.num_clusters}")
        if self.position_dim < 6 or self.position_dim % 6:
            raise ValueError(f"position_dim must be a positive multiple of 6, got {self.position_dim}")
        if self.position_weight < 0:
            raise ValueError(f"position_weight must not be negative, got {self.position_weight}")
        for name in ("centroid_every", "upsample"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class VideoMaps:
    """The label maps of one video.

    Args:
        labels: cluster of every cell, [T, h, w] uint8, `NO_LABEL` for none.
        cell: height and width of a cell as shares of the frame's; the last row and column may stick out.
    """

    labels: LabelMaps
    cell: tuple[float, float]


def refresh_interval(epochs: float | None, steps: int | None, minutes: float | None) -> RefreshInterval:
    """The clock that is given, or the published one: every 10 epochs.

    Raises:
        ValueError: several are given, or one is not positive.
    """
    clocks = (epochs, steps, minutes)
    given = any(clock is not None for clock in clocks)
    return RefreshInterval(*clocks) if given else RefreshInterval(epochs=PUBLISHED_EPOCHS)


def write_pseudo_masks(job: RefreshJob, encoder: nn.Module, settings: ClusterSettings) -> Iterator[str]:
    """Cluster this rank's share of the videos and store the label maps; the body of `Objective.refresh`.

    A video that cannot be read or divided gets no maps; the store then answers -1 for its cells. Part 0 also
    draws `sheet.png`: frames of a few videos under their clusters.

    Args:
        job: which videos, and the folder.
        encoder: images to features, [N, 3, H, W] -> [N, C, h, w], with `output_stride`. Runs in eval mode, on
            its own device and in the job's precision; left in the mode it was in.
        settings: how a video is divided.

    Yields:
        The name of each video, done.

    Raises:
        InputError: more than 5 % of the videos have no maps, with one reason.
        StorageError: the disk is full or not writable.
    """
    share, without = job.share(), {}
    drawn: list[npt.NDArray[np.uint8]] = []
    for video in share:
        try:
            maps = cluster_video(video, encoder, settings, bfloat16=job.bfloat16)
            _write_maps(job.folder / _file_name(video.name), video.name, maps)
            if job.part == 0 and len(drawn) < _SHEET_VIDEOS:
                drawn.append(_sheet_row(video, maps))
        except StorageError:
            raise
        except (VosnetError, OSError) as error:
            without[video.name] = str(error)
        yield video.name
    if len(without) > MAX_WITHOUT_SHARE * len(share):
        name, reason = next(iter(without.items()))
        raise InputError(
            "E182",
            f"{len(without)} of {len(share)} videos get no pseudo masks (limit 5 %), such as {name}: "
            f"{reason}",
            "Leave those videos out of the training data.",
        )
    files.write_json(job.folder / f"without.{job.part}.json", without)
    if drawn:
        with files.atomic_path(job.folder / "sheet.png") as path:
            Image.fromarray(np.concatenate(drawn)).save(path)


def cluster_video(
    video: StoredVideo, encoder: nn.Module, settings: ClusterSettings, *, bfloat16: bool = False
) -> VideoMaps:
    """The space-time clusters of all frames of one video.

    Frames are encoded a few at a time, each once: memory holds the features that centroids are fitted on,
    their points, and the label maps.

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


class PseudoMasks:
    """The label maps in a folder that `write_pseudo_masks` filled.

    Args:
        folder: of one version.
        cache_bytes: memory for label maps that were read.
    """

    def __init__(self, folder: Path, *, cache_bytes: int = 256_000_000) -> None:
        self.folder, self.cache_bytes = folder, cache_bytes
        self._cache: OrderedDict[str, VideoMaps | None] = OrderedDict()
        self._cached_bytes = 0
        self._without: dict[str, str] = {}
        for path in sorted(folder.glob("without.*.json")):
            self._without |= json.loads(path.read_text(encoding="utf-8"))

    def labels(self, clip: Clip, grid: tuple[int, int]) -> Tensor:
        """The clusters that the cells of a clip's main view show: boxes and flips as the frames were cut.

        Args:
            clip: knows where it was cut from.
            grid: h and w, the cells of a frame.

        Returns:
            Cluster of the map's cell under the middle of each cell, [B, T, h, w] int64 on the clip's device;
            -1 where a frame has none. Numbers mean something within one clip only.

        Raises:
            InputError: the folder knows nothing of a video, or fewer frames than the clip has.
            ValueError: the clip does not say where it was cut from.
        """
        if clip.cut is None:
            raise ValueError("the clip does not say where it was cut from (clip.cut is None)")
        cut = clip.cut
        rows = [
            self._clip_labels(name, ids, boxes, size.tolist(), grid)[:, :, :: -1 if flip else 1]
            for name, ids, boxes, flip, size in zip(clip.names, *cut.tensors(), strict=True)
        ]
        return torch.from_numpy(np.stack(rows)).to(clip.frames.device)

    def video(self, name: str) -> VideoMaps | None:
        """The maps of one video; None when it got none.

        Raises:
            InputError: the folder knows nothing of it, or its file is damaged.
        """
        if name not in self._cache:
            self._cache[name] = None if name in self._without else self._read(name)
            self._cached_bytes += _size(self._cache[name])
            while self._cached_bytes > self.cache_bytes and len(self._cache) > 1:
                self._cached_bytes -= _size(self._cache.popitem(last=False)[1])
        self._cache.move_to_end(name)
        return self._cache[name]

    def _read(self, name: str) -> VideoMaps:
        path = self.folder / _file_name(name)
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
                cell = tuple(stored["cell"].tolist())
                return VideoMaps(stored["labels"], cast("tuple[float, float]", cell))
        except FileNotFoundError as error:
            hint = "They were made of other videos: remove that folder, and they are made anew."
            raise InputError("E183", f"no pseudo masks of video {name} in {self.folder}", hint) from error
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            hint = "Remove its folder; the pseudo masks are then made anew."
            raise InputError("E183", f"pseudo masks {path} are damaged ({error})", hint) from error

    def _clip_labels(
        self, name: str, ids: Tensor, boxes: Tensor, size: Sequence[int], grid: tuple[int, int]
    ) -> npt.NDArray[np.int64]:
        maps = self.video(name)
        if maps is None:
            return np.full((len(ids), *grid), -1, np.int64)
        if int(ids.max()) >= len(maps.labels):
            have = f"frame {int(ids.max())} of video {name}, only of {len(maps.labels)} frames"
            hint = "They were made of other videos: remove that folder, and they are made anew."
            raise InputError("E183", f"no pseudo mask of {have} in {self.folder}", hint)
        frames = [
            cut_map(maps, t, box, size, grid) for t, box in zip(ids.tolist(), boxes.tolist(), strict=True)
        ]
        label = np.stack(frames).astype(np.int64)
        label[label == NO_LABEL] = -1
        return label


def cut_map(
    maps: VideoMaps, t: int, box: Sequence[int], size: Sequence[int], grid: tuple[int, int]
) -> LabelMaps:
    """The labels under the cells of one crop of frame `t`, nearest, [h, w]; `size` is the frame's (H, W)."""
    places = []
    for axis, start in enumerate(box[:2]):
        middle = start + (np.arange(grid[axis]) + 0.5) * box[2] / grid[axis]  # pixels of the frame
        # 1e-6: a middle on the line between two cells belongs to the second, whatever the rounding
        cell = np.floor(middle / (size[axis] * maps.cell[axis]) + 1e-6).astype(np.int64)
        places.append(np.clip(cell, 0, maps.labels.shape[1 + axis] - 1))
    labels: LabelMaps = maps.labels[t][np.ix_(*places)]
    return labels


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


def _file_name(name: str) -> str:
    """A file name for any video name."""
    return blake2b(name.encode(errors="surrogateescape"), digest_size=12).hexdigest() + ".npz"


def _write_maps(path: Path, name: str, maps: VideoMaps) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, labels=maps.labels, cell=np.array(maps.cell), name=np.array(name))
    files.write_bytes(path, buffer.getvalue())


def _size(maps: VideoMaps | None) -> int:
    return 0 if maps is None else maps.labels.nbytes


def _sheet_row(video: StoredVideo, maps: VideoMaps) -> npt.NDArray[np.uint8]:
    """Some frames of a video, half of each pixel in the color of its cluster, [H, _SHEET_FRAMES * W, 3]."""
    palette = np.frombuffer(DAVIS_PALETTE, np.uint8).reshape(256, 3)[1:]
    ids = np.linspace(0, len(video) - 1, _SHEET_FRAMES).round().astype(int).tolist()
    height = _SHEET_WIDTH * 9 // 16
    pictures = []
    for frame, t in zip(video.read(ids), ids, strict=True):
        small = np.asarray(Image.fromarray(frame).resize((_SHEET_WIDTH, height)))
        y = ((np.arange(height) + 0.5) / height / maps.cell[0]).astype(int)
        x = ((np.arange(_SHEET_WIDTH) + 0.5) / _SHEET_WIDTH / maps.cell[1]).astype(int)
        pictures.append((small // 2 + palette[maps.labels[t][np.ix_(y, x)]] // 2).astype(np.uint8))
    return np.concatenate(pictures, axis=1)
