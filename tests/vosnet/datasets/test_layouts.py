"""Where the videos of each data set are found."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.frame_folders import write_frames
from tests.support.streams import stream_of
from vosnet.datasets.layouts import EXPECTED, Layout, find_videos
from vosnet.datasets.source import VideoSource
from vosnet.errors import InputError
from vosnet.video import list_videos, open_video
from vosnet.video.listing import IMAGE_SUFFIXES, VIDEO_SUFFIXES

TREES: dict[Layout, tuple[list[str], list[str]]] = {
    # files that exist -> names that are found
    "folder": (
        [
            "b/10.mp4",
            "b/2.mp4",
            "a/clip.MOV",
            "c/frames/0.jpg",
            ".cache/x.mp4",
            "__MACOSX/y.mp4",
            "notes.txt",
        ],
        ["a/clip.MOV", "b/2.mp4", "b/10.mp4", "c/frames"],
    ),
    "stills": (["x/1.png", "0.jpg", "film.mp4", ".hidden.jpg"], ["0.jpg", "x/1.png"]),
    "ytvos": (["train/JPEGImages/0a/00000.jpg", "train/JPEGImages/1b/00005.jpg"], ["0a", "1b"]),
    "oxuva": (["images/dev/vid1/000000.jpeg", "images/test/vid2/000000.jpeg"], ["vid1", "vid2"]),
    "trackingnet": (
        ["TRAIN_0/frames/a/0.jpg", "TRAIN_10/frames/b/0.jpg", "TRAIN_0/anno/a.txt", "TEST/frames/c/0.jpg"],
        ["a", "b"],
    ),
    "kinetics": (["train/jumping/x.mp4", "train/running/y.mkv", "val/running/z.mp4"], ["x.mp4", "y.mkv"]),
}


def touch(root: Path, files: list[str]) -> None:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


@pytest.mark.parametrize("layout", TREES)
def test_the_videos_of_a_layout_are_found_in_natural_order(layout: Layout, tmp_path: Path) -> None:
    files, expected = TREES[layout]
    touch(tmp_path, files)
    found = find_videos(layout, tmp_path)
    names = [item.name if layout in {"folder", "stills"} else item.path.name for item in found]
    assert names == expected
    assert all(item.path == tmp_path / item.name for item in found)


def test_youtube_vos_may_be_given_by_its_train_folder_and_all_frames_by_split(tmp_path: Path) -> None:
    touch(tmp_path, ["train/JPEGImages/0a/0.jpg", "train_all_frames/JPEGImages/0a/0.jpg"])
    inner = find_videos("ytvos", tmp_path / "train")
    assert inner[0].path == tmp_path / "train/JPEGImages/0a"
    every = find_videos("ytvos", tmp_path, split="train_all_frames")
    assert every[0].path == tmp_path / "train_all_frames/JPEGImages/0a"


def test_davis_splits_of_both_years_are_read(tmp_path: Path) -> None:
    write_frames(tmp_path / "JPEGImages/480p/bear", 1)
    write_frames(tmp_path / "JPEGImages/480p/dog", 1)
    for name, text in {
        "2017/train": "dog\nbear\n",
        "1080p/train": "/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png\n" * 2,
    }.items():
        path = tmp_path / "ImageSets" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert [v.path.name for v in find_videos("davis", tmp_path)] == ["bear", "dog"]
    assert [v.path.name for v in find_videos("davis", tmp_path, split="1080p/train")] == ["bear"]
    with pytest.raises(InputError, match="no split at"):
        find_videos("davis", tmp_path, split="2018/train")


def test_a_list_and_a_pattern_choose_videos(tmp_path: Path) -> None:
    touch(tmp_path, ["a.mp4", "b.mp4", "c.mp4"])
    listing = tmp_path / "list.txt"
    listing.write_text("# mine\nc.mp4\n\na.mp4\n")
    assert [v.name for v in find_videos("folder", tmp_path, names=str(listing))] == ["c.mp4", "a.mp4"]
    assert [v.name for v in find_videos("folder", tmp_path, pattern="[bc]*")] == ["b.mp4", "c.mp4"]
    listing.write_text("a.mp4\ngone.mp4\n")
    with pytest.raises(InputError, match=r"1 of 2 videos listed in .*gone\.mp4"):
        find_videos("folder", tmp_path, names=str(listing))


@pytest.mark.parametrize("layout", EXPECTED)
def test_a_missing_or_empty_data_set_says_what_was_expected(layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data set at") as missing:
        find_videos(layout, tmp_path / "nowhere")
    assert EXPECTED[layout] in missing.value.hint
    with pytest.raises(InputError):
        find_videos(layout, tmp_path)


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_whatever_counts_as_a_picture_can_be_indexed_trained_on_and_propagated(
    suffix: str, tmp_path: Path
) -> None:
    clip, stills = tmp_path / "clips" / "a", tmp_path / "stills"
    for folder in (clip, stills):
        folder.mkdir(parents=True)
    for t in range(4):
        noise = np.random.default_rng(t).integers(0, 255, (24, 32, 3), np.uint8)
        Image.fromarray(noise).save(clip / f"{t:05d}{suffix}")
    shutil.copy(clip / f"00000{suffix}", stills)
    assert stream_of(clip.parent).batch(0).names == ("a", "a")
    moved = stream_of("", sources=[VideoSource(layout="stills", root=str(stills))]).batch(0)
    assert moved.names == (f"00000{suffix}",) * 2
    with open_video(clip) as reader:
        assert len(reader) == 4


@pytest.mark.parametrize("suffix", sorted(VIDEO_SUFFIXES))
def test_whatever_counts_as_a_video_is_found_for_training_and_for_propagation(
    suffix: str, tmp_path: Path
) -> None:
    touch(tmp_path, [f"a{suffix}", f"b{suffix.upper()}", f".c{suffix}", f"__MACOSX/d{suffix}", "e.txt"])
    expected = [f"a{suffix}", f"b{suffix.upper()}"]
    assert [item.name for item in find_videos("folder", tmp_path)] == expected
    assert [item.name for item in find_videos("kinetics", tmp_path)] == expected
    assert [path.name for path in list_videos(tmp_path)] == expected


def test_linked_folders_of_a_data_set_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", ["a.mp4"])
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
    assert [item.name for item in find_videos("folder", tmp_path / "root")] == ["linked/a.mp4"]


def test_the_usual_formats_count_as_pictures_or_videos() -> None:
    assert {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"} <= IMAGE_SUFFIXES
    assert {".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".ts", ".wmv", ".flv"} <= VIDEO_SUFFIXES
    assert not IMAGE_SUFFIXES & VIDEO_SUFFIXES
