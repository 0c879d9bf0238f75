"""Readers in data-loading workers, after forks, in decoders that crash or hang, and their memory."""

import gc
import os
import re
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest

from tests.support.zoo import read_barcode, write_clip
from vosnet.errors import InputError
from vosnet.video import VideoReader, handles, isolated, open_video

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 60, options={"g": "12", "bf": "2"})


def numbers(reader: VideoReader, indices: list[int]) -> list[int | None]:
    return [read_barcode(reader[index]) for index in indices]


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
@pytest.mark.parametrize(
    "start",
    [
        pytest.param(
            "fork", marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
        ),
        "spawn",
    ],
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_reader_in_use_can_be_read_in_worker_processes(start: str, decoder: str, path: Path) -> None:
    if decoder == "decord":
        pytest.importorskip("decord", reason="decord has no wheel for this platform")
    reader = VideoReader(path, decoder=decoder)  # type: ignore[arg-type]
    assert numbers(reader, [30]) == [30]  # the decoder runs when the workers start
    with get_context(start).Pool(2) as pool:
        results = [pool.apply_async(numbers, (reader, [k, 59 - k])) for k in range(4)]
        assert [result.get(timeout=60) for result in results] == [[k, 59 - k] for k in range(4)]
    assert numbers(reader, [31, 7]) == [31, 7]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_reader_inherited_through_a_bare_fork_opens_its_own_decoder(path: Path) -> None:
    reader = open_video(path)
    assert numbers(reader, [5]) == [5]
    child = os.fork()
    if child == 0:
        os._exit(0 if numbers(reader, [6, 40, 2]) == [6, 40, 2] else 1)
    deadline = time.monotonic() + 30
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert done == (child, 0)
    assert numbers(reader, [6, 40, 2]) == [6, 40, 2]


def test_frames_may_be_changed_by_the_caller(path: Path) -> None:
    reader = open_video(path)
    reader[3][:] = 0
    assert read_barcode(reader[3]) == 3


def test_only_few_decord_readers_are_open_at_a_time(path: Path) -> None:
    pytest.importorskip("decord", reason="decord has no wheel for this platform")
    readers = [VideoReader(path, decoder="decord") for _ in range(5)]
    for index, reader in enumerate(readers):
        assert numbers(reader, [index]) == [index]
    assert sum(reader.is_open for reader in readers) == handles.MAX_OPEN_DECORD
    assert [numbers(reader, [50]) for reader in readers] == [[50]] * 5


@pytest.mark.parametrize("settings", [{"decoder": "decord"}, {"decoder": "pyav"}, {"decode_timeout_s": 20}])
def test_readers_that_nobody_closes_hold_nothing(settings: dict[str, Any], path: Path) -> None:
    if settings.get("decoder") == "decord":
        pytest.importorskip("decord", reason="decord has no wheel for this platform")
    process = psutil.Process()
    VideoReader(path, **settings)[0]
    before = process.num_fds(), process.num_threads(), len(process.children())
    gc.disable()  # freed at once, not when the collector happens to run
    try:
        for _ in range(3):
            VideoReader(path, **settings)[0]
        after = process.num_fds(), process.num_threads(), len(process.children())
    finally:
        gc.enable()
    assert after == before


def test_opencv_still_reads_png_after_a_video_was_read(path: Path, tmp_path: Path) -> None:
    # With decord imported before OpenCV, cv2.imread gives None for every PNG.
    picture = tmp_path / "picture.png"
    cv2.imwrite(str(picture), np.full((4, 4, 3), 7, np.uint8))
    script = (
        "import sys; from vosnet.video import open_video\n"
        f"open_video({str(path)!r})[0]\n"
        "import cv2\n"
        f"assert cv2.imread({str(picture)!r}) is not None\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_an_idle_reader_does_not_decode_into_memory(tmp_path: Path) -> None:
    # 120 frames of 1280x720 are 332 MB decoded; left to itself decord would hold them all.
    clip = write_clip(
        tmp_path / "clip.mp4", 120, size=(720, 1280), options={"preset": "ultrafast", "g": "250"}
    )
    process = psutil.Process()
    reader = open_video(clip)
    reader[0]
    before = process.memory_info().rss
    time.sleep(1.0)
    assert process.memory_info().rss - before < 64 << 20
    assert reader.decoder == "pyav"
    assert "memory" in reader.reason


def test_f13_streaming_needs_no_more_memory_for_a_longer_clip(tmp_path: Path) -> None:
    # decord decodes ahead as it likes and so only gets clips that fit a fixed budget; PyAV has the rest.
    options = {"preset": "ultrafast", "g": "50"}
    peaks = []
    for count in (30, 300):
        clip = write_clip(tmp_path / f"{count}.mp4", count, size=(270, 480), options=options)
        script = (
            "import sys, psutil; from vosnet.video import VideoReader\n"
            "reader, peak = VideoReader(sys.argv[1], decoder='pyav'), 0\n"
            "for frame in reader: peak = max(peak, psutil.Process().memory_info().rss)\n"
            "print(peak)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(clip)], check=True, cwd=ROOT, capture_output=True, text=True
        )
        peaks.append(int(done.stdout))
    assert peaks[1] <= 1.2 * peaks[0]


def serve_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, behavior: str) -> None:
    """Let workers run a reader that does `behavior` when frame 7 is asked for."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, sys, time\n"
        "from vosnet.video.reader import VideoReader\n"
        "from vosnet.video.worker import serve, take_standard_output\n"
        "class Fake(VideoReader):\n"
        "    def __getitem__(self, index):\n"
        "        if index == 7:\n"
        f"            {behavior}\n"
        "        return super().__getitem__(index)\n"
        "serve(lambda: Fake(sys.argv[1]), sys.stdin.buffer, take_standard_output())\n"
    )
    monkeypatch.setattr(isolated, "WORKER_COMMAND", (sys.executable, str(script)))


def read_until_it_fails(path: Path, timeout_s: float) -> tuple[list[int | None], str]:
    seen = []
    try:
        seen.extend(read_barcode(frame) for frame in open_video(path, decode_timeout_s=timeout_s))
    except InputError as error:
        return seen, str(error)
    return seen, ""


def test_f14_a_worker_process_gives_the_same_frames(path: Path) -> None:
    reader, plain = open_video(path, decode_timeout_s=20), open_video(path)
    assert all(np.array_equal(a, b) for a, b in zip(reader, plain, strict=True))
    assert numbers(reader, [44, 3, 59, 3]) == [44, 3, 59, 3]
    assert np.array_equal(reader.pts_s, plain.pts_s)
    assert (reader.size, reader.fps, reader.names, reader.decoder) == (
        plain.size,
        plain.fps,
        plain.names,
        plain.decoder,
    )


@pytest.mark.parametrize(
    ("behavior", "told"),
    [
        pytest.param("os.abort()", r"crashed \(signal 6\)", id="abort"),
        pytest.param("os.kill(os.getpid(), 11)", r"crashed \(signal 11\)", id="segfault"),
        pytest.param("os._exit(9)", r"ended \(exit code 9\)", id="exit"),
        pytest.param("time.sleep(600)", "did not answer within 1 s", id="hang"),
    ],
)
def test_f14_a_crash_or_hang_fails_the_clip_and_not_the_program(
    behavior: str, told: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_with(monkeypatch, tmp_path, behavior)
    start = time.monotonic()
    seen, message = read_until_it_fails(path, timeout_s=1)
    assert seen == list(range(7))
    assert re.search(told, message), message
    assert "clip.mp4" in message
    assert time.monotonic() - start < 20
    monkeypatch.undo()
    assert read_until_it_fails(path, timeout_s=20) == (list(range(60)), "")


def test_f14_errors_of_the_worker_come_back_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(InputError, match="is empty") as caught:
        open_video(tmp_path / "clip.mp4", decode_timeout_s=20)
    assert caught.value.code == "E211"
