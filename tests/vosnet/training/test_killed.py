"""Runs that are killed, locked out, or one of several ranks: children of a warm process server."""

import multiprocessing
import os
import random
import signal
import socket
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from torch import nn

from tests.support.kill_ten import compare_runs
from tests.support.toy_training import losses, train_toy
from vosnet.errors import LockedError, VosnetError
from vosnet.training.journal import read_rows
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


def _without_batch_norm(module: nn.Module) -> nn.Module:
    """Batch norm sees one rank's share of the batch: only a network without it is the same on two."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(1, child.num_features))
        else:
            _without_batch_norm(child)
    return module


def _rank(rank: int, port: int, out: Path, overrides: list[str], fault: str, answer: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    _train_without_batch_norm(out, overrides, fault if rank == 1 else "", Path(answer) / f"{rank}.txt")


def _train_without_batch_norm(out: Path, overrides: list[str], fault: str, answer: Path) -> None:
    from vosnet.objectives import build_objective
    from vosnet.training.trainer import Trainer

    original = Trainer._backward

    def faulty(trainer: Trainer, clip: object, scale: float) -> object:
        trainer.calls = getattr(trainer, "calls", 0) + 1  # type: ignore[attr-defined]
        if trainer.calls == 2 and fault == "die":  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGKILL)
        total, terms = original(trainer, clip, scale)  # type: ignore[arg-type]
        if trainer.calls == 2 and fault == "nan":  # type: ignore[attr-defined]
            total = total * float("nan")
        return total, terms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_backward", faulty)
        patch.setattr(
            "vosnet.training.run.build_objective",
            lambda *args, **kwargs: _without_batch_norm(build_objective(*args, **kwargs)),
        )
        try:
            train_toy(out, *overrides, resume="auto")
            answer.write_text("done")
        except VosnetError as error:
            answer.write_text(str(error))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _two_ranks(out: Path, answers: Path, overrides: list[list[str]], fault: str = "") -> list[str]:
    answers.mkdir()
    port = _free_port()
    ranks = [
        CONTEXT.Process(
            target=_rank, args=(rank, port, out, overrides[rank], fault, str(answers)), daemon=True
        )
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        assert not process.is_alive(), "a rank hangs"
    return [path.read_text() if (path := answers / f"{rank}.txt").exists() else "killed" for rank in range(2)]


BATCH = ["training.batch_size=4", "schedule={steps: 3}"]


def test_two_ranks_give_the_losses_of_one_with_the_same_batch(tmp_path: Path) -> None:
    _train_without_batch_norm(tmp_path / "one", BATCH, "", tmp_path / "one.txt")
    assert _two_ranks(tmp_path / "two", tmp_path / "answers", [BATCH, BATCH]) == ["done", "done"]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_f31_two_ranks_continue_bit_for_bit(tmp_path: Path) -> None:
    shorter = ["training.batch_size=4", "schedule={steps: 1}"]
    assert _two_ranks(tmp_path / "whole", tmp_path / "1", [BATCH, BATCH]) == ["done", "done"]
    assert _two_ranks(tmp_path / "parts", tmp_path / "2", [shorter, shorter]) == ["done", "done"]
    assert _two_ranks(tmp_path / "parts", tmp_path / "3", [BATCH, BATCH]) == ["done", "done"]
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_f32_a_nan_on_one_rank_is_skipped_by_both(tmp_path: Path) -> None:
    answers = _two_ranks(tmp_path / "run", tmp_path / "answers", [BATCH, BATCH], "nan")
    assert answers == ["done", "done"]
    rows = read_rows(tmp_path / "run")
    assert [row["loss"] is None for row in rows] == [False, True, False]
    assert [row["skipped_steps"] for row in rows] == [0, 1, 1]


def test_f38_when_a_rank_dies_the_other_ends_with_a_message(tmp_path: Path) -> None:
    began = time.monotonic()
    answers = _two_ranks(tmp_path / "run", tmp_path / "answers", [BATCH, BATCH], "die")
    assert answers[1] == "killed"
    assert "E109 another rank stopped answering" in answers[0]
    assert time.monotonic() - began < 60


def test_f38_ranks_with_different_recipes_or_data_refuse_to_start(tmp_path: Path) -> None:
    answers = _two_ranks(tmp_path / "run", tmp_path / "answers", [BATCH, [*BATCH, "seed=9"]])
    assert all("E108 the recipe differs over the ranks" in answer for answer in answers)
