"""Features and label values of single frames, old and recent: those that the rule "mast" may still read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vosnet.memory.context import REFERENCES, Context, Reading, References, open_context, spaced_frames

_HORIZON = 6  # a frame that none of the next so many queries reads is read by no later one


class SpacedBank:
    """The frames that `spaced_frames` names for the next query or a later one, shared by all contexts.

    At most seven frames and two for each further context; with `references="all"` every frame, so that memory
    and time per frame grow with the length of the video.

    Args:
        references: frames read per query; see `spaced_frames`.
        dilation: how many times wider a frame so many frames before the query is searched.
    """

    def __init__(self, references: References, dilation: Callable[[int], int] = lambda gap: 1) -> None:
        self.references = self._asked = references
        self._dilation = dilation
        self.contexts: list[Context] = []
        self.length = 0  # frames seen
        self._frames: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes held; independent of the length of the video but for `references="all"`."""
        tensors = [tensor for frame in self._frames.values() for tensor in frame]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def append(self, features: Tensor, values: Tensor, reference_for: Sequence[int] = ()) -> None:
        """Keep a copy of a frame, and forget those that nothing will read again.

        Args:
            features: [C, h, w].
            values: [M, h, w], all channels known by now.
            reference_for: the channels that are copied from this frame as their reference frame from now on;
                other contexts lose them. The first frame needs some.
        """
        self._frames[self.length] = features.clone(), values.clone()
        if reference_for:
            self.contexts = open_context(self.contexts, self.length, reference_for)
        self.length += 1
        self._forget()

    def read(self, context: Context) -> Reading:
        """What the next frame reads, the oldest frame first."""
        frames = spaced_frames(self.length, self.references, context.start)
        held = [self._frames[frame] for frame in frames]
        return Reading(
            torch.stack([features for features, _ in held]),
            torch.stack([_channels(values, context.channels) for _, values in held]),
            [self._dilation(self.length - frame) for frame in frames],
        )

    def to(self, device: torch.device) -> None:
        """Move everything held."""
        self._frames = {t: (f.to(device), v.to(device)) for t, (f, v) in self._frames.items()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything needed to go on later: tensors, and JSON values."""
        tensors: dict[str, Tensor] = {}
        for index, (features, values) in self._frames.items():
            tensors |= {f"frame.{index}.features": features, f"frame.{index}.values": values}
        contexts = [dataclasses.asdict(context) for context in self.contexts]
        described = {"length": self.length, "contexts": contexts, "frames": list(self._frames)}
        return tensors, {**described, "references": self.references}

    def load_state(self, tensors: dict[str, Tensor], described: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.length, self.references = int(described["length"]), described["references"]
        self._frames = {
            t: (tensors[f"frame.{t}.features"], tensors[f"frame.{t}.values"]) for t in described["frames"]
        }
        self.contexts = [Context(entry["start"], list(entry["channels"])) for entry in described["contexts"]]

    def shrink(self) -> str | None:
        """Read fewer frames from now on and say so: less memory, another result. None at the smallest."""
        if self.references == 1:
            return None
        self.references = REFERENCES[REFERENCES.index(self.references) - 1]
        self._forget()
        return f"{self.references} references instead of {self._asked} (results change)"

    def _forget(self) -> None:
        starts = {context.start for context in self.contexts}
        queries = range(self.length, self.length + _HORIZON)
        needed = {frame for s in starts for t in queries for frame in spaced_frames(t, self.references, s)}
        self._frames = {t: frame for t, frame in self._frames.items() if t in needed | starts}


def _channels(values: Tensor, wanted: Sequence[int]) -> Tensor:
    """Channels of a frame's values; those that joined after it are empty."""
    picked = values.new_zeros(len(wanted), *values.shape[1:])
    there = [i for i, channel in enumerate(wanted) if channel < values.shape[0]]
    picked[there] = values[[wanted[i] for i in there]]
    return picked
