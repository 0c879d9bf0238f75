"""Whether one result is better than another: a paired bootstrap over objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vosnet.errors import InputError
from vosnet.metrics.similarity import Floats

_DRAWS = 10_000


@dataclass(frozen=True)
class Comparison:
    """Two results on the same objects.

    Attributes:
        first: J&F of the first result, 0..1.
        second: J&F of the second result, 0..1.
        difference: second minus first.
        low: lower end of the 95 % confidence interval of the difference.
        high: upper end.
        p_value: two-sided, twice the smaller share of resampled differences on one side of zero.
        per_object: difference of each object, largest loss first.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float
    per_object: dict[str, float]


def compare_scores(
    first: Mapping[str, Mapping[str, float]], second: Mapping[str, Mapping[str, float]], *, seed: int = 0
) -> Comparison:
    """Compare J&F of two results by resampling objects, keeping the two scores of an object together.

    Args:
        first: J_mean and F_mean of each object.
        second: the same objects in another result.
        seed: of the resampling.

    Raises:
        InputError: the two do not hold the same objects, or none.
    """
    if first.keys() != second.keys() or not first:
        odd = sorted(first.keys() ^ second.keys())
        raise InputError(
            "E235",
            f"the two results do not hold the same objects: {len(first)} and {len(second)}"
            + (f", only in one: {', '.join(odd[:8])}" if odd else ""),
            "Compare results of one split.",
        )
    names = list(first)
    a, b = _joint(first, names), _joint(second, names)
    difference = b - a
    rng = np.random.default_rng(seed)
    draws = difference[rng.integers(0, len(names), (_DRAWS, len(names)))].mean(axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    tail = min((draws <= 0).mean(), (draws >= 0).mean())
    order = np.argsort(difference, kind="stable")
    return Comparison(
        first=float(a.mean()),
        second=float(b.mean()),
        difference=float(difference.mean()),
        low=float(low),
        high=float(high),
        p_value=float(min(1.0, 2 * tail)),
        per_object={names[i]: float(difference[i]) for i in order},
    )


def comparison_text(comparison: Comparison, first: str, second: str) -> str:
    """Both numbers, the difference with its interval, and the objects that changed most.

    Args:
        comparison: of two results.
        first: name of the first result.
        second: name of the second.
    """
    low, high, p_value = comparison.low, comparison.high, comparison.p_value
    lines = [
        f"A {comparison.first:.3f}  {first}",
        f"B {comparison.second:.3f}  {second}",
        f"B - A {comparison.difference:+.4f} J&F over {len(comparison.per_object)} objects",
        f"95 % {low:+.4f} to {high:+.4f}, p {p_value:.4f}, paired bootstrap",
    ]
    ordered = list(comparison.per_object.items())
    for title, part in (("lost most", ordered[:5]), ("won most", ordered[::-1][:5])):
        lines.append(f"{title}: " + ", ".join(f"{name} {value:+.3f}" for name, value in part))
    return "\n".join(lines)


def _joint(objects: Mapping[str, Mapping[str, float]], names: list[str]) -> Floats:
    return np.array([(objects[name]["J_mean"] + objects[name]["F_mean"]) / 2 for name in names])
