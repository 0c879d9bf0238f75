"""The definition of context: which earlier frames one query copies labels from."""

from __future__ import annotations

from typing import Literal

ContextRule = Literal["replicate", "clamp", "queue"]
CONTEXT_RULES: tuple[ContextRule, ...] = ("replicate", "clamp", "queue")


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
        neighbours; they are not merged.
    """
    recent = range(t - num_recent, t)
    if rule == "replicate":
        return [start, *(max(frame, start) for frame in recent)]
    oldest = start if rule == "clamp" else start + 1
    return [start, *(frame for frame in recent if frame >= oldest)]
