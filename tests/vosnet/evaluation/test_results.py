"""Row 42: everything wrong with a result is found, and scores stand where they belong."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.data_roots import moving_squares, write_davis_root, write_results, write_youtube_vos_root
from vosnet.errors import InputError
from vosnet.evaluation.davis import DavisBenchmark
from vosnet.evaluation.results import SequenceResult, score_folder
from vosnet.evaluation.youtube_vos import YouTubeVosBenchmark
from vosnet.masks import read_mask, write_mask


@pytest.fixture
def result(tmp_path: Path) -> Path:
    write_davis_root(tmp_path / "davis", {"dog": moving_squares()})
    return write_results(tmp_path / "results", {"dog": moving_squares()})


def score(result: Path, *, allow_missing: bool = False) -> SequenceResult:
    benchmark = DavisBenchmark(result.parent / "davis", "val")
    return score_folder(benchmark.truth("dog"), result / "dog", allow_missing=allow_missing)


def test_a_perfect_result_scores_one_on_every_inner_frame(result: Path) -> None:
    scored = score(result)
    assert scored.problems == ()
    assert scored.stems[1] == ("00001", "00002", "00003", "00004")
    assert all((s.region == 1).all() and (s.boundary == 1).all() for s in scored.scores.values())


def test_f42_every_problem_is_listed_at_once(result: Path) -> None:
    dog = result / "dog"
    (dog / "00001.png").unlink()
    write_mask(dog / "00077.png", moving_squares()[0])
    (dog / "00002.jpg").write_bytes(b"")
    write_mask(dog / "00002.png", np.zeros((50, 64), np.uint8))
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(dog / "00003.png")
    write_mask(dog / "00004.png", moving_squares()[4] * 3)
    (dog / "00005.png").write_bytes(b"junk")
    problems = "\n".join(score(result).problems)
    for expected in (
        "no result for 1 frame(s): 00001",
        "extra (1): 00077.png",
        "not a PNG (1): 00002.jpg",
        "size 64x50 where the annotation has 64x48 in 1 frame(s): 00002",
        "holds colors, not ids in 1 frame(s): 00003",
        "ids [3, 6] where the annotation has [1, 2] in 1 frame(s): 00004",
        "00005",
    ):
        assert expected in problems
    assert len(score(result).problems) == 7
    assert score(result).scores == {}


def test_f42_a_missing_folder_is_a_problem(result: Path) -> None:
    (result / "dog").rename(result / "cat")
    assert "no folder" in score(result).problems[0]
    assert score(result, allow_missing=True).scores[1].region.tolist() == [0, 0, 0, 0]


def test_f42_missing_frames_count_as_zero_only_when_allowed(result: Path) -> None:
    for stem in ("00000", "00002", "00003"):
        (result / "dog" / f"{stem}.png").unlink()
    assert "3 frame(s): 00000, 00002, 00003" in score(result).problems[0]
    allowed = score(result, allow_missing=True)
    assert allowed.problems == ()
    assert allowed.missing == ("00000", "00002", "00003")
    assert allowed.scores[2].region.tolist() == [1, 0, 0, 1]
    assert allowed.scores[2].boundary.tolist() == [1, 0, 0, 1]


def test_hidden_and_system_files_are_no_problem(result: Path) -> None:
    (result / "dog/.DS_Store").write_bytes(b"")
    (result / "dog/Thumbs.db").write_bytes(b"")
    assert score(result).problems == ()


def test_davis_2016_annotations_are_one_object_and_0_255_results_count(tmp_path: Path) -> None:
    masks = moving_squares(objects=1)
    write_davis_root(tmp_path / "davis", {"dog": masks}, binary=True)
    folder = tmp_path / "results" / "dog"
    folder.mkdir(parents=True)
    for t, mask in enumerate(masks):
        Image.fromarray(mask * 255).save(folder / f"{t:05d}.png")
    scored = score(folder.parent)
    assert scored.problems == ()
    assert list(scored.scores) == [1]
    assert scored.scores[1].region.min() == 1


def test_grey_ids_count_as_the_official_tool_reads_them(result: Path) -> None:
    for path in (result / "dog").iterdir():
        Image.fromarray(read_mask(path).ids).save(path)
    assert score(result).problems == ()


def test_a_test_set_without_annotations_points_to_the_submission(result: Path) -> None:
    for path in sorted((result.parent / "davis/Annotations/480p/dog").iterdir())[1:]:
        path.unlink()
    with pytest.raises(InputError, match="1 of 6 frames are annotated.*--submission"):
        score(result)


def youtube_result(tmp_path: Path) -> tuple[YouTubeVosBenchmark, Path]:
    root = write_youtube_vos_root(tmp_path / "ytvos")
    results = tmp_path / "results"
    (root / "valid/Annotations").rename(results)
    (root / "valid/Annotations").mkdir()
    for path in results.rglob("*.png"):
        write_mask(root / "valid/Annotations" / path.relative_to(results), read_mask(path).ids)
    return YouTubeVosBenchmark(root, "valid"), results


def test_youtube_vos_counts_an_object_from_its_first_frame_on(tmp_path: Path) -> None:
    benchmark, results = youtube_result(tmp_path)
    too_early = read_mask(results / "aa11/00000.png").ids
    too_early[40:, :5] = 2  # before its first frame, whatever is said of object 2 does not count
    write_mask(results / "aa11/00000.png", too_early)
    scored = score_folder(benchmark.truth("aa11"), results / "aa11")
    assert scored.problems == ()
    assert [len(scored.stems[i]) for i in (1, 2)] == [6, 4]
    assert scored.stems[2][0] == "00010"
    assert [s.region.tolist() for s in scored.scores.values()] == [[1] * 6, [1] * 4]
    assert [s.boundary.tolist() for s in scored.scores.values()] == [[1] * 6, [1] * 4]


def test_youtube_vos_without_all_annotations_cannot_be_scored(tmp_path: Path) -> None:
    root = write_youtube_vos_root(tmp_path / "ytvos", all_annotations=False)
    with pytest.raises(InputError, match="4 of 6 frames asked for are not annotated.*--submission"):
        YouTubeVosBenchmark(root, "valid").truth("aa11")


def test_youtube_vos_missing_frames_count_as_zero_from_the_first_frame_of_each_object(tmp_path: Path) -> None:
    benchmark, results = youtube_result(tmp_path)
    for stem in ("00005", "00010"):
        (results / f"aa11/{stem}.png").unlink()
    scored = score_folder(benchmark.truth("aa11"), results / "aa11", allow_missing=True)
    assert scored.missing == ("00005", "00010")
    assert scored.scores[1].region.tolist() == [1, 0, 0, 1, 1, 1]
    assert scored.scores[2].region.tolist() == [0, 1, 1, 1]
    assert scored.scores[2].boundary.tolist() == [0, 1, 1, 1]


def test_allow_missing_forgives_nothing_else(result: Path) -> None:
    (result / "dog/00001.png").unlink()
    write_mask(result / "dog/00077.png", moving_squares()[0])
    write_mask(result / "dog/00004.png", moving_squares()[4] * 3)
    problems = score(result, allow_missing=True).problems
    assert len(problems) == 2
    assert "extra (1): 00077.png" in problems[0]
    assert "ids [3, 6]" in problems[1]


def test_void_is_background_in_the_annotation_and_an_unknown_id_in_a_result(tmp_path: Path) -> None:
    masks = moving_squares()
    for mask in masks:
        mask[:5, :5] = 255
    write_davis_root(tmp_path / "davis", {"dog": masks})
    result = write_results(tmp_path / "results", {"dog": moving_squares()})
    assert list(score(result).scores) == [1, 2]
    predicted = moving_squares()[2]
    predicted[:5, :5] = 1  # over void, which counts as background: a false positive
    write_mask(result / "dog/00002.png", predicted)
    assert score(result).scores[1].region.tolist() == [1, 150 / 175, 1, 1]
    write_mask(result / "dog/00002.png", masks[2])
    assert "ids [255]" in score(result).problems[0]
