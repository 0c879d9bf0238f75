"""Features and label values of the frames that may still be read: a ring of bounded size."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vosnet.memory.context import Context, ContextRule, Reading, context_frames, open_context

Frame = tuple[Tensor, Tensor]  # features [C, h, w] and values [M, h, w]


class MemoryBank:
    """The reference frames and a ring of the most recent frames, shared by all contexts.

    Slot 0 holds the reference frame being read, slots 1..num_recent the ring. While the video is young, free
    slots hold copies of the first reference frame, so that a context is a prefix of the slots and is read
    without copying.

    Args:
        rule: see `context_frames`.
        num_recent: frames in the ring.
        k: neighbors per query: more than k copies of a frame cannot be chosen, so only k are read. The
            multiset of the k nearest, and therefore the readout, is that of the full context. None reads
            every copy.
    """

    def __init__(self, rule: ContextRule, num_recent: int, k: int | None) -> None:
        self.rule, self.num_recent, self.k = rule, num_recent, k
        self._asked = num_recent
        self.contexts: list[Context] = []
        self.length = 0  # frames seen
        self._features = torch.empty(0)  # [1 + num_recent, C, h, w]
        self._values = torch.empty(0)  # [1 + num_recent, M, h, w]
        self._references: dict[int, Frame] = {}  # of each context, by its start
        self._in_front: int | None = None  # start of the context whose reference frame is in slot 0

    @property
    def num_bytes(self) -> int:
        """Bytes held, all of it independent of the length of the video."""
        tensors = [self._features, self._values, *(x for frame in self._references.values() for x in frame)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def append(self, features: Tensor, values: Tensor, reference_for: Sequence[int] = ()) -> None:
        """Keep a copy of a frame as the most recent one; the oldest of the ring makes room.

        Memory is taken before anything changes, so that a call that runs out of it can be repeated.

        Args:
            features: [C, h, w].
            values: [M, h, w], all channels known by now.
            reference_for: the channels that are copied from this frame as their reference frame from now on;
                other contexts lose them. The first frame needs some.
        """
        copy = (features.clone(), values.clone()) if reference_for else None
        if self.length == 0:
            ring = features.repeat(1 + self.num_recent, 1, 1, 1), values.repeat(1 + self.num_recent, 1, 1, 1)
        else:
            ring = self._features, _widened(self._values, values.shape[0], dim=1)
        place: tuple[Tensor, ...] = ()
        if self.length >= self._oldest and self.num_recent > 0:
            place = tuple(part[self._slot(self.length)] for part in ring)
        for slot, part in zip(place, (features, values)):  # nothing above has changed anything yet
            slot.copy_(part)
        self._features, self._values = ring
        if copy is not None:
            self.contexts = open_context(self.contexts, self.length, reference_for)
            held = {**self._references, self.length: copy}
            self._references = {context.start: held[context.start] for context in self.contexts}
        self.length += 1

    def read(self, context: Context) -> Reading:
        """What the next frame reads: the reference frame, then recent frames in no particular order."""
        frames = context_frames(self.length, self.num_recent, self.rule, context.start)[1:]
        repeated = frames.count(context.start) if self.rule == "replicate" else 0
        ring, copies = frames[repeated:], repeated if self.k is None else min(repeated, self.k - 1)
        if context.start == 0 or len(ring) == self.num_recent:
            self._bring_to_front(context.start)
            count = 1 + len(ring) + copies
            features, values = self._features[:count], self._values[:count]
        else:  # the ring also holds frames older than this reference frame
            slots = [self._slot(frame) for frame in ring]
            reference, labels = self._references[context.start]
            labels = _widened(labels, self._values.shape[1], dim=0)
            features = _with_copies(reference, self._features[slots], copies)
            values = _with_copies(labels, self._values[slots], copies)
        return Reading(features, values[:, context.channels], [1] * len(features))

    def to(self, device: torch.device) -> None:
        """Move everything held."""
        self._features, self._values = self._features.to(device), self._values.to(device)
        self._references = {t: (f.to(device), v.to(device)) for t, (f, v) in self._references.items()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything needed to go on later: tensors, and JSON values."""
        tensors = {"ring.features": self._features, "ring.values": self._values}
        for i, context in enumerate(self.contexts):
            features, values = self._references[context.start]
            tensors |= {f"context.{i}.features": features, f"context.{i}.values": values}
        contexts = [dataclasses.asdict(context) for context in self.contexts]
        return tensors, {"length": self.length, "num_recent": self.num_recent, "contexts": contexts}

    def load_state(self, tensors: dict[str, Tensor], described: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self._features, self._values = tensors["ring.features"], tensors["ring.values"]
        self.length, self.num_recent = int(described["length"]), int(described["num_recent"])
        self.contexts = [Context(entry["start"], list(entry["channels"])) for entry in described["contexts"]]
        self._references = {
            context.start: (tensors[f"context.{i}.features"], tensors[f"context.{i}.values"])
            for i, context in enumerate(self.contexts)
        }
        self._in_front = None

    def shrink(self) -> str | None:
        """Keep half of the recent frames from now on and say so; None when there is only one."""
        if self.num_recent <= 1:
            return None
        self.forget_oldest(self.num_recent // 2)
        return f"{self.num_recent} recent frames instead of {self._asked} (results change)"

    def forget_oldest(self, num_recent: int) -> None:
        """Keep only the `num_recent` most recent frames from now on: less memory, another result."""
        frames = range(max(self._oldest, self.length - num_recent), self.length)
        slots = [self._slot(frame) for frame in frames]
        kept = [(self._features[slot].clone(), self._values[slot].clone()) for slot in slots]
        self.num_recent = num_recent
        self._features = self._features[: 1 + num_recent].clone()
        self._values = self._values[: 1 + num_recent].clone()
        for frame, (features, values) in zip(frames, kept):
            self._features[self._slot(frame)], self._values[self._slot(frame)] = features, values

    @property
    def _oldest(self) -> int:
        """First frame that goes into the ring: the reference frame only under the rule that repeats it."""
        return 0 if self.rule == "clamp" else 1

    def _slot(self, frame: int) -> int:
        return 1 + (frame - self._oldest) % self.num_recent

    def _bring_to_front(self, start: int) -> None:
        """Put the reference frame of a context into slot 0."""
        if self._in_front == start:
            return
        features, values = self._references[start]
        self._in_front = None  # until all of it is there
        self._features[0].copy_(features)
        self._values[0, : values.shape[0]].copy_(values)  # no context reads channels that joined after it
        self._in_front = start


def _widened(values: Tensor, channels: int, *, dim: int) -> Tensor:
    """Values with empty channels for objects that joined later."""
    missing = list(values.shape)
    missing[dim] = channels - missing[dim]
    return torch.cat([values, values.new_zeros(missing)], dim) if missing[dim] else values


def _with_copies(reference: Tensor, recent: Tensor, copies: int) -> Tensor:
    return torch.cat([reference[None], recent, reference.expand(copies, -1, -1, -1)])
