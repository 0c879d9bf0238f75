"""Which decoder is chosen and said, and what is known of a clip before its frames are read."""

import logging
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.support.zoo import ANIMALS, cut_without_decoding, vfr_times, write_clip
from vosnet.errors import InputError
from vosnet.video import VideoInfo, VideoReader, open_video

ROOT = Path(__file__).resolve().parents[3]
CHOICES = {
    "edit list": "edit list",
    "open GOP H.264": "open GOP",
    "open GOP": "codec hevc, open GOP",
    "AV1": "codec av1",
    "GIF": "codec gif",
    "variable rate": "variable frame rate",
    "rotation 90": "rotation 90",
    "H.264 10-bit": "pixel format yuv420p10le",
    "interlaced flag": "interlaced",
    "MPEG-TS": "container mpegts",
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_decord_gets_wrong_is_decoded_by_pyav_and_the_reason_is_said_once(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    animal = next(a for a in ANIMALS if a.name == name)
    path = animal.make(tmp_path / f"clip{animal.suffix}")
    with caplog.at_level(logging.INFO, logger="vosnet.video"):
        reader = open_video(path)
        list(reader)
        reader[0]
    assert reader.decoder == "pyav"
    assert CHOICES[name] in reader.reason
    said = [record.getMessage() for record in caplog.records if "decoded by" in record.getMessage()]
    assert said == [f"{path.name}: decoded by pyav ({reader.reason})"]


def test_plain_clips_are_decoded_by_decord(tmp_path: Path) -> None:
    pytest.importorskip("decord", reason="decord has no wheel for this platform")
    reader = open_video(write_clip(tmp_path / "clip.mp4", 20, audio=True))
    assert reader.decoder == "decord"
    assert "constant frame rate" in reader.reason


def test_without_decord_everything_is_decoded_by_pyav(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    path = write_clip(tmp_path / "clip.mp4", 20)
    reader = open_video(path)
    assert (reader.decoder, reader.reason) == ("pyav", "decord is not installed")
    assert len(list(reader)) == 20
    with pytest.raises(InputError, match="decord is not installed"):
        VideoReader(path, decoder="decord")


def test_the_times_are_those_of_the_file(tmp_path: Path) -> None:
    vfr = open_video(write_clip(tmp_path / "vfr.mp4", 50, pts_ms=vfr_times(50)))
    np.testing.assert_allclose(vfr.pts_s, np.array(vfr_times(50)) / 1000, atol=1e-9)
    assert vfr.fps == pytest.approx(49 / (vfr_times(50)[-1] / 1000))
    whole = write_clip(tmp_path / "cfr.mp4", 60, options={"g": "30", "bf": "2"})
    np.testing.assert_allclose(open_video(whole).pts_s, np.arange(60) / 25, atol=1e-9)
    cut = open_video(cut_without_decoding(whole, tmp_path / "cut.mp4", 17 / 25))
    np.testing.assert_allclose(cut.pts_s, np.arange(43) / 25, atol=1e-9)
    assert cut.fps == 25


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation_is_known_and_applied(rotation: int, tmp_path: Path) -> None:
    reader = open_video(write_clip(tmp_path / "clip.mp4", 3, rotation=rotation))
    assert reader.rotation == rotation
    assert reader.size == reader[0].shape[:2] == (96, 160)


def test_pixels_stay_on_the_stored_grid_and_the_flags_are_told(tmp_path: Path) -> None:
    wide = open_video(write_clip(tmp_path / "wide.mp4", 3, pixel_aspect=Fraction(16, 11)))
    assert (wide.size, wide.info.pixel_aspect) == ((96, 160), pytest.approx(16 / 11))
    fields = open_video(
        write_clip(tmp_path / "i.mp4", 3, options={"flags": "+ildct+ilme", "x264-params": "tff=1"})
    )
    assert fields.info.interlaced
    assert any("interlaced" in warning for warning in fields.warnings)


def test_what_is_known_survives_the_way_through_json(tmp_path: Path) -> None:
    info = open_video(write_clip(tmp_path / "clip.mp4", 7)).info
    back = VideoInfo.from_json(info.to_json())
    assert np.array_equal(back.pts_s, info.pts_s)
    assert {**vars(back), "pts_s": 0} == {**vars(info), "pts_s": 0}


def test_an_index_beyond_the_clip_is_an_index_error(tmp_path: Path) -> None:
    reader = open_video(write_clip(tmp_path / "clip.mp4", 5))
    assert np.array_equal(reader[-1], reader[4])
    for bad in (5, -6):
        with pytest.raises(IndexError, match="it has 5 frames"):
            reader[bad]
        with pytest.raises(IndexError, match="it has 5 frames"):
            reader.batch([0, bad])


def test_importing_the_package_loads_no_decoder() -> None:
    script = (
        "import sys, vosnet.video\n"
        "loaded = {'av', 'cv2', 'decord', 'torch', 'PIL'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
