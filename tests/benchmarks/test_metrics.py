"""Speed of J and F against the plain way, on the same masks.

python -m pytest tests/benchmarks/test_metrics.py -o addopts=--import-mode=importlib
"""

from collections.abc import Callable

import numpy as np
import pytest

from tests.support.plain_metrics import plain_boundary_accuracy, plain_region_similarity
from vosnet.metrics import score_frames

Scores = dict[int, list[tuple[float, float]]]


def frames(count: int = 16) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two ragged objects at 480p that move; predictions lag behind."""
    y, x = np.mgrid[:480, :854]
    labels = []
    for t in range(count + 2):
        mask = np.zeros((480, 854), np.uint8)
        wobble = 12 * np.sin(np.arctan2(y - 240, x - 300 - 5 * t) * 9)
        mask[np.hypot(y - 240, x - 300 - 5 * t) < 120 + wobble] = 1
        mask[(abs(y - 330) < 40) & (abs(x - 600 + 6 * t) < 50)] = 2
        labels.append(mask)
    return list(zip(labels, labels[2:]))


def plain(pairs: list[tuple[np.ndarray, np.ndarray]]) -> Scores:
    return {
        i: [
            (plain_region_similarity(p == i, t == i), plain_boundary_accuracy(p == i, t == i))
            for p, t in pairs
        ]
        for i in (1, 2)
    }


def packed(pairs: list[tuple[np.ndarray, np.ndarray]]) -> Scores:
    scores = score_frames(pairs, [1, 2])
    return {i: list(zip(s.region.tolist(), s.boundary.tolist())) for i, s in scores.items()}


@pytest.mark.parametrize("way", [plain, packed], ids=["plain", "packed"])
def test_two_objects_in_16_frames(benchmark: Callable[..., Scores], way: Callable[..., Scores]) -> None:
    pairs = frames()
    assert packed(pairs) == plain(pairs)  # never time a wrong answer
    benchmark(way, pairs)
