"""The given masks of a clip: its objects, and from which frame on each is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vosnet.masks import object_ids, with_annotation
from vosnet.video.selection import Direction

Masks = Mapping[int, np.ndarray]


@dataclass(frozen=True)
class Annotations:
    """The given masks of a clip, and the direction they were propagated in.

    Attributes:
        masks: label maps [H, W] by frame index.
        direction: as propagated: "both" is forward from the first annotated frame, then backward from it.
    """

    masks: Masks
    direction: Direction = "forward"

    @cached_property
    def ids(self) -> dict[int, set[int]]:
        """Objects of each annotated frame."""
        return {index: set(object_ids(mask)) for index, mask in self.masks.items()}

    @property
    def objects(self) -> list[int]:
        """All objects, ascending."""
        return sorted(set().union(*self.ids.values()))

    def known(self, index: int) -> set[int]:
        """Objects annotated by the time the propagation reaches frame `index`."""
        if self.direction == "both" and index < min(self.ids):
            return self.ids[min(self.ids)]
        backward = self.direction == "backward"
        seen = [ids for i, ids in self.ids.items() if (i >= index if backward else i <= index)]
        return set().union(*seen)

    def distance(self, index: int) -> int:
        """Frames between frame `index` and the one where the propagation began."""
        return abs(index - (max(self.masks) if self.direction == "backward" else min(self.masks)))

    def over(self, index: int, mask: np.ndarray) -> np.ndarray:
        """`mask` of frame `index` with the given pixels over it, if the frame is annotated."""
        return with_annotation(mask, self.masks[index]) if index in self.masks else mask
