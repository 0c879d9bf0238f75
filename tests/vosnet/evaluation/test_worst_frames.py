"""The worst frames: which are picked, and what their pictures show."""

from pathlib import Path

import numpy as np
from PIL import Image

from vosnet.evaluation.results import SequenceResult
from vosnet.evaluation.worst_frames import worst_frames, write_worst_frames
from vosnet.masks import write_mask
from vosnet.metrics import ObjectScores


def scored(
    name: str, *objects: list[tuple[float, float]], missing: tuple[str, ...] = (), start: int = 1
) -> SequenceResult:
    """Object i has the i-th list of (J, F), from frame `start` on."""
    scores = {
        i: ObjectScores(np.array([j for j, _ in pairs]), np.array([f for _, f in pairs]))
        for i, pairs in enumerate(objects, 1)
    }
    stems = {i: tuple(f"{start + t:05d}" for t in range(len(pairs))) for i, pairs in enumerate(objects, 1)}
    return SequenceResult(name, (), scores, stems, missing)


def test_the_lowest_mean_of_j_and_f_over_objects_comes_first() -> None:
    dog = scored("dog", [(0.9, 0.9), (0.9, 0.1)], [(0.1, 0.1), (0.9, 0.5)])  # J + F: 1.0, 1.2
    cat = scored("cat", [(0.3, 0.3)])
    picked = worst_frames([dog, cat])
    assert [(frame.sequence, frame.stem) for frame in picked] == [("cat", "00001"), ("dog", "00001")]
    assert (picked[1].region, picked[1].boundary) == (0.5, 0.5)
    low_boundary = worst_frames([scored("a", [(0.5, 0.4)]), scored("b", [(0.6, 0.1)])])
    assert [frame.sequence for frame in low_boundary] == ["b", "a"]


def test_a_sequence_gives_at_most_three_frames_five_apart_and_the_count_is_kept() -> None:
    falling = [(1 - t / 30, 1 - t / 30) for t in range(30)]
    picked = worst_frames([scored("a", falling)])
    assert [frame.stem for frame in picked] == ["00030", "00025", "00020"]
    many = [scored(f"s{i}", falling) for i in range(8)]
    assert len(worst_frames(many)) == 12
    assert [frame.sequence for frame in worst_frames(many, count=2)] == ["s0", "s1"]


def test_frames_that_are_missing_have_no_picture() -> None:
    picked = worst_frames([scored("a", [(0, 0), (0.5, 0.5)], missing=("00001",))])
    assert [frame.stem for frame in picked] == ["00002"]


def test_an_object_that_appears_later_counts_from_its_first_frame() -> None:
    late = scored("a", [(0.8, 0.8)] * 8)
    late.scores[2] = ObjectScores(np.array([0.0]), np.array([0.0]))
    late.stems[2] = ("00008",)
    first, second = worst_frames([late])
    assert (first.stem, first.region) == ("00008", 0.4)
    assert second.region == 0.8


def test_true_outlines_are_white_and_predicted_ones_colored(tmp_path: Path) -> None:
    Image.new("RGB", (480, 100), (90, 90, 90)).save(tmp_path / "frame.png")
    predicted, true = np.zeros((100, 480), np.uint8), np.zeros((100, 480), np.uint8)
    predicted[40:80, 50:150] = 1
    true[40:80, 250:350] = 1
    write_mask(tmp_path / "result.png", predicted)
    write_mask(tmp_path / "true.png", true)
    frames = worst_frames([scored("a", [(0, 0)])])
    files = (tmp_path / "frame.png", tmp_path / "result.png", tmp_path / "true.png")
    write_worst_frames(tmp_path / "worst.png", frames, {("a", "00001"): files})
    picture = np.asarray(Image.open(tmp_path / "worst.png"))
    assert picture.shape == (100, 480, 3)
    assert picture[60, 50].tolist() == [230, 159, 0]  # the first of Okabe and Ito's colors
    assert picture[60, 250].tolist() == [255, 255, 255]
    assert picture[60, 100].tolist() == picture[60, 300].tolist() == [90, 90, 90]
