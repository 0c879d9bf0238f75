"""Summaries of the scores per frame that papers report: DAVIS-2017 and YouTube-VOS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vosnet.errors import InputError
from vosnet.metrics.scores import ObjectScores
from vosnet.metrics.similarity import Floats

STATISTICS = ("J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay")
VOID = 255


def annotated_objects(first_annotation: npt.NDArray[Any]) -> list[int]:
    """Ids that DAVIS-2017 scores: 1 up to the highest id of the first annotated frame; 255 (void) is none."""
    ids = first_annotation[first_annotation != VOID]
    return list(range(1, int(ids.max()) + 1)) if ids.size else []


def statistics(values: Floats) -> tuple[float, float, float]:
    """Mean, recall and decay of one object's scores, as davis2017-evaluation computes them.

    Recall is the share of frames strictly above 0.5. Decay is the mean of the first quarter minus the mean of
    the last; neighboring quarters share a frame. The official code stores the edges in 8 bits, so they wrap
    beyond 256 scored frames; this is reproduced.

    Differs: if wrapping leaves a quarter empty, the official decay is NaN; here the unwrapped edges are used.

    Args:
        values: scores of the frames that count, [n], n >= 1.
    """
    edges = (np.round(np.linspace(1, len(values), 5) + 1e-10) - 1).astype(np.int64)
    first, last = _quarters(values, edges % 256)
    if not (len(first) and len(last)):
        first, last = _quarters(values, edges)
    return float(values.mean()), float((values > 0.5).mean()), float(first.mean() - last.mean())


def object_statistics(scores: ObjectScores) -> dict[str, float]:
    """`STATISTICS` of one object."""
    return dict(zip(STATISTICS, (*statistics(scores.region), *statistics(scores.boundary))))


def summarize(objects: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Means over objects (not over sequences), and J&F as the mean of J_mean and F_mean.

    Args:
        objects: `STATISTICS` of each object.

    Raises:
        InputError: there is no object.
    """
    if not objects:
        raise InputError("E234", "no object to summarize")
    overall = {name: float(np.mean([scores[name] for scores in objects.values()])) for name in STATISTICS}
    return {**overall, "JF_mean": (overall["J_mean"] + overall["F_mean"]) / 2}


def four_way_mean(
    objects: Mapping[str, Mapping[str, float]], seen: Mapping[str, bool]
) -> dict[str, float | None]:
    """YouTube-VOS: J and F averaged separately over seen and unseen categories, and the mean of the four.

    Args:
        objects: at least J_mean and F_mean of each object.
        seen: whether the object's category occurs in the training set.

    Returns:
        J_seen, F_seen, J_unseen, F_unseen and their mean, overall. A group without objects is None and left
        out of `overall`.
    """
    groups: dict[str, float | None] = {}
    for name, wanted in (("seen", True), ("unseen", False)):
        members = [scores for key, scores in objects.items() if seen[key] is wanted]
        for letter in ("J", "F"):
            values = [scores[f"{letter}_mean"] for scores in members]
            groups[f"{letter}_{name}"] = float(np.mean(values)) if values else None
    present = [value for value in groups.values() if value is not None]
    return {**groups, "overall": float(np.mean(present)) if present else None}


def _quarters(values: Floats, edges: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    return values[edges[0] : edges[1] + 1], values[edges[3] : edges[4] + 1]
