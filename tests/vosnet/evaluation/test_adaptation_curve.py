"""Curves of online adaptation: which iterations are measured, and against what."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.data_roots import moving_squares, write_davis_root, write_youtube_vos_root
from vosnet.evaluation.adaptation_curve import Curve
from vosnet.evaluation.davis import DavisBenchmark
from vosnet.evaluation.youtube_vos import YouTubeVosBenchmark
from vosnet.video import open_video

TRUE = moving_squares(6)
PROPAGATED = [np.roll(mask, 4, axis=1) for mask in TRUE]


class FakeModel:
    """Answers the measured frames 1 to 4 in order with given masks."""

    settings = SimpleNamespace(predict_batch=3)

    def __init__(self, masks: list[np.ndarray]) -> None:
        self.left = list(masks)
        self.known: list[set[int]] = []

    def predict(self, frames: list[Any], known: list[set[int]]) -> list[np.ndarray]:
        self.known += known
        answer, self.left = self.left[: len(frames)], self.left[len(frames) :]
        return answer


@pytest.fixture
def davis(tmp_path: Path) -> DavisBenchmark:
    return DavisBenchmark(write_davis_root(tmp_path / "davis", {"dog": TRUE}), "val")


def test_every_nth_iteration_is_measured_against_annotations_and_propagated_masks(
    davis: DavisBenchmark,
) -> None:
    with open_video(davis.frames("dog")[0].parent) as reader:
        curve = Curve(davis, "dog", reader, dict(enumerate(PROPAGATED)), 2)
        as_propagated, as_true = FakeModel(PROPAGATED), FakeModel(TRUE)
        for iteration, model in ((1, None), (2, as_propagated), (3, None), (4, as_true)):
            curve(iteration, iteration / 8, model)  # type: ignore[arg-type]
    overlap = pytest.approx(11 / 19)  # 15 pixels wide, 4 to the right
    assert curve.baseline["J"] == overlap
    assert [(row["iteration"], row["loss"]) for row in curve.rows] == [(2, 0.25), (4, 0.5)]
    first, second = curve.rows
    assert (first["J"], first["J_propagated"]) == (overlap, 1)
    assert (second["J"], second["J_propagated"]) == (1, overlap)
    assert first["F"] == pytest.approx(curve.baseline["F"])
    assert (second["F"], first["F_propagated"]) == (1, 1)
    assert first["JF"] == pytest.approx((first["J"] + first["F"]) / 2)
    assert set(map(frozenset, as_true.known)) == {frozenset({1, 2})}


def test_the_given_pixels_of_an_annotated_frame_stay(tmp_path: Path) -> None:
    """DAVIS does not count the first frame; YouTube-VOS does, where the annotated object is given."""
    videos = YouTubeVosBenchmark(write_youtube_vos_root(tmp_path / "yt"), "valid")
    empty = [np.zeros((48, 64), np.uint8)] * 6
    with open_video(videos.frames("bb22")[0].parent) as reader:
        curve = Curve(videos, "bb22", reader, dict(enumerate(empty)), 1)
        curve(1, 0.0, FakeModel(empty))  # type: ignore[arg-type]
    assert curve.baseline["J"] == 0
    assert curve.rows[0]["J"] == pytest.approx(1 / 6)  # the first frame alone is right
