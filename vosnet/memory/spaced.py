"""Features and label values of single frames, old and recent: those that the rule "mast" may still read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vosnet.memory.bank import Context, opened_contexts
from vosnet.memory.context import REFERENCES, References, spaced_frames

_HORIZON = 6  # a frame that none of the next so many queries reads is read by no later one


class SpacedBank:
    """The frames that `spaced_frames` names for the next query or a later one, shared by all contexts.

    At most seven frames and two for each further context; with `references="all"` every frame, so that memory
    and time per frame grow with the length of the video.

    Args:
        references: frames read per query; see `spaced_frames`.
    """

    def __init__(self, references: References) -> None:
        self.references = self._asked = references
        self.contexts: list[Context] = []
        self.length = 0  # frames seen
        self._frames: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes held; independent of the length of the video but for `references="all"`."""
        tensors = [tensor for frame in self._frames.values() for tensor in frame]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def append(self, features: Tensor, values: Tensor, reference_for: Sequence[int] = ()) -> None:
        """Keep a frame, and forget those that nothing will read again.

        Args:
            features: [C, h, w].
            values: [M, h, w], all channels known by now.
            reference_for: the channels that are copied from this frame as their reference frame from now on;
                other contexts lose them. The first frame needs some.
        """
        frame = features.clone(), values.clone()
        self._frames[self.length] = frame
        if reference_for:
            opened = Context(self.length, list(reference_for), *frame)
            self.contexts = opened_contexts(self.contexts, opened)
        self.length += 1
        self._forget()

    def frames_read(self, context: Context) -> list[int]:
        """The frames that the next frame reads through `context`, in the order of `read`."""
        return spaced_frames(self.length, self.references, context.start)

    def read(self, context: Context) -> tuple[Tensor, Tensor]:
        """What the next frame reads through `context`.

        Returns:
            Features [T, C, h, w] and values [T, len(context.channels), h, w], the oldest frame first.
        """
        held = [self._frames[frame] for frame in self.frames_read(context)]
        values = [_channels(values, context.channels) for _, values in held]
        return torch.stack([features for features, _ in held]), torch.stack(values)

    def to(self, device: torch.device) -> None:
        """Move everything held."""
        self._frames = {t: (f.to(device), v.to(device)) for t, (f, v) in self._frames.items()}
        self._rebind()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything needed to go on later: tensors, and JSON values."""
        tensors: dict[str, Tensor] = {}
        for index, (features, values) in self._frames.items():
            tensors |= {f"frame.{index}.features": features, f"frame.{index}.values": values}
        contexts = [{"start": context.start, "channels": context.channels} for context in self.contexts]
        described = {"length": self.length, "contexts": contexts, "frames": list(self._frames)}
        return tensors, {**described, "references": self.references}

    def load_state(self, tensors: dict[str, Tensor], described: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.length, self.references = int(described["length"]), described["references"]
        self._frames = {
            t: (tensors[f"frame.{t}.features"], tensors[f"frame.{t}.values"]) for t in described["frames"]
        }
        self.contexts = [
            Context(entry["start"], list(entry["channels"]), *self._frames[entry["start"]])
            for entry in described["contexts"]
        ]

    def shrink(self) -> str | None:
        """Read fewer frames from now on and say so: less memory, another result. None at the smallest."""
        if self.references == 1:
            return None
        smaller = 5 if self.references == "all" else REFERENCES[REFERENCES.index(self.references) - 1]
        self.references = smaller
        self._forget()
        return f"{smaller} references instead of {self._asked} (results change)"

    def _forget(self) -> None:
        starts = {context.start for context in self.contexts}
        queries = range(self.length, self.length + _HORIZON)
        needed = {frame for s in starts for t in queries for frame in spaced_frames(t, self.references, s)}
        self._frames = {t: frame for t, frame in self._frames.items() if t in needed | starts}

    def _rebind(self) -> None:
        for context in self.contexts:
            context.features, context.values = self._frames[context.start]


def _channels(values: Tensor, wanted: Sequence[int]) -> Tensor:
    """Channels of a frame's values; those that appeared after it are empty."""
    known = [channel for channel in wanted if channel < values.shape[0]]
    if len(known) == len(wanted):
        return values[known]
    out = values.new_zeros(len(wanted), *values.shape[1:])
    out[[i for i, channel in enumerate(wanted) if channel < values.shape[0]]] = values[known]
    return out
