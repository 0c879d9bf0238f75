"""Features and label values of the frames that may still be read: a ring, bounded whatever the length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vosnet.memory.context import ContextRule, context_frames


@dataclass
class Context:
    """One reference frame and the value channels that are copied from it.

    Attributes:
        start: position of the reference frame.
        channels: value channels it answers for.
        features: [C, h, w].
        values: [M, h, w]; channels that appeared later do not exist yet.
    """

    start: int
    channels: list[int]
    features: Tensor
    values: Tensor


def opened_contexts(contexts: Sequence[Context], opened: Context) -> list[Context]:
    """`contexts` and a new one: each channel belongs to the context that named it last."""
    for context in contexts:
        context.channels = [channel for channel in context.channels if channel not in opened.channels]
    return [*(context for context in contexts if context.channels), opened]


class MemoryBank:
    """The reference frames and a ring of the most recent frames, shared by all contexts.

    Slot 0 holds the reference frame being read, slots 1..num_recent the ring. While the video is young, free
    slots hold copies of the first reference frame, so that a context is a prefix of the slots and is read
    without copying.

    Args:
        rule: see `context_frames`.
        num_recent: frames in the ring.
        k: neighbours per query: more than k copies of a frame cannot be chosen, so only k are read. The
            multiset of the k nearest, and therefore the read-out, is that of the full context. None reads
            every copy.
    """

    def __init__(self, rule: ContextRule, num_recent: int, k: int | None) -> None:
        self.rule, self.num_recent, self.k = rule, num_recent, k
        self._asked = num_recent
        self.contexts: list[Context] = []
        self.length = 0  # frames seen
        self._features = torch.empty(0)  # [1 + num_recent, C, h, w]
        self._values = torch.empty(0)  # [1 + num_recent, M, h, w]
        self._in_front: Context | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes held, all of it independent of the length of the video."""
        tensors = [self._features, self._values]
        for context in self.contexts:
            tensors += [context.features, context.values]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def append(self, features: Tensor, values: Tensor, reference_for: Sequence[int] = ()) -> None:
        """Keep a frame as the most recent one; the oldest of the ring makes room.

        Memory is taken before anything changes, so that a call that runs out of it can be repeated.

        Args:
            features: [C, h, w].
            values: [M, h, w], all channels known by now.
            reference_for: the channels that are copied from this frame as their reference frame from now on;
                other contexts lose them. The first frame needs some.
        """
        opened = None
        if reference_for:
            opened = Context(self.length, list(reference_for), features.clone(), values.clone())
        if self.length == 0:
            slots = 1 + self.num_recent
            ring = features.repeat(slots, 1, 1, 1), values.repeat(slots, 1, 1, 1)
        else:
            ring = self._features, self._with_channels(values.shape[0])
        self._features, self._values = ring
        if opened is not None:
            self.contexts = opened_contexts(self.contexts, opened)
        if self.length >= self._oldest and self.num_recent > 0:
            slot = self._slot(self.length)
            self._features[slot].copy_(features)
            self._values[slot].copy_(values)
        self.length += 1

    def read(self, context: Context) -> tuple[Tensor, Tensor]:
        """What the next frame reads through `context`.

        Returns:
            Features [T, C, h, w] and values [T, len(context.channels), h, w], the reference frame first.
            The recent frames follow in no particular order.
        """
        frames = context_frames(self.length, self.num_recent, self.rule, context.start)[1:]
        repeated = frames.count(context.start) if self.rule == "replicate" else 0
        ring, copies = frames[repeated:], repeated if self.k is None else min(repeated, self.k - 1)
        if context.start == 0 or len(ring) == self.num_recent:
            self._bring_to_front(context)
            count = 1 + len(ring) + copies
            features, values = self._features[:count], self._values[:count]
        else:
            features, values = self._gathered(context, ring, copies)
        return features, values[:, context.channels]

    def to(self, device: torch.device) -> None:
        """Move everything held."""
        self._features, self._values = self._features.to(device), self._values.to(device)
        for context in self.contexts:
            context.features, context.values = context.features.to(device), context.values.to(device)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything needed to go on later: tensors, and JSON values."""
        tensors = {"ring.features": self._features, "ring.values": self._values}
        contexts = []
        for i, context in enumerate(self.contexts):
            tensors |= {f"context.{i}.features": context.features, f"context.{i}.values": context.values}
            contexts.append({"start": context.start, "channels": context.channels})
        return tensors, {"length": self.length, "num_recent": self.num_recent, "contexts": contexts}

    def load_state(self, tensors: dict[str, Tensor], described: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self._features, self._values = tensors["ring.features"], tensors["ring.values"]
        self.length, self.num_recent = int(described["length"]), int(described["num_recent"])
        self.contexts = [
            Context(
                entry["start"],
                list(entry["channels"]),
                tensors[f"context.{i}.features"],
                tensors[f"context.{i}.values"],
            )
            for i, entry in enumerate(described["contexts"])
        ]
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

    def _with_channels(self, count: int) -> Tensor:
        slots, known, h, w = self._values.shape
        if count == known:
            return self._values
        return torch.cat([self._values, self._values.new_zeros(slots, count - known, h, w)], dim=1)

    def _bring_to_front(self, context: Context) -> None:
        """Put the context's reference frame into slot 0."""
        if self._in_front is context:
            return
        self._features[0].copy_(context.features)
        self._values[0].zero_()
        self._values[0, : context.values.shape[0]].copy_(context.values)
        self._in_front = context

    def _gathered(self, context: Context, ring: list[int], copies: int) -> tuple[Tensor, Tensor]:
        """A copy of the context's frames, while the ring also holds frames older than its reference frame."""
        slots = [self._slot(frame) for frame in ring]
        known = context.values.shape[0]
        missing = self._values.shape[1] - known
        values = torch.cat([context.values, context.values.new_zeros(missing, *context.values.shape[1:])])
        return (
            _with_copies(context.features, self._features[slots], copies),
            _with_copies(values, self._values[slots], copies),
        )


def _with_copies(reference: Tensor, recent: Tensor, copies: int) -> Tensor:
    return torch.cat([reference[None], recent, reference.expand(copies, -1, -1, -1)])
