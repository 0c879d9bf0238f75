"""Masks of a clip as files: palette PNGs, binary PNGs, COCO run lengths."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vosnet.export.coco import CocoVideo
from vosnet.export.folder import ResultFolder
from vosnet.export.options import Format
from vosnet.files import atomic_path, write_json
from vosnet.masks import read_mask, write_mask
from vosnet.video.selection import FrameSelection


class MaskFiles:
    """The masks of a clip, written in every format asked for and read back.

    Args:
        folder: where files go.
        selection: the frames.
        formats: beside the palette PNGs, which are always written.
        under: the sub-folder of the palette PNGs.
    """

    def __init__(
        self,
        folder: ResultFolder,
        selection: FrameSelection,
        formats: tuple[Format, ...],
        under: str = "masks",
    ) -> None:
        names = selection.reader.names
        self.names = [names[index] for index in selection.indices]
        self._folder, self._formats, self._under = folder, formats, under
        self._size = selection.reader.size
        self._coco = (
            CocoVideo(selection.reader.path.stem, self.names, selection.reader.size)
            if "coco-video" in formats
            else None
        )
        self.seconds = 0.0

    def write(self, place: int, mask: NDArray[np.uint8]) -> None:
        """Write the mask of the frame at `place` in the selection, [H, W] ids."""
        began = time.perf_counter()
        name = self.names[place]
        write_mask(self._folder.path(f"{self._under}/{name}.png"), mask)
        if "binary" in self._formats:
            for label in np.unique(mask[mask > 0]):
                with atomic_path(self._folder.path(f"binary/{label}/{name}.png")) as temporary:
                    Image.fromarray(((mask == label) * 255).astype(np.uint8)).save(temporary)
        self.seconds += time.perf_counter() - began

    def read(self, place: int) -> NDArray[np.uint8]:
        """The mask written for the frame at `place`; empty for a frame that was not answered."""
        path = self._path(place)
        return read_mask(path).ids if path.is_file() else np.zeros(self._size, np.uint8)

    def answered(self) -> list[int]:
        """Places whose mask is written."""
        return [place for place in range(len(self.names)) if self._path(place).is_file()]

    def _path(self, place: int) -> Path:
        return self._folder.root / self._under / f"{self.names[place]}.png"

    def finish(self) -> None:
        """Write what needs every frame."""
        if self._coco is not None:
            for place in range(len(self.names)):
                self._coco.add(place, self.read(place))
            write_json(self._folder.path("coco_video.json"), self._coco.document())
