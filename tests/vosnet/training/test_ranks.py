"""Runs of two ranks: the same steps as one, the same end for both, whatever happens to either."""

import math
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.probe import LISTED, PROBE, Probe, stop_after, without_batch_norm
from tests.support.toy_training import losses, train_toy
from vosnet.errors import VosnetError
from vosnet.objectives import OBJECTIVES, DenseCorrespondence, ObjectiveOutput
from vosnet.training.journal import read_rows
from vosnet.transforms import Clip

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.support.toy_training"])


def _rank(rank: int, port: int, out: Path, overrides: list[str], fault: str, answer: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    _train(out, overrides, fault if rank == 1 else "", Path(answer) / f"{rank}.txt")


def _train(out: Path, overrides: list[str], fault: str, answer: Path) -> None:
    """Train without batch norm, with a fault in the second forward pass, and write down how it ended."""
    build, forward, calls = DenseCorrespondence.__init__, DenseCorrespondence.forward, 0

    def plain(self: DenseCorrespondence, encoder: nn.Module, settings: Any) -> None:
        build(self, encoder, settings)
        without_batch_norm(self)

    def faulty(self: DenseCorrespondence, clip: Clip) -> ObjectiveOutput:
        nonlocal calls
        calls += 1
        if calls == 2 and fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        output = forward(self, clip)
        return output._replace(total=output.total * math.nan) if (calls, fault) == (2, "nan") else output

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OBJECTIVES, "probe", LISTED)
        patch.setattr(DenseCorrespondence, "__init__", plain)
        patch.setattr(DenseCorrespondence, "forward", faulty)
        if fault == "stop":
            stop_after(patch, 2)
        Probe.calls, Probe.bad = 0, {4} if fault == "bad part" else set()
        try:
            result = train_toy(out, *overrides, resume="auto")
            answer.write_text("done" if result.completed else f"stopped after {result.step}")
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
    _train(tmp_path / "one", BATCH, "", tmp_path / "one.txt")
    assert _two_ranks(tmp_path / "two", tmp_path / "answers", [BATCH, BATCH]) == ["done", "done"]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_the_minutes_of_two_ranks_are_those_of_the_clock(tmp_path: Path) -> None:
    limited = ["training.batch_size=4", "training.log_steps=1", "schedule={minutes: 0.05}"]
    assert _two_ranks(tmp_path / "run", tmp_path / "answers", [limited, limited]) == ["done", "done"]
    assert read_rows(tmp_path / "run")[-1]["elapsed_s"] >= 3


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


PLAIN = [
    *PROBE, "objective.batch_norm=false", "optimizer={name: sgd, lr: 5e-2, momentum: 0.5}",
    "schedule={steps: 3}", "training.batch_size=8", "training.clip_grad_norm=0.05", "training.ema_decay=0.8",
]  # fmt: skip


def _state(out: Path) -> dict[str, Any]:
    stored: dict[str, Any] = torch.load(out / "checkpoints/last/state.pt", weights_only=True)["trainer"]
    return {"objective": stored["objective"], "average": stored["average"]}


def _assert_close(one: dict[str, Any], two: dict[str, Any]) -> None:
    for part, tensors in one.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(two[part][name], tensor, rtol=2e-4, atol=2e-6, msg=f"{part}.{name}")


def test_two_ranks_that_accumulate_and_clip_end_with_the_weights_of_one_big_batch(tmp_path: Path) -> None:
    parts = [*PLAIN, "training.accumulate=2"]
    assert _two_ranks(tmp_path / "two", tmp_path / "1", [parts, parts]) == ["done", "done"]
    _train(tmp_path / "one", PLAIN, "", tmp_path / "one.txt")
    assert (tmp_path / "one.txt").read_text() == "done"
    _assert_close(_state(tmp_path / "one"), _state(tmp_path / "two"))
    rows = [read_rows(tmp_path / name) for name in ("one", "two")]
    assert min(row["grad_norm"] for row in rows[0]) > 0.1, "the limit never bites"
    for key in ("loss", "mean", "grad_norm"):
        assert [row[key] for row in rows[1]] == pytest.approx([row[key] for row in rows[0]], rel=1e-3)


def test_a_bad_micro_batch_of_one_rank_is_skipped_by_both(tmp_path: Path) -> None:
    parts = [*PLAIN, "training.accumulate=2"]
    assert _two_ranks(tmp_path / "run", tmp_path / "1", [parts, parts], "bad part") == ["done", "done"]
    assert [row["skipped_steps"] for row in read_rows(tmp_path / "run")] == [0, 1, 1]


def test_a_signal_to_one_rank_stops_both_after_the_same_step_and_they_continue(tmp_path: Path) -> None:
    assert _two_ranks(tmp_path / "run", tmp_path / "1", [PLAIN, PLAIN], "stop") == 2 * ["stopped after 2"]
    assert _two_ranks(tmp_path / "run", tmp_path / "2", [PLAIN, PLAIN]) == ["done", "done"]
    _train(tmp_path / "one", PLAIN, "", tmp_path / "one.txt")
    assert list(losses(tmp_path / "run")) == [1, 2, 3]
    _assert_close(_state(tmp_path / "one"), _state(tmp_path / "run"))


def test_two_ranks_refresh_each_its_share_and_use_all_of_it(tmp_path: Path) -> None:
    refreshing = [*PLAIN, "objective.every=2"]
    assert _two_ranks(tmp_path / "two", tmp_path / "1", [refreshing, refreshing]) == ["done", "done"]
    assert len(list((tmp_path / "two/refreshed/step_00000002").glob("*.npy"))) == 5
    # a rank writes the number of its refresh plus its rank: 5 videos, two of them on rank 1
    weights = [1 + (5 * refresh + 2) / 10 for refresh in (1, 2)]
    _train(tmp_path / "one", PLAIN, "", tmp_path / "one.txt")
    first = losses(tmp_path / "one")[1] * weights[0]
    assert losses(tmp_path / "two")[1] == pytest.approx(first, rel=1e-4)
    assert (tmp_path / "two/refreshed/step_00000000/manifest.json").is_file()
