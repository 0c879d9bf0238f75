"""DAVIS and YouTube-VOS summaries."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from vosnet.errors import InputError
from vosnet.evaluation.results import Truth, score_masks
from vosnet.masks import read_mask
from vosnet.metrics import (
    ObjectScores,
    annotated_objects,
    four_way_mean,
    object_statistics,
    score_frames,
    statistics,
    summarize,
)

GOLDEN, DATA = os.environ.get("VOSNET_GOLDEN"), os.environ.get("VOSNET_DATA")
SEQUENCES = ["blackswan", "bmx-trees", "car-shadow", "dog", "drift-straight", "libby"]


def evaluate_sequence(
    predicted: Sequence[np.ndarray], annotated: Sequence[np.ndarray]
) -> dict[int, ObjectScores]:
    """Scores by object id, by the DAVIS rule."""
    stems = tuple(f"{t:05d}" for t in range(len(annotated)))
    truth = Truth("sequence", stems, tuple(annotated), frozenset(stems))
    return score_masks(truth, zip(stems, predicted, strict=True)).scores


def square(y: int, x: int, side: int = 6) -> np.ndarray:
    mask = np.zeros((40, 50), np.uint8)
    mask[y : y + side, x : x + side] = 1
    return mask


@pytest.mark.skipif(not (GOLDEN and DATA), reason="VOSNET_GOLDEN and VOSNET_DATA are not set")
def test_official_numbers_of_osvos_on_six_sequences() -> None:
    official = json.loads((Path(GOLDEN or "") / "metrics_dev.json").read_text())
    objects = {}
    for name in SEQUENCES:
        folder = "Annotations_2017" if name == "bmx-trees" else "Annotations"
        annotations = sorted((Path(DATA or "") / "davis" / folder / "480p" / name).glob("*.png"))
        results = sorted((Path(GOLDEN or "") / "osvos" / name).glob("*.png"))
        scores = evaluate_sequence(
            [read_mask(path).ids for path in results], [read_mask(path).ids for path in annotations]
        )
        for index, score in scores.items():
            key = f"{name}_{index}"
            objects[key] = object_statistics(score)
            assert score.region.tolist() == pytest.approx(official["objects"][key]["J_per_frame"], abs=1e-9)
            assert score.boundary.tolist() == pytest.approx(official["objects"][key]["F_per_frame"], abs=1e-9)
            for statistic, value in objects[key].items():
                assert value == pytest.approx(official["objects"][key][statistic], abs=1e-9)
    assert summarize(objects) == pytest.approx(official["overall"], abs=1e-9)


def test_first_and_last_frame_do_not_count() -> None:
    right, wrong = square(5, 5), square(30, 30)
    scores = evaluate_sequence([wrong, right, right, wrong], [right] * 4)
    assert scores[1].region.tolist() == [1, 1]
    with pytest.raises(InputError, match="2 frames"):
        evaluate_sequence([right] * 2, [right] * 2)


def test_objects_are_those_of_the_first_frame_and_void_is_none() -> None:
    first = square(5, 5) * 3
    first[0, 0] = 255
    assert annotated_objects(first) == [1, 2, 3]
    assert annotated_objects(np.zeros((2, 2), np.uint8)) == []
    later = first.copy()
    later[20:30, 20:30] = 255
    scores = evaluate_sequence([first % 255, first % 255, first % 255], [first, later, first])
    assert [scores[i].region.tolist() for i in (1, 2, 3)] == [[1], [1], [1]]


def test_frames_of_changing_size_are_scored_one_group_at_a_time() -> None:
    small, large = square(3, 3), np.pad(square(3, 3), 5)
    scores = score_frames([(small, small), (large, large), (small, 0 * small)], [1])
    assert scores[1].region.tolist() == [1, 1, 0]


def test_recall_is_strict_and_decay_compares_quarters_that_share_edges() -> None:
    assert statistics(np.array([0.5, 0.51]))[1] == 0.5
    values = np.arange(9.0)  # edges 0, 2, 4, 6, 8
    assert statistics(values)[2] == values[:3].mean() - values[6:].mean()
    assert statistics(np.array([0.3])) == (0.3, 0.0, 0.0)


def test_decay_wraps_after_256_frames_as_the_official_code_does() -> None:
    values = np.random.default_rng(0).random(300)
    # edges 0, 75, 150, 224, 299: wrapped, the last quarter 224..43 is empty
    assert statistics(values)[2] == pytest.approx(values[:76].mean() - values[224:300].mean())
    long = np.random.default_rng(0).random(1100)  # edges 0, 275, 550, 824, 1099 wrap to 0, 19, 38, 56, 75
    assert statistics(long)[2] == pytest.approx(long[:20].mean() - long[56:76].mean())


def test_overall_is_the_mean_over_objects() -> None:
    one = object_statistics(ObjectScores(np.array([1.0]), np.array([0.6])))
    two = object_statistics(ObjectScores(np.array([0.0]), np.array([0.2])))
    overall = summarize({"a_1": one, "b_1": two})
    assert (overall["J_mean"], overall["F_mean"]) == (0.5, 0.4)
    assert overall["JF_mean"] == pytest.approx(0.45)
    with pytest.raises(InputError):
        summarize({})


def test_four_way_mean_weighs_groups_not_objects() -> None:
    objects = {"a": {"J_mean": 1.0, "F_mean": 1.0}, "b": {"J_mean": 0.0, "F_mean": 0.5}}
    objects["c"] = objects["b"]
    result = four_way_mean(objects, {"a": True, "b": False, "c": False})
    assert result == {"J_seen": 1, "F_seen": 1, "J_unseen": 0, "F_unseen": 0.5, "overall": 0.625}
    assert four_way_mean({"a": objects["a"]}, {"a": True})["J_unseen"] is None
