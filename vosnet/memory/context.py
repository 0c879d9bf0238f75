"""The definition of context: which earlier frames one query copies labels from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from torch import Tensor

ContextRule = Literal["replicate", "clamp", "queue"]
CONTEXT_RULES: tuple[ContextRule, ...] = get_args(ContextRule)
References = Literal[1, 3, 5, "all"]
REFERENCES: tuple[References, ...] = get_args(References)
LONG_TERM_GAP = 5  # frames from the reference frame to the second long-term one


@dataclass
class Context:
    """A reference frame and the value channels that are copied from it.

    Attributes:
        start: position of the reference frame.
        channels: value channels it answers for.
    """

    start: int
    channels: list[int]


def open_context(contexts: Sequence[Context], start: int, channels: Sequence[int]) -> list[Context]:
    """`contexts` and a new one: each channel belongs to the context that named it last."""
    for context in contexts:
        context.channels = [channel for channel in context.channels if channel not in channels]
    return [*(context for context in contexts if context.channels), Context(start, list(channels))]


class Reading(NamedTuple):
    """What one query reads through a context.

    Attributes:
        features: [T, C, h, w].
        values: of the context's channels, [T, M, h, w]; channels that joined after a frame are empty in it.
        dilations: how many times wider than the plain window each frame is searched.
    """

    features: Tensor
    values: Tensor
    dilations: list[int]


def context_frames(t: int, num_recent: int, rule: ContextRule, start: int = 0) -> list[int]:
    """Frames that frame `t` may copy labels from: the reference frame, then the most recent ones.

    Args:
        t: the query frame, after `start`.
        num_recent: recent frames besides the reference frame.
        rule: "replicate": always `num_recent` recent entries, those before `start` repeat the reference
            frame (CRW, DUL); "clamp": only frames that exist, the reference frame once more while it is
            recent (VFS); "queue": only frames after the reference frame (DINO).
        start: the reference frame.

    Returns:
        1 + num_recent entries at most, oldest first. Repeated entries count repeatedly among the nearest
        neighbors; they are not merged.
    """
    recent = range(t - num_recent, t)
    if rule == "replicate":
        return [start, *(max(frame, start) for frame in recent)]
    oldest = start if rule == "clamp" else start + 1
    return [start, *(frame for frame in recent if frame >= oldest)]


def spaced_frames(t: int, references: References, start: int = 0) -> list[int]:
    """Frames that frame `t` may copy labels from under the rule "mast": some old ones, some recent ones.

    With five references those of the code of Lai et al. 2020: the reference frame and the fifth after it, and
    of the recent frames t - 1, t - 3 and t - 5. One and all are the extremes of Table 2 of Zhu et al. 2020;
    its three are not said: here the reference frame, t - 1 and t - 3.

    Args:
        t: the query frame, after `start`.
        references: at most this many frames.
        start: the reference frame.

    Returns:
        Each frame once, ascending: fewer than `references` while the video is young.
    """
    if references == "all":
        return list(range(start, t))
    if references == 1:
        return [t - 1]
    recent = range(t - 1, t - (4 if references == 3 else 6), -2)
    long_term = [start] if references == 3 else [start, start + LONG_TERM_GAP]
    return sorted({frame for frame in (*long_term, *recent) if start <= frame < t})
