"""What is written plays in a browser, at the source's times, with its sound, and whole or not at all."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.support.zoo import barcode, read_barcode, vfr_times, write_clip
from vosnet.errors import StorageError, UsageError
from vosnet.video import VideoWriter, open_video

ROOT = Path(__file__).resolve().parents[3]


def write(path: Path, count: int = 20, size: tuple[int, int] = (96, 160), **settings: object) -> Path:
    with VideoWriter(path, size, **settings) as writer:  # type: ignore[arg-type]
        for i in range(count):
            writer.write(barcode(i, size[1], size[0]))
    return path


def top_level_boxes(path: Path) -> list[bytes]:
    content, place, kinds = path.read_bytes(), 0, []
    while place < len(content):
        kinds.append(content[place + 4 : place + 8])
        place += int.from_bytes(content[place : place + 4], "big")
    return kinds


def test_frames_come_back_and_the_format_is_what_browsers_play(tmp_path: Path) -> None:
    path = write(tmp_path / "out.mp4", fps=25)
    assert [read_barcode(frame) for frame in open_video(path)] == list(range(20))
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.codec.canonical_name, context.pix_fmt) == ("h264", "yuv420p")
    kinds = top_level_boxes(path)
    assert kinds.index(b"moov") < kinds.index(b"mdat")


@pytest.mark.parametrize("fps", [25.0, 24.0, 30_000 / 1001, 24_000 / 1001, 12.5, 120.0, 29.97])
def test_a_constant_rate_is_kept_exactly(fps: float, tmp_path: Path) -> None:
    reader = open_video(write(tmp_path / "out.mp4", fps=fps))
    np.testing.assert_allclose(reader.pts_s, np.arange(20) / fps, atol=2e-6)
    assert reader.fps == pytest.approx(fps, rel=1e-6)


def test_f09_varying_times_are_the_source_s_own(tmp_path: Path) -> None:
    source = open_video(write_clip(tmp_path / "vfr.mp4", 50, pts_ms=vfr_times(50)))
    with VideoWriter(tmp_path / "out.mp4", source.size, pts_s=source.pts_s) as writer:
        for frame in source:
            writer.write(frame)
    result = open_video(tmp_path / "out.mp4")
    assert len(result) == len(source)
    np.testing.assert_allclose(result.pts_s, source.pts_s, atol=1e-9)
    assert [read_barcode(frame) for frame in result] == list(range(50))


def test_times_that_fit_no_usual_clock_are_kept_to_a_microsecond(tmp_path: Path) -> None:
    times = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.09, 20))
    reader = open_video(write(tmp_path / "out.mp4", pts_s=times))
    np.testing.assert_allclose(reader.pts_s, times - times[0], atol=1e-6)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_f10_a_rotated_source_is_written_upright_and_without_the_tag(rotation: int, tmp_path: Path) -> None:
    source = open_video(write_clip(tmp_path / "in.mp4", 10, rotation=rotation))
    with VideoWriter(tmp_path / "out.mp4", source.size, pts_s=source.pts_s) as writer:
        for frame in source:
            writer.write(frame)
    result = open_video(tmp_path / "out.mp4")
    assert (source.rotation, result.rotation) == (rotation, 0)
    assert result.size == source.size == (96, 160)
    assert [read_barcode(frame) for frame in result] == list(range(10))


@pytest.mark.parametrize(
    ("size", "stored"), [((95, 161), (96, 162)), ((96, 161), (96, 162)), ((1, 1), (2, 2))]
)
def test_odd_sizes_grow_by_one_repeated_line(
    size: tuple[int, int], stored: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "out.mp4"
    with VideoWriter(path, size, fps=25) as writer:
        writer.write(np.full((*size, 3), 200, np.uint8))
    reader = open_video(path)
    assert reader.size == stored
    assert np.abs(reader[0].astype(int) - 200).max() <= 3


def audio_span_s(path: Path) -> tuple[float, float, int]:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        assert stream.time_base is not None
        packets = [p for p in container.demux(stream) if p.pts is not None and not p.is_discard]
        ends = packets[-1].pts + packets[-1].duration  # type: ignore[operator]
        return float(packets[0].pts * stream.time_base), float(ends * stream.time_base), len(packets)  # type: ignore[operator]


def test_sound_is_copied_for_the_time_of_the_frames(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", 75, audio=True)
    reader = open_video(source)
    for name, part in (("all", slice(None)), ("part", slice(25, 50))):
        with VideoWriter(
            tmp_path / f"{name}.mp4", reader.size, pts_s=reader.pts_s[part], audio_from=source
        ) as w:
            for frame in list(reader)[part]:
                w.write(frame)
        assert w.warnings == []
    start, end, count = audio_span_s(tmp_path / "all.mp4")
    assert abs(count - audio_span_s(source)[2]) <= 1
    assert (start, end) == pytest.approx((0, 3), abs=0.05)
    assert audio_span_s(tmp_path / "part.mp4")[:2] == pytest.approx((0, 1), abs=0.05)
    part = open_video(tmp_path / "part.mp4")
    assert part.pts_s[0] == 0
    assert [read_barcode(frame) for frame in part] == list(range(25, 50))


def test_sound_that_mp4_cannot_hold_is_left_out_with_a_warning(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "in.mkv"), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
    with VideoWriter(tmp_path / "out.mp4", (96, 160), fps=25, audio_from=tmp_path / "in.mkv") as writer:
        writer.write(barcode(0))
    assert "pcm_s16le cannot be stored in .mp4" in writer.warnings[0]
    assert len(open_video(tmp_path / "out.mp4")) == 1


def test_a_source_without_sound_is_no_problem(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", 5)
    path = write(tmp_path / "out.mp4", 5, fps=25, audio_from=source)
    assert len(open_video(path)) == 5


def test_an_error_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), VideoWriter(path, (96, 160), fps=25) as writer:
        writer.write(barcode(0))
        raise KeyError("stop")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_f21_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import resource, sys, numpy as np\n"
        "from vosnet.errors import StorageError\n"
        "from vosnet.video import VideoWriter\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "noise = np.random.default_rng(0)\n"
        "try:\n"
        "    with VideoWriter(sys.argv[1], (240, 320), fps=25, preset='ultrafast') as writer:\n"
        "        for _ in range(60): writer.write(noise.integers(0, 255, (240, 320, 3), np.uint8))\n"
        "except StorageError as error:\n"
        "    print(error); sys.exit(error.exit_code)\n"
    )
    path = tmp_path / "out.mp4"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == StorageError.exit_code, done.stderr
    assert "disk full" in done.stdout
    assert "out.mp4" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_pixel_aspect_is_kept(tmp_path: Path) -> None:
    source = open_video(write_clip(tmp_path / "in.mp4", 3, pixel_aspect=Fraction(4, 3)))
    assert source.info.pixel_aspect == pytest.approx(4 / 3)
    path = write(tmp_path / "out.mp4", 3, fps=25, pixel_aspect=source.info.pixel_aspect)
    assert open_video(path).info.pixel_aspect == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"fps": 25, "pts_s": [0.0]},
        {"pts_s": [0.0, 0.0]},
        {"pts_s": [0.0, np.nan]},
        {"pts_s": []},
        {"fps": 0},
    ],
)
def test_unclear_times_are_refused(settings: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        VideoWriter(tmp_path / "out.mp4", (96, 160), **settings)  # type: ignore[arg-type]


def test_a_frame_of_another_size_is_refused_by_name_of_both_sizes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"frame 0 must be uint8 \[96, 160, 3\], got uint8 \[96, 96, 3\]"):
        write_one(tmp_path / "out.mp4", np.zeros((96, 96, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def write_one(path: Path, frame: np.ndarray) -> None:
    with VideoWriter(path, (96, 160), fps=25) as writer:
        writer.write(frame)
