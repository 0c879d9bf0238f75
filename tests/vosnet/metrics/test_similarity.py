"""J and F equal the plain definitions and the official numbers."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.plain_metrics import plain_boundary_accuracy, plain_region_similarity
from vosnet.metrics import boundary_accuracy, boundary_radius, region_similarity, similarities

GOLDEN = os.environ.get("VOSNET_GOLDEN")


def blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    for _ in range(rng.integers(0, 4)):
        y, x = rng.integers(0, height), rng.integers(0, width)
        h, w = rng.integers(1, height + 1), rng.integers(1, width + 1)
        mask[y : y + h, x : x + w] ^= True
    return mask


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 70), st.integers(1, 200), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_scores_equal_the_plain_way_on_any_masks(height: int, width: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pred = np.stack([blobs(rng, height, width) for _ in range(count)])
    true = np.stack([blobs(rng, height, width) for _ in range(count)])
    region, boundary = similarities(pred, true)
    assert region.tolist() == [plain_region_similarity(p, t) for p, t in zip(pred, true)]
    assert boundary.tolist() == [plain_boundary_accuracy(p, t) for p, t in zip(pred, true)]


def edge_cases() -> list[str]:
    path = Path(GOLDEN or "") / "metric_edge_cases.json"
    return list(json.loads(path.read_text())) if GOLDEN else ["none"]


@pytest.mark.skipif(not GOLDEN, reason="VOSNET_GOLDEN is not set: official answers are not here")
@pytest.mark.parametrize("name", edge_cases())
def test_official_edge_cases(name: str) -> None:
    folder = Path(GOLDEN or "")
    official = json.loads((folder / "metric_edge_cases.json").read_text())[name]
    masks = np.load(folder / "metric_edge_cases.npz")
    pred, true = masks[f"{name}__pred"], masks[f"{name}__gt"]
    assert float(region_similarity(pred, true)) == pytest.approx(official["J"], abs=1e-9)
    assert float(boundary_accuracy(pred, true)) == pytest.approx(official["F"], abs=1e-9)


@pytest.mark.parametrize(
    ("size", "radius"), [((480, 854), 8), ((480, 910), 9), ((720, 1280), 12), ((33, 7), 1), ((1, 1), 1)]
)
def test_matching_radius_grows_with_the_diagonal(size: tuple[int, int], radius: int) -> None:
    assert boundary_radius(size) == radius


def test_a_boundary_shifted_by_the_radius_still_matches_and_one_pixel_more_does_not() -> None:
    true = np.zeros((480, 854), bool)
    true[200:, :] = True
    for shift, score in ((8, 1.0), (9, 0.0)):
        pred = np.zeros_like(true)
        pred[200 + shift :, :] = True
        assert float(boundary_accuracy(pred, true)) == score


def test_an_absent_object_is_right_when_left_out_and_wrong_when_drawn() -> None:
    empty, square = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    square[5:10, 5:10] = True
    assert region_similarity(np.stack([empty, square]), np.stack([empty, empty])).tolist() == [1, 0]
    assert boundary_accuracy(np.stack([empty, square]), np.stack([empty, empty])).tolist() == [1, 0]


def test_masks_of_different_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(4, 3\)"):
        region_similarity(np.zeros((3, 4)), np.zeros((4, 3)))
