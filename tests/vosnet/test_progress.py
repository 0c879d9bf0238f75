"""Progress is readable in a log and parseable as JSON."""

import io
import json

import pytest

import vosnet.progress
from vosnet.progress import Progress


def test_a_log_gets_few_lines_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(float(t) for t in range(10_000))
    monkeypatch.setattr(vosnet.progress.time, "monotonic", lambda: next(now))
    stream = io.StringIO()
    with Progress(100, "propagate", stream=stream) as progress:
        for _ in range(100):
            progress.advance()
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= 6
    assert "left" in lines[0]
    assert lines[-1].startswith("propagate: 100/100 frames")


def test_json_lines_parse_and_a_resumed_job_counts_from_its_start() -> None:
    stream = io.StringIO()
    with Progress(10, "train", mode="json", start=4, stream=stream) as progress:
        progress.advance(6, loss=1.5)
    assert json.loads(stream.getvalue().splitlines()[-1])["done"] == 10


def test_quiet_writes_nothing() -> None:
    stream = io.StringIO()
    with Progress(3, "x", mode="quiet", stream=stream) as progress:
        progress.advance(3)
    assert stream.getvalue() == ""


def test_the_time_left_of_a_resumed_job_is_that_of_the_steps_done_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = [0.0]
    monkeypatch.setattr(vosnet.progress.time, "monotonic", lambda: seconds[0])
    stream = io.StringIO()
    progress = Progress(100, "train", mode="json", start=90, stream=stream)
    seconds[0] = 8.0
    progress.advance(4)  # 2 s each, 6 are left
    assert json.loads(stream.getvalue())["eta_s"] == 12.0
