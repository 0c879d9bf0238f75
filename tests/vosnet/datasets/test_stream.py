"""The clip stream: pure in (seed, step), whoever prepares it, and firm about broken data."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.frame_folders import write_frames
from tests.support.streams import same, stream_of
from vosnet.datasets import prefetch
from vosnet.datasets.prefetch import prefetched
from vosnet.datasets.source import VideoSource
from vosnet.datasets.stream import ClipStream
from vosnet.errors import InputError, SettingError, UsageError, VosnetError
from vosnet.transforms import Crops, assemble_clip, crop_frames


def take(stream: ClipStream, count: int, **kwargs: Any) -> list[Crops]:
    return list(itertools.islice(prefetched(stream, **({"start": 0} | kwargs)), count))


def test_f31_the_stream_is_the_same_for_any_number_of_workers_and_after_a_resume(videos: Path) -> None:
    expected = [stream_of(videos).batch(step) for step in range(7)]
    for options in ({"workers": 0}, {"workers": 2}):
        got = take(stream_of(videos), 7, **options)
        assert all(same(a, b) for a, b in zip(expected, got, strict=True))
    cached = take(stream_of(videos, cache_mb=10), 7, workers=3)
    assert all(same(a, b) for a, b in zip(expected, cached, strict=True))
    resumed = take(stream_of(videos), 3, start=4)
    assert all(same(a, b) for a, b in zip(expected[4:], resumed, strict=True))


def test_two_ranks_hold_the_two_halves_of_one_ranks_batch(videos: Path) -> None:
    whole = stream_of(videos, batch_size=4).batch(3)
    halves = [stream_of(videos, batch_size=4).batch(3, rank, 2) for rank in range(2)]
    assert torch.equal(whole.frames, torch.cat([half.frames for half in halves]))
    assert whole.names == halves[0].names + halves[1].names
    with pytest.raises(UsageError, match="3 ranks"):
        stream_of(videos, batch_size=4).batch(0, 0, 3)


def test_an_epoch_shows_every_video_once_and_no_two_epochs_are_alike(videos: Path) -> None:
    stream = stream_of(videos)
    epochs = [[name for step in range(3) for name in stream.batch(3 * e + step).names] for e in range(2)]
    assert all(sorted(names) == [f"video{i}" for i in range(6)] for names in epochs)
    assert not torch.equal(stream.batch(0).frames, stream.batch(3).frames)


def test_frames_of_a_clip_lie_at_the_asked_distance(videos: Path) -> None:
    stream = stream_of(videos, frame_step=2, frame_gap=2, crop_size=8, short_side=(8, 9))
    frames = stream.batch(0).frames.float().mean(dim=(2, 3, 4))[0]  # brightness rises by 4 per raw frame
    steps = (frames.sort().values.diff() / 4).round().tolist()
    assert steps == [4.0, 4.0]


def test_a_clip_knows_where_it_was_cut_from(videos: Path) -> None:
    stream = stream_of(videos, frame_step=2, batch_size=6)
    crops = stream.batch(0)
    assert crops.cut is not None
    assert crops.cut.size.tolist() == [[40, 56]] * 6
    assert crops.cut.flip.unique().numel() == 2  # both kinds are in the batch
    entries = {entry.name: entry for entry in stream.entries}
    for i, name in enumerate(crops.names):
        frames = stream.store.read(entries[name], crops.cut.frame_ids[i].tolist())
        again = crop_frames(frames, crops.cut.boxes[i], 16, flip=bool(crops.cut.flip[i]))
        assert torch.equal(again, crops.frames[i])
    part = assemble_clip(crops).part(2, 4)
    assert part.cut is not None
    assert torch.equal(part.cut.boxes, crops.cut.boxes[2:4])


def test_a_memory_budget_is_kept_and_changes_nothing(videos: Path) -> None:
    one_video = 12 * 40 * 56 * 3
    stream = stream_of(videos)
    stream.store.budget_bytes = 2 * one_video
    for step in range(6):
        assert same(stream.batch(step), stream_of(videos).batch(step))
    assert stream.store.used_bytes == 2 * one_video


def test_decoding_small_keeps_the_stream_the_same_with_and_without_memory(videos: Path) -> None:
    kept, fly = (stream_of(videos, decode_short_side=20, cache_mb=mb) for mb in (10, 0))
    assert all(same(kept.batch(step), fly.batch(step)) for step in range(3))


@pytest.mark.skipif("VOSNET_DATA" not in os.environ, reason="VOSNET_DATA names no folder with real clips")
def test_frames_of_a_real_video_are_the_same_by_random_access_and_decoded_whole() -> None:
    sources = [VideoSource(root=os.environ["VOSNET_DATA"] + "/clips", pattern="davis_[bh]*")]
    options: dict[str, Any] = {"sources": sources, "decode_short_side": 64, "frame_step": 2}
    fly, kept = stream_of("", **options), stream_of("", **options, cache_mb=100)
    assert fly.num_videos == kept.num_videos > 4
    for step in (2, 0, 1):
        assert same(fly.batch(step), kept.batch(step))


def test_mixtures_repeat_sources_and_generated_clips_and_stills_take_part(
    videos: Path, tmp_path: Path
) -> None:
    still = write_frames(tmp_path / "stills", 1, seed=9) / "00000.jpg"
    still.rename(still.with_name("face.jpg"))
    sources = [
        VideoSource(root=str(videos), pattern="video[01]", repeat=2),
        VideoSource(layout="stills", root=str(tmp_path / "stills")),
        VideoSource(layout="generated", count=1, seed=5, num_frames=6, size=(48, 64)),
    ]
    stream = stream_of(videos, sources=sources, batch_size=6, still_jitter=0.3)
    batch = stream.batch(0)
    assert sorted(batch.names) == ["face.jpg", "generated/00005", *["video0"] * 2, *["video1"] * 2]
    moved = batch.frames[batch.names.index("face.jpg")]
    assert not torch.equal(moved[0], moved[1])


def test_videos_shorter_than_a_clip_are_left_out_and_counted(videos: Path) -> None:
    write_frames(videos / "short", 2)
    stream = stream_of(videos)
    assert stream.too_short == ["short"]
    assert stream.num_videos == 6
    with pytest.raises(InputError, match="none of 7 videos has 50 frames"):
        stream_of(videos, clip_len=50)
    with pytest.raises(InputError, match="none of 7 videos has 21 frames"):
        stream_of(videos, order="paired", frame_gap=1, distant_gap=(20, 30))
    with pytest.raises(SettingError, match=r"distant_gap: must begin above frame_gap \(5\)"):
        stream_of(videos, order="paired", frame_gap=5)


def test_f35_one_bad_video_in_a_hundred_is_replaced_the_same_way_every_time(tmp_path: Path) -> None:
    root = tmp_path / "many"
    for i in range(100):
        write_frames(root / f"v{i:03d}", 3, seed=i, size=(16, 16))
    stream = stream_of(root, batch_size=20, crop_size=8, short_side=(8, 9))
    broken = root / "v050" / "00001.jpg"
    broken.write_bytes(broken.read_bytes()[:100])  # after the index was made
    batches = take(stream, 5)
    met = dict(pair for batch in batches for pair in batch.bad)
    assert list(met) == ["v050"]
    assert stream.bad == met
    names = [name for batch in batches for name in batch.names]
    assert "v050" not in names
    assert len(names) == 100
    stream.check_bad()
    again = stream_of(root, batch_size=20, crop_size=8, short_side=(8, 9), cache_mb=50)
    assert all(same(a, b) for a, b in zip(batches, [again.batch(step) for step in range(5)], strict=True))


@pytest.mark.parametrize("cache_mb", [0, 50])
def test_a_broken_frame_is_found_by_its_number_after_the_step(videos: Path, cache_mb: int) -> None:
    stream = stream_of(videos, frame_step=2, cache_mb=cache_mb)
    entry = stream.entries[0]
    broken = Path(entry.path) / "00002.jpg"  # frame 1 of every second one
    broken.write_bytes(broken.read_bytes()[:100])
    assert len(stream.store.read(entry, [2, 3])) == 2
    with pytest.raises(InputError, match="1 of the frames drawn from .* are broken"):
        stream.store.read(entry, [1, 2])


def test_f35_a_replacement_that_is_broken_too_is_replaced_by_another(videos: Path) -> None:
    stream = stream_of(videos, batch_size=6)
    for entry in stream.entries[:4]:
        for frame in Path(entry.path).iterdir():
            frame.write_bytes(frame.read_bytes()[:100])
    whole = {entry.name for entry in stream.entries[4:]}
    assert set(stream.batch(0).names) == whole


def test_f35_more_than_five_percent_bad_videos_stop_the_run(videos: Path) -> None:
    for i in range(2):
        (videos / f"broken{i}.mp4").write_bytes(b"this is no video")
    with pytest.raises(InputError, match=r"2 of 8 training videos cannot be read \(limit 5 %\)"):
        stream_of(videos)


class SlowStream(ClipStream):
    """Tells its process and waits when it comes to step 1."""

    def batch(self, step: int, rank: int = 0, world: int = 1, *, watch: Any = None) -> Crops:
        if step == 1 and (mark := Path(os.environ["VOSNET_TEST_MARK"])).parent.is_dir():
            watch("video3")
            attempt = len(list(mark.parent.glob(f"{mark.name}*")))
            mark.with_name(f"{mark.name}{attempt}").write_text(str(os.getpid()))
            if attempt < int(os.environ["VOSNET_TEST_KILLS"]):
                os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(step, rank, world, watch=watch)


@pytest.fixture
def slow_stream(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClipStream:
    monkeypatch.setenv("VOSNET_TEST_MARK", str(tmp_path / "mark"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    stream = stream_of(videos)
    stream.__class__ = SlowStream
    return stream


def test_f36_a_killed_worker_is_named_with_its_video_and_started_once_more(
    slow_stream: ClipStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOSNET_TEST_KILLS", "1")
    said: list[str] = []
    batches = take(slow_stream, 3, workers=1, warn=said.append)
    assert [b.ids.tolist() for b in batches] == [[0, 1], [2, 3], [4, 5]]
    assert len(said) == 1
    assert "killed by signal 9 while reading video3 (step 1)" in said[0]


def test_f36_a_second_death_ends_the_run_with_the_name_of_the_video(
    slow_stream: ClipStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOSNET_TEST_KILLS", "2")
    with pytest.raises(VosnetError, match="video3.*after one restart"):
        take(slow_stream, 3, workers=1, warn=lambda message: None)


def test_f36_a_hanging_worker_counts_as_dead(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_work", hang)
    began = time.monotonic()
    with pytest.raises(VosnetError, match="gave no answer in time"):
        take(stream_of(videos), 1, workers=1, timeout_s=0.5, warn=lambda message: None)
    assert time.monotonic() - began < 60


def hang(*arguments: Any) -> None:
    time.sleep(600)


def test_a_still_becomes_a_clip_by_a_homography_and_one_that_is_too_small_is_named(tmp_path: Path) -> None:
    still = write_frames(tmp_path / "stills", 1, seed=9) / "00000.jpg"
    sources = [VideoSource(layout="stills", root=str(tmp_path / "stills"))]
    with Image.open(still) as image:
        side = min(image.size)
    options: dict[str, Any] = {"sources": sources, "batch_size": 1, "clip_len": 3, "order": "kept"}
    options |= {"crop_size": 16, "short_side": (16, 17)}
    moved = stream_of("", **options, still_motion="homography").batch(0)
    assert moved.frames.shape == (1, 3, 16, 16, 3)
    assert not torch.equal(moved.frames[0, 0], moved.frames[0, 1])
    again = stream_of("", **options, still_motion="homography").batch(0)
    assert torch.equal(moved.frames, again.frames)
    options |= {"crop_size": side + 1, "short_side": (side + 1, side + 2)}
    with pytest.raises(UsageError, match=r"E168 1 stills are smaller than the crop"):
        stream_of("", **options, still_motion="homography")
