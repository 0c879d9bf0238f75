"""Runs that are killed or locked out: children of a warm process server."""

import multiprocessing
import os
import random
import socket
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.support.kill_ten import compare_runs
from tests.support.toy_training import losses, train_toy
from vosnet.errors import LockedError
from vosnet.training.lock import RunLock

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.support.toy_training"])


def _train(out: Path, *overrides: str) -> None:
    train_toy(out, *overrides, resume="auto")


def _start(out: Path, *overrides: str) -> BaseProcess:
    process = CONTEXT.Process(target=_train, args=(out, *overrides), daemon=True)
    process.start()
    return process


def _rows(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _wait_until(condition: object, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.01)


def test_f22_killed_at_random_moments_a_run_ends_like_the_uninterrupted_one(tmp_path: Path) -> None:
    """Every step saves, so kills fall into writing as often as into computing."""
    options = ["schedule.steps=12", "training.save_minutes=1e-9", "training.ema_decay=0.9"]
    train_toy(tmp_path / "whole", *options)
    out, moments = tmp_path / "killed", random.Random(0)
    kills = 0
    while kills < 4:
        process = _start(out, *options)
        before = _rows(out)
        _wait_until(lambda: not process.is_alive() or _rows(out) not in {0, before})  # noqa: B023
        time.sleep(moments.uniform(0, 0.15))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        kills += 1
    assert kills >= 2, "the run ended before it could be killed"
    train_toy(out, *options, resume="auto")
    assert losses(out) == losses(tmp_path / "whole")
    left = [path for path in out.rglob(".*") if path.is_file()]
    assert left == [], "a killed process's temporary files are still there"
    assert compare_runs(tmp_path / "whole", out) == []
    rows = (out / "metrics.jsonl").read_text()
    (out / "metrics.jsonl").write_text(rows.replace('"lr": ', '"lr": 1', 1))
    assert compare_runs(tmp_path / "whole", out) == ["metrics.jsonl"]


def test_f29_a_second_run_in_the_folder_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    first = _start(tmp_path / "run", "schedule.steps=100000")
    _wait_until(lambda: _rows(tmp_path / "run") > 0)
    with pytest.raises(LockedError, match=f"E801 .*process {first.pid} on {socket.gethostname()}"):
        train_toy(tmp_path / "run", resume="auto")
    first.kill()
    first.join()
    lock = RunLock(tmp_path / "run")
    lock.acquire()
    lock.release()


def _no_flock(*args: object) -> None:
    raise OSError(37, "no locks available")


def test_f30_without_flock_a_file_with_host_and_process_stands_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcntl.flock", _no_flock)
    lock = RunLock(tmp_path)
    lock.acquire()
    with pytest.raises(LockedError, match=f"process {os.getpid()}"):
        RunLock(tmp_path).acquire()
    lock.release()
    RunLock(tmp_path).acquire()


def test_f30_the_lock_file_of_a_dead_process_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcntl.flock", _no_flock)
    gone = CONTEXT.Process(target=time.sleep, args=(0,))
    gone.start()
    gone.join()
    path = tmp_path / "run.lock.exclusive"
    path.write_text(f'{{"host": "{socket.gethostname()}", "pid": {gone.pid}}}')
    RunLock(tmp_path).acquire()
    assert f'"pid": {os.getpid()}' in path.read_text()
    path.write_text('{"host": "elsewhere", "pid": 1}')
    with pytest.raises(LockedError, match="process 1 on elsewhere"):
        RunLock(tmp_path).acquire()
    os.utime(path, (0, 0))  # its heartbeat stopped long ago
    RunLock(tmp_path).acquire()
