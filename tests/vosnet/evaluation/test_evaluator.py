"""The evaluator: what a propagator is given, and that memory and folder give the same numbers."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.data_roots import moving_squares, write_davis_root, write_youtube_vos_root
from vosnet.errors import InputError
from vosnet.evaluation.davis import DavisBenchmark
from vosnet.evaluation.evaluator import (
    complete_results,
    evaluate_in_memory,
    score_results,
    summarize_benchmark,
    write_sequence,
)
from vosnet.evaluation.youtube_vos import YouTubeVosBenchmark
from vosnet.export.folder import ResultFolder
from vosnet.progress import Progress


class Still:
    """Answers every frame with the objects given so far, where they were given."""

    def __init__(self) -> None:
        self.given: list[dict[int, list[int]]] = []

    def propagate(self, frames: Iterable[Any], masks: Mapping[int, np.ndarray]) -> Iterator[Any]:
        self.given.append({index: np.unique(mask).tolist() for index, mask in masks.items()})
        now = np.zeros((48, 64), np.uint8)
        for index, _ in enumerate(frames):
            if index in masks:
                now = np.where(masks[index] > 0, masks[index], now)
            if index >= min(masks):
                yield SimpleNamespace(index=index, mask=now)


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    masks = moving_squares(5)
    masks[0][:3, :3] = 255
    return write_davis_root(tmp_path / "davis", {"ant": masks, "bee": moving_squares(4, objects=1)})


def test_memory_and_folder_give_the_same_numbers(davis: Path, tmp_path: Path) -> None:
    benchmark, still = DavisBenchmark(davis, "val"), Still()
    evaluation = evaluate_in_memory(still, benchmark)  # type: ignore[arg-type]
    assert still.given == [{0: [0, 1, 2]}, {0: [0, 1]}]
    folder = ResultFolder(tmp_path / "out", {})
    with Progress(9, "propagate", mode="quiet") as progress:
        failures = complete_results(
            benchmark,
            benchmark.names,
            folder,
            lambda name: write_sequence(still, benchmark, name, folder, progress),  # type: ignore[arg-type]
            progress,
        )
        assert failures == {}
        assert progress.done == 9
    scored = score_results(benchmark, tmp_path / "out", workers=1, progress="quiet")
    assert summarize_benchmark(benchmark, scored) == evaluation
    # squares are 15 wide and move by 3 a frame; frames 1 to 3 and 1 to 2 count
    assert evaluation.objects["ant_2"]["J_mean"] == pytest.approx(np.mean([12 / 18, 9 / 21, 6 / 24]))
    assert evaluation.objects["bee_1"]["J_mean"] == pytest.approx(np.mean([12 / 18, 9 / 21]))
    assert evaluation.frames == {"ant": 3, "bee": 2}
    means = evaluation.sequence_means("ant")
    assert means["J_mean"] == pytest.approx(evaluation.objects["ant_1"]["J_mean"])
    assert means["JF_mean"] == pytest.approx((means["J_mean"] + means["F_mean"]) / 2)


def test_objects_that_appear_later_are_given_and_scored_from_their_first_frame(tmp_path: Path) -> None:
    root, still = write_youtube_vos_root(tmp_path / "ytvos"), Still()
    evaluation = evaluate_in_memory(still, YouTubeVosBenchmark(root, "valid"))  # type: ignore[arg-type]
    assert still.given == [{0: [0, 1], 2: [0, 2]}, {0: [0, 1]}]
    overlap = [(15 - 3 * t) / (15 + 3 * t) for t in range(6)]
    assert evaluation.objects["aa11_1"]["J_mean"] == pytest.approx(np.mean(overlap))
    assert evaluation.objects["aa11_2"]["J_mean"] == pytest.approx(np.mean(overlap[:4]))
    assert evaluation.frames == {"aa11": 6, "bb22": 6}
    assert {"J_seen", "J_unseen", "overall"} <= set(evaluation.overall)


def test_frames_before_the_first_object_have_no_mask_but_count_as_done(tmp_path: Path) -> None:
    root, still = write_youtube_vos_root(tmp_path / "ytvos"), Still()
    meta = json.loads((root / "valid/meta.json").read_text())
    meta["videos"]["bb22"]["objects"]["1"]["frames"] = ["00010", "00015", "00020", "00025"]
    (root / "valid/meta.json").write_text(json.dumps(meta))
    benchmark, folder = YouTubeVosBenchmark(root, "valid"), ResultFolder(tmp_path / "out", {})
    with Progress(6, "propagate", mode="quiet") as progress:
        write_sequence(still, benchmark, "bb22", folder, progress)  # type: ignore[arg-type]
    assert progress.done == 6
    assert sorted(path.name for path in (tmp_path / "out/bb22").iterdir()) == [
        "00010.png", "00015.png", "00020.png", "00025.png",
    ]  # fmt: skip


def test_some_sequences_of_a_split_can_be_named(davis: Path) -> None:
    benchmark = DavisBenchmark(davis, "val", names=["bee"])
    assert list(evaluate_in_memory(Still(), benchmark).sequences) == ["bee"]  # type: ignore[arg-type]


def test_a_sequence_without_an_object_has_no_score(tmp_path: Path) -> None:
    root = write_davis_root(tmp_path / "davis", {"dog": [np.zeros((48, 64), np.uint8)] * 4})
    with pytest.raises(InputError, match=r"(?s)E233 .*dog: no object in its first annotation"):
        evaluate_in_memory(Still(), DavisBenchmark(root, "val"))  # type: ignore[arg-type]
