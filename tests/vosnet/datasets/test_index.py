"""The index of a data set, and the command that makes it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.frame_folders import write_frames
from vosnet.commands.cli import run
from vosnet.commands.prepare import main
from vosnet.datasets.index import VideoEntry, VideoIndex, build_index, read_index, write_index
from vosnet.datasets.layouts import find_videos
from vosnet.datasets.source import VideoSource, list_source
from vosnet.errors import InputError, StorageError, UsageError


def prepare(*arguments: object) -> int:
    return run(main, [str(a) for a in arguments])


def test_prepare_lists_every_video_and_what_is_broken(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (videos / "broken.mp4").write_bytes(b"no video")
    out = tmp_path / "index.json"
    assert prepare("folder", videos, "--out", out) == 3
    index = read_index(out)
    assert [entry.name for entry in index.videos] == [f"video{i}" for i in range(6)]
    assert {(entry.num_frames, entry.size) for entry in index.videos} == {(12, (40, 56))}
    assert list(index.bad) == ["broken.mp4"]
    assert "6 videos with 72 frames, 1 unreadable" in capsys.readouterr().out


def test_an_interrupted_index_continues_and_a_finished_one_is_kept(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "index.json"
    known = VideoEntry("video0", str(videos / "video0"), 999, (1, 2))
    write_index(out, VideoIndex(str(videos.resolve()), "folder", [known]))
    assert prepare("folder", videos, "--out", out) == 0
    assert "1 of 6 videos are known" in capsys.readouterr().out
    assert [entry.num_frames for entry in read_index(out).videos] == [999, 12, 12, 12, 12, 12]
    assert prepare("folder", videos, "--out", out) == 2
    assert prepare("folder", videos, "--out", out, "--overwrite") == 0
    assert read_index(out).videos[0].num_frames == 12


def test_an_unfinished_index_is_saved_on_the_way(videos: Path) -> None:
    saved: list[int] = []
    index = VideoIndex(str(videos), "folder")
    build_index(
        find_videos("folder", videos), index, save=lambda i: saved.append(len(i.videos)), save_every_s=-1
    )
    assert saved == [1, 2, 3, 4, 5, 6, 6]


def test_verify_finds_a_broken_frame_that_a_quick_look_misses(videos: Path, tmp_path: Path) -> None:
    frame = videos / "video3" / "00007.jpg"
    frame.write_bytes(frame.read_bytes()[:200])
    assert prepare("folder", videos, "--out", tmp_path / "quick.json") == 0
    assert prepare("folder", videos, "--out", tmp_path / "slow.json", "--verify") == 3
    assert list(read_index(tmp_path / "slow.json").bad) == ["video3"]


def test_extraction_writes_small_jpegs_once_and_the_index_points_at_them(
    videos: Path, tmp_path: Path
) -> None:
    small, out = tmp_path / "small", tmp_path / "index.json"
    assert prepare("folder", videos, "--out", out, "--extract", small, "--short-side", 20) == 0
    entry = read_index(out).videos[2]
    assert entry.path == str(small / "video2")
    assert entry.size == (20, 28)
    images = sorted((small / "video2").iterdir())
    assert len(images) == 12
    assert np.asarray(Image.open(images[0])).shape == (20, 28, 3)
    before = images[0].stat().st_mtime_ns
    out.unlink()
    assert prepare("folder", videos, "--out", out, "--extract", small, "--short-side", 20) == 0
    assert images[0].stat().st_mtime_ns == before
    assert not list(small.glob(".*"))


def test_a_full_disk_ends_the_extraction_and_is_not_blamed_on_the_video(videos: Path) -> None:
    def full(entry: VideoEntry) -> VideoEntry:
        raise StorageError("E601", "disk full")

    index = VideoIndex(str(videos), "folder")
    with pytest.raises(StorageError):
        build_index(find_videos("folder", videos), index, convert=full)
    assert not index.bad


def test_an_index_serves_a_data_set_that_has_moved_and_can_be_narrowed(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "index.json"
    prepare("folder", videos, "--out", out)
    moved = tmp_path / "elsewhere"
    shutil.move(videos, moved)
    source = VideoSource(root=str(moved), index=str(out), pattern="video[23]")
    entries = list_source(source).videos
    assert [entry.path for entry in entries] == [str(moved / "video2"), str(moved / "video3")]
    with pytest.raises(InputError, match="no readable video"):
        list_source(source.model_copy(update={"pattern": "x*"}))


def test_an_unfinished_or_foreign_index_is_refused(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "index.json"
    index = build_index(find_videos("folder", videos), VideoIndex(str(videos), "folder"))
    write_index(out, replace(index, complete=False))
    with pytest.raises(UsageError, match="unfinished"):
        list_source(VideoSource(index=str(out)))
    out.write_text(json.dumps({"version": 99}))
    with pytest.raises(InputError, match="index version 99"):
        read_index(out)
    out.write_text("[]")
    with pytest.raises(InputError, match="is no data set index"):
        read_index(out)
    with pytest.raises(InputError, match="no index at"):
        read_index(tmp_path / "none.json")


def test_names_in_a_data_set_cannot_lead_out_of_the_extraction_folder(videos: Path, tmp_path: Path) -> None:
    from vosnet.datasets.extract import extract_frames

    write_frames(tmp_path / "outside", 2)
    entry = VideoEntry("../outside2", str(tmp_path / "outside"), 2, (40, 56))
    with pytest.raises(InputError, match="unsafe name"):
        extract_frames(entry, tmp_path / "small", short_side=20)
    assert not (tmp_path / "outside2").exists()
