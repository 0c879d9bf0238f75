"""The order in which a clip's frames are walked through, by direction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np

from vosnet.errors import InputError, UsageError


@dataclass(frozen=True)
class Pass:
    """One walk over the frames.

    Attributes:
        start: index of its first frame, which is annotated.
        step: 1 or -1.
        last_mask: index of the last annotated frame on the way.
        silent_start: the first frame is processed but not answered, because another pass did.
    """

    start: int
    step: int
    last_mask: int
    silent_start: bool = False

    def frames(self, frames: Any, done: int) -> Iterator[tuple[int, np.ndarray]]:
        """(index, frame) of the frames behind position `done`.

        Raises:
            InputError: the clip ended before an annotated frame (E284).
        """
        first = self.start + self.step * (done + 1)
        index = first - self.step
        if _is_indexable(frames) and (first > 0 or self.step == -1):
            stop = len(frames) if self.step == 1 else -1
            for index in range(first, stop, self.step):
                yield index, np.asarray(frames[index])
        else:  # readers are quickest when they stream
            for place, frame in enumerate(frames):
                if place >= first:
                    index = place
                    yield index, np.asarray(frame)
        if self.step == 1 and self.last_mask > index:
            raise _mask_beyond(self.last_mask, index + 1 if index >= self.start else None)


def plan_passes(frames: Iterable[np.ndarray], masks: Mapping[int, np.ndarray], direction: str) -> list[Pass]:
    """The passes of a direction, after checking what can be checked before the first frame.

    Raises:
        UsageError: an unknown direction, no masks, or frames that cannot be indexed (E165).
        InputError: a mask for a frame that is not there (E284).
    """
    if direction not in {"forward", "backward", "both"}:
        raise UsageError("E165", f"direction must be forward, backward or both, got {direction!r}")
    if not masks:
        raise UsageError("E165", "no mask is given", "Give at least one, such as masks={0: mask}.")
    first, last = int(min(masks)), int(max(masks))
    if first < 0:
        raise InputError("E284", f"mask for frame {first}: frames are counted from 0")
    if isinstance(frames, Sized) and last >= len(frames):
        raise _mask_beyond(last, len(frames))
    if direction != "forward" and not _is_indexable(frames):
        name = type(frames).__name__
        message = f"direction {direction!r} reads frames out of order, but {name} only streams"
        raise UsageError("E165", message, "Give a list, an array [T, H, W, 3] or a VideoReader.")
    passes = {
        "forward": [Pass(first, 1, last)],
        "backward": [Pass(last, -1, first)],
        "both": [Pass(first, 1, last), Pass(first, -1, first, silent_start=True)],
    }
    return passes[direction]


def _is_indexable(frames: object) -> bool:
    return hasattr(frames, "__len__") and hasattr(frames, "__getitem__")


def _mask_beyond(index: int, length: int | None) -> InputError:
    has = "is shorter" if length is None else f"has {length} frames"
    return InputError("E284", f"mask for frame {index}, but the clip {has}", "Frames are counted from 0.")
