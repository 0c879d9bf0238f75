"""Damaged and foreign files: what can be decoded is, the rest is counted or refused in one line."""

import time
from pathlib import Path

import av
import numpy as np
import pytest

from tests.support.zoo import barcode, corrupt, read_barcode, truncate, write_audio, write_clip
from vosnet.errors import InputError, UsageError
from vosnet.video import VideoReader, open_video

SIZE = (192, 320)


def clip(path: Path, count: int = 120, *, faststart: bool = False) -> Path:
    options = {"g": "20", "bf": "2", "preset": "veryfast"}
    return write_clip(
        path, count, size=SIZE, options=options, container={"movflags": "faststart"} if faststart else {}
    )


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(200_000))


def text(path: Path) -> None:
    path.write_text("It is a truth universally acknowledged.\n" * 2000)


def audio_only(path: Path) -> None:
    write_audio(path, seconds=1.0)


def playlist(path: Path) -> None:
    clip(path.with_name("other.mp4"), 5)
    path.write_text("ffconcat version 1.0\nfile other.mp4\n")


def without_index(path: Path) -> None:
    truncate(clip(path.with_name("whole.mp4")), path, 0.5)


def header_without_frames(path: Path) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = 64, 64
        output.start_encoding()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        pytest.param(empty, "is empty"),
        pytest.param(garbage, "not a readable video"),
        pytest.param(text, "not a readable video"),
        pytest.param(audio_only, "no picture track"),
        pytest.param(playlist, "playlist"),
        pytest.param(without_index, "not a readable video"),
    ],
)
def test_f06_files_that_are_no_video_are_refused_in_one_line_and_soon(damage, told, tmp_path) -> None:
    path = tmp_path / "clip.mp4"
    damage(path)
    start = time.monotonic()
    with pytest.raises(InputError, match=told) as caught:
        open_video(path)
    assert time.monotonic() - start < 2
    assert caught.value.exit_code == 4
    assert "clip.mp4" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_f06_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match=r"nowhere\.mp4 does not exist"):
        open_video("nowhere.mp4")


def test_f08_a_file_without_frames_is_an_error(tmp_path: Path) -> None:
    header_without_frames(tmp_path / "clip.mp4")
    with pytest.raises(InputError):
        open_video(tmp_path / "clip.mp4")


def test_f08_a_clip_of_one_frame_is_a_clip(tmp_path: Path) -> None:
    reader = open_video(write_clip(tmp_path / "clip.mp4", 1))
    assert len(reader) == 1
    assert np.abs(reader[0].astype(int) - barcode(0)).max() < 12


@pytest.fixture(scope="module", params=["mp4", "mkv"])
def damaged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    whole = clip(folder / f"whole.{request.param}")
    return corrupt(whole, folder / f"damaged.{request.param}", 0.4, 300)


def test_f07_damage_in_the_middle_costs_only_the_frames_it_hit(damaged: Path) -> None:
    reader = open_video(damaged)
    seen = {round(t * 25): read_barcode(frame) for t, frame in zip(reader.pts_s, reader, strict=True)}
    right = [time for time, number in seen.items() if number == time]
    assert 120 - 40 <= len(right) < 120  # at most two groups of pictures
    assert right[:20] == list(range(20))
    assert right[-20:] == list(range(100, 120))
    assert reader.bad_frames


def test_f07_damage_looks_the_same_in_every_order_of_access(damaged: Path) -> None:
    forward = open_video(damaged)
    in_order = list(forward)
    backward = open_video(damaged)
    for index in reversed(range(len(in_order))):
        assert np.array_equal(backward[index], in_order[index]), index
    assert backward.bad_frames == forward.bad_frames


@pytest.mark.parametrize("part", [0.5, 0.55, 0.6, 0.7])
def test_f07_decoder_threads_lose_no_frame_beside_a_damaged_one(part: float, tmp_path: Path) -> None:
    whole = clip(tmp_path / "whole.mp4", faststart=True)
    for path in (
        truncate(whole, tmp_path / "cut.mp4", part),
        corrupt(whole, tmp_path / "hit.mp4", part, 300),
    ):
        one = VideoReader(path, decoder="pyav", threads=1)
        frames = list(one)
        many = VideoReader(path, decoder="pyav", threads=4)
        assert all(np.array_equal(a, b) for a, b in zip(many, frames, strict=True))
        back = VideoReader(path, decoder="pyav", threads=4)
        assert all(np.array_equal(back[i], frames[i]) for i in reversed(range(len(frames))))
        assert one.bad_frames == many.bad_frames == back.bad_frames


def test_f07_hold_repeats_the_last_good_frame_and_stop_raises(tmp_path: Path) -> None:
    path = truncate(clip(tmp_path / "whole.mp4", faststart=True), tmp_path / "clip.mp4", 0.6)
    reader = open_video(path)
    frames = list(reader)
    assert reader.bad_frames
    assert any("120 frames announced" in warning for warning in reader.warnings)
    assert 20 < len(frames) < 120
    for index in reader.bad_frames:
        assert np.array_equal(frames[index], frames[index - 1])
    good = [i for i in range(len(frames)) if i not in reader.bad_frames]
    assert [read_barcode(frames[i]) for i in good] == good
    with pytest.raises(InputError, match=f"frame {reader.bad_frames[0]} of .* cannot be decoded"):
        list(open_video(path, on_bad_frame="stop"))


def test_f07_a_matroska_file_that_is_cut_short_is_said_to_be(tmp_path: Path) -> None:
    reader = open_video(truncate(clip(tmp_path / "whole.mkv"), tmp_path / "clip.mkv", 0.5))
    assert [read_barcode(frame) for frame in reader] == [round(t * 25) for t in reader.pts_s]
    assert any("4.8 s announced" in warning for warning in reader.warnings)


def test_f07_a_clip_whose_first_frames_are_lost_starts_with_the_first_good_one(tmp_path: Path) -> None:
    whole = clip(tmp_path / "whole.mp4", 60)
    with av.open(str(whole)) as container:
        first = next(container.demux(video=0))
        assert first.pos is not None
        begin, size = first.pos, first.size
    content = bytearray(whole.read_bytes())
    content[begin : begin + size] = np.random.default_rng(1).bytes(size)
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    reader = open_video(path)
    numbers = [read_barcode(frame) for frame in reader]
    assert len(numbers) == 60
    assert numbers[20:] == list(range(20, 60))
    assert 0 in reader.bad_frames


def test_f12_a_change_of_size_is_rescaled_to_the_first_frame_with_a_warning(tmp_path: Path) -> None:
    parts = [
        write_clip(tmp_path / "a.h264", 20, options={"g": "10"}),
        write_clip(tmp_path / "b.h264", 20, options={"g": "10"}, size=(192, 256), first=20),
    ]
    path = tmp_path / "clip.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    reader = open_video(path)
    assert reader.size == (96, 160)
    assert [read_barcode(frame) for frame in reader] == list(range(40))
    assert any("frame size changes to 256x192" in warning for warning in reader.warnings)


def test_a_wrong_policy_is_refused() -> None:
    with pytest.raises(UsageError, match="hold or stop, got 'skip'"):
        VideoReader("x.mp4", on_bad_frame="skip")  # type: ignore[arg-type]
