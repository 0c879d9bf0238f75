"""Masks as COCO run lengths in the layout of YouTube-VIS, for any number of objects."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vosnet.errors import UsageError


class CocoVideo:
    """Collects one video's masks frame by frame as compressed run lengths.

    Raises:
        UsageError: pycocotools is not installed.
    """

    def __init__(self, name: str, file_names: list[str], size: tuple[int, int]) -> None:
        try:
            from pycocotools import mask as coco_mask
        except ImportError as error:
            raise UsageError("E117", "COCO output needs pycocotools", 'pip install "vosnet[coco]"') from error
        self._encode = coco_mask.encode
        self._num_frames = len(file_names)
        self._video = {"id": 1, "file_names": file_names, "height": size[0], "width": size[1], "name": name}
        self._tracks: dict[int, list[dict[str, Any] | None]] = {}

    def add(self, index: int, mask: NDArray[np.integer]) -> None:
        """Record the objects of frame `index`; `mask` holds ids, [H, W]."""
        for label in np.unique(mask):
            if label == 0:
                continue
            run_lengths = self._encode(np.asfortranarray(mask == label).astype(np.uint8))
            track = self._tracks.setdefault(int(label), [None] * self._num_frames)
            track[index] = {
                "size": list(run_lengths["size"]),
                "counts": run_lengths["counts"].decode("ascii"),
            }

    def document(self) -> dict[str, Any]:
        """The whole file: videos, annotations (one per object, None where it is absent), categories."""
        annotations = [
            {"id": label, "video_id": 1, "category_id": 1, "iscrowd": 0, "segmentations": track}
            for label, track in sorted(self._tracks.items())
        ]
        categories = [{"id": 1, "name": "object"}]
        return {"videos": [self._video], "annotations": annotations, "categories": categories}
