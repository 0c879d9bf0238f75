"""YouTube-VOS: objects that appear later, frames asked for, and unclear meta.json files."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.data_roots import write_frames, write_youtube_vos_root
from vosnet.errors import InputError, UsageError
from vosnet.evaluation.youtube_vos import YouTubeVosBenchmark


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_youtube_vos_root(tmp_path / "ytvos")


def test_objects_join_at_their_first_frame(root: Path) -> None:
    video = YouTubeVosBenchmark(root, "valid").sequence("aa11")
    assert video.appearing == {"00000": [1], "00010": [2]}
    assert video.asked == ("00000", "00005", "00010", "00015", "00020", "00025")
    given = YouTubeVosBenchmark(root, "valid").given("aa11")
    assert {stem: np.unique(mask).tolist() for stem, mask in given.items()} == {
        "00000": [0, 1],
        "00010": [0, 2],
    }


def test_all_frames_are_read_where_they_exist_and_only_some_asked_for(root: Path) -> None:
    write_frames(root / "valid_all_frames/JPEGImages/bb22", [f"{t:05d}" for t in range(26)])
    assert len(YouTubeVosBenchmark(root, "valid").sequence("bb22").frames) == 26
    assert len(YouTubeVosBenchmark(root, "valid").sequence("bb22").asked) == 6
    assert len(YouTubeVosBenchmark(root, "valid", all_frames=False).sequence("bb22").frames) == 6


def test_a_split_is_a_folder_or_a_list_of_videos(root: Path, tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("bb22\n")
    assert YouTubeVosBenchmark(root / "valid", str(tmp_path / "some.txt")).names == ["bb22"]
    assert YouTubeVosBenchmark(root / "valid", "valid").names == ["aa11", "bb22"]
    with pytest.raises(UsageError, match="no split 'test'"):
        YouTubeVosBenchmark(root, "test")
    (tmp_path / "some.txt").write_text("cc33\n")
    with pytest.raises(InputError, match=r"not in meta\.json: cc33"):
        YouTubeVosBenchmark(root / "valid", str(tmp_path / "some.txt"))


UNCLEAR = [
    "{",
    "[]",
    '{"videos": {"a": {}}}',
    '{"videos": {"a": {"objects": {"x": {"frames": ["0"]}}}}}',
    '{"videos": {"a": {"objects": {"1": {"frames": []}}}}}',
    '{"videos": {"a": {"objects": {"256": {"frames": ["0"]}}}}}',
]


@pytest.mark.parametrize("content", UNCLEAR)
def test_a_meta_file_that_is_not_understood_is_named(root: Path, content: str) -> None:
    (root / "valid/meta.json").write_text(content)
    with pytest.raises(InputError, match=r"E231 .*meta\.json is not understood"):
        YouTubeVosBenchmark(root, "valid")


def test_missing_frames_and_first_annotations_are_named(root: Path) -> None:
    (root / "valid/Annotations/aa11/00010.png").unlink()
    with pytest.raises(InputError, match="lacks first annotations: 00010"):
        YouTubeVosBenchmark(root, "valid").sequence("aa11")
    (root / "valid/JPEGImages/bb22/00015.jpg").unlink()
    with pytest.raises(InputError, match="lacks frames: 00015"):
        YouTubeVosBenchmark(root, "valid").sequence("bb22")


def test_f27_a_video_name_cannot_lead_out(root: Path) -> None:
    meta = json.loads((root / "valid/meta.json").read_text())
    meta["videos"]["../../x"] = meta["videos"]["bb22"]
    (root / "valid/meta.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match="unsafe name"):
        YouTubeVosBenchmark(root, "valid").sequence("../../x")


def test_seen_categories_are_those_of_the_training_set(root: Path) -> None:
    benchmark = YouTubeVosBenchmark(root, "valid")
    assert benchmark.seen(["aa11_1", "aa11_2"]) == {"aa11_1": True, "aa11_2": False}
    (root / "train/meta.json").unlink()
    with pytest.raises(InputError, match="--train-meta"):
        benchmark.seen(["aa11_1"])


def test_a_submission_holds_the_ids_of_all_objects_in_the_size_of_the_masks(root: Path) -> None:
    benchmark = YouTubeVosBenchmark(root, "valid")
    expected = benchmark.expected("aa11")
    assert expected.ids == {1, 2}
    assert expected.size == (48, 64)
    assert expected.stems == ("00000", "00005", "00010", "00015", "00020", "00025")
    assert benchmark.prefix == "Annotations/"
