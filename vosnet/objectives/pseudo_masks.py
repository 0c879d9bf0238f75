"""Pseudo masks: label maps of the training videos, written at a refresh and read for every clip."""

from __future__ import annotations

import io
import json
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from vosnet import files
from vosnet.datasets.frames import StoredVideo
from vosnet.errors import InputError, StorageError, VosnetError
from vosnet.masks.sheet import PICTURE, sheet_row, write_sheet
from vosnet.objectives.base import RefreshJob
from vosnet.objectives.label_maps import LabelMaps, VideoMaps, cut_clip, labels_at
from vosnet.objectives.video_clusters import ClusterSettings, cluster_video
from vosnet.transforms import Clip

MAX_WITHOUT_SHARE = 0.05
_SHEET_VIDEOS, _SHEET_FRAMES = 4, 6
_OTHER_VIDEOS = "They were made of other videos: remove that folder, and they are made anew."


def write_pseudo_masks(job: RefreshJob, encoder: nn.Module, settings: ClusterSettings) -> Iterator[str]:
    """Cluster this rank's share of the videos and store the label maps; the body of `Objective.refresh`.

    A video that cannot be read or divided gets no maps; `PseudoMasks` then answers -1 for its cells. Part 0
    also draws `sheet.png`: frames of a few videos under their clusters.

    Args:
        job: which videos, and the folder.
        encoder: see `cluster_video`; runs in the job's precision.
        settings: how a video is divided.

    Yields:
        The name of each video, done.

    Raises:
        InputError: more than 5 % of the videos have no maps, with one reason.
        StorageError: the disk is full or not writable.
    """
    share, without = job.share(), {}
    drawn: list[LabelMaps] = []
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
        write_sheet(job.folder / "sheet.png", drawn)


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
        ids, boxes, flips, sizes = (tensor.tolist() for tensor in clip.cut.tensors())
        rows = [
            cut_clip(self._maps(name, max(ids[b])), ids[b], boxes[b], sizes[b], grid, flip=flips[b])
            for b, name in enumerate(clip.names)
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
            message = f"no pseudo masks of video {name} in {self.folder}"
            raise InputError("E183", message, _OTHER_VIDEOS) from error
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            hint = "Remove its folder; the pseudo masks are then made anew."
            raise InputError("E183", f"pseudo masks {path} are damaged ({error})", hint) from error

    def _maps(self, name: str, last: int) -> VideoMaps | None:
        """`video`, of at least `last` + 1 frames."""
        maps = self.video(name)
        if maps is not None and last >= len(maps.labels):
            have = f"frame {last} of video {name}, only of {len(maps.labels)} frames"
            raise InputError("E183", f"no pseudo mask of {have} in {self.folder}", _OTHER_VIDEOS)
        return maps


def _file_name(name: str) -> str:
    """A file name for any video name."""
    return blake2b(name.encode(errors="surrogateescape"), digest_size=12).hexdigest() + ".npz"


def _write_maps(path: Path, name: str, maps: VideoMaps) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, labels=maps.labels, cell=np.array(maps.cell), name=np.array(name))
    files.write_bytes(path, buffer.getvalue())


def _size(maps: VideoMaps | None) -> int:
    return 0 if maps is None else maps.labels.nbytes


def _sheet_row(video: StoredVideo, maps: VideoMaps) -> LabelMaps:
    """Some frames of a video under their clusters."""
    ids = np.linspace(0, len(video) - 1, _SHEET_FRAMES).round().astype(int).tolist()
    rows, columns = ((np.arange(n) + 0.5) / n for n in PICTURE)
    labels = [labels_at(maps, t, rows, columns) for t in ids]
    return sheet_row(video.read(ids), labels)
