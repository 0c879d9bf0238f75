"""Parameter groups, schedules, signals, curves, validation."""

import math
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.toy_training import train_toy
from vosnet.errors import InputError
from vosnet.recipe.schema import OptimizerSection, ScheduleSection
from vosnet.synthetic import make_clip, write_davis
from vosnet.training.curves import draw_curves
from vosnet.training.journal import Journal, read_rows
from vosnet.training.optimizer import build_optimizer, set_learning_rate
from vosnet.training.schedule import Schedule
from vosnet.training.signals import stop_on_signals


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1, bias=False))


def test_biases_learn_twice_as_fast_and_do_not_decay_while_batch_norm_weights_do() -> None:
    settings = OptimizerSection(lr=0.1, weight_decay=0.01, bias_lr_factor=2.0)
    optimizer = build_optimizer(network(), settings)
    weights, norms, biases = optimizer.param_groups
    assert [len(group["params"]) for group in (weights, norms, biases)] == [2, 1, 2]
    assert [group["weight_decay"] for group in (weights, norms, biases)] == [0.01, 0.01, 0.0]
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in (weights, norms, biases)] == [0.5, 0.5, 1.0]


def test_the_switches_turn_the_papers_groups_around() -> None:
    settings = OptimizerSection(lr=0.1, weight_decay=0.01, decay_bias=True, decay_norm=False)
    groups = build_optimizer(network(), settings).param_groups
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0, 0.01]


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_optimizers_by_name(name: str, kind: type[torch.optim.Optimizer]) -> None:
    settings = OptimizerSection.model_validate({"name": name, "lr": 0.1, "momentum": 0.8})
    assert type(build_optimizer(network(), settings)) is kind


def test_step_decay_counts_epochs() -> None:
    section = ScheduleSection(epochs=500, decay="step", step_epochs=100, gamma=0.5)
    schedule = Schedule(section, steps_per_epoch=216)
    assert schedule.total_steps == 108_000
    factors = [schedule.factor(epoch * 216, 0.0) for epoch in (0, 99, 100, 199, 200, 499)]
    assert factors == [1, 1, 0.5, 0.5, 0.25, 0.0625]


def test_milestones_are_epochs_at_which_the_rate_falls() -> None:
    section = ScheduleSection(epochs=50, decay="milestones", milestones=(20, 30, 40), gamma=0.3)
    schedule = Schedule(section, steps_per_epoch=10)
    factors = [schedule.factor(epoch * 10, 0.0) for epoch in (0, 19, 20, 29, 30, 40, 49)]
    assert factors == pytest.approx([1, 1, 0.3, 0.3, 0.09, 0.027, 0.027])
    for section in ({"decay": "milestones"}, {"milestones": [3]}):
        with pytest.raises(ValueError, match="belong together"):
            ScheduleSection.model_validate({"epochs": 5, **section})


def test_cosine_falls_to_the_final_factor_within_the_minutes() -> None:
    section = ScheduleSection(minutes=10, decay="cosine", final_factor=0.02, warmup_steps=50)
    schedule = Schedule(section, steps_per_epoch=12)
    assert schedule.factor(0, 0.0) == pytest.approx(1 / 50)
    assert schedule.factor(100, 300.0) == pytest.approx(0.51)
    assert schedule.factor(9_999, 600.0) == pytest.approx(0.02)
    assert not schedule.done(10**9, 599.0)
    assert schedule.done(1, 600.0)
    assert schedule.remaining_s(100, 150.0) == pytest.approx(450.0)


def test_cosine_over_steps_ignores_the_clock() -> None:
    schedule = Schedule(ScheduleSection(steps=100, decay="cosine"), 10)
    assert schedule.factor(50, 1e9) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))


def test_f37_the_first_signal_is_a_request_and_the_second_acts(request: pytest.FixtureRequest) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background job
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with stop_on_signals() as stop:
        assert not stop
        signal.raise_signal(signal.SIGINT)
        assert stop
        assert stop.exit_code == 130
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_f37_termination_and_preemption_notices_end_with_143(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        signal.raise_signal(number)
        assert stop.exit_code == code
    assert signal.getsignal(number) == before


def test_numbers_that_are_not_finite_are_null_in_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path, tensorboard=False)
    journal.row("train", 1, {"loss": float("nan"), "sequences": {"a": float("inf")}})
    journal.close()
    (row,) = read_rows(tmp_path)
    assert row["loss"] is None
    assert row["sequences"] == {"a": None}


def test_curves_are_drawn_from_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path, tensorboard=False)
    for step in range(1, 40):
        journal.row("train", step, {"loss": 1.0 / step, "lr": 1e-3})
    journal.close()
    path = draw_curves(tmp_path, print)
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path, tensorboard=False)
    journal.row("train", 1, {"loss": 1.0})
    journal.close()
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    said: list[str] = []
    assert draw_curves(tmp_path, said.append) is None
    assert "matplotlib is missing" in said[0]


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    clips = {
        name: make_clip(seed, num_frames=4, size=(48, 64), num_objects=1) for seed, name in enumerate("ab")
    }
    write_davis(tmp_path / "davis", clips)
    return tmp_path / "davis"


def test_validation_scores_named_sequences_and_keeps_the_best_checkpoint(davis: Path, tmp_path: Path) -> None:
    section = f"validation={{root: {davis}, sequences: [a, b], every_steps: 1}}"
    train_toy(tmp_path / "run", section, "schedule={steps: 4}")
    rows = [row for row in read_rows(tmp_path / "run") if row["split"] == "val"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert set(rows[0]["sequences"]) == {"a", "b"}
    assert all(0 <= row["J&F"] <= 1 for row in rows)
    best = max(rows, key=lambda row: (row["J&F"], -row["step"]))
    link = (tmp_path / "run" / "checkpoints" / "best").resolve()
    assert link.name == f"step_{best['step']:08d}"
    assert (tmp_path / "run" / "checkpoints" / "last").resolve().name == "step_00000004"


def test_missing_validation_data_is_a_note_or_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    section = "validation={root: /nowhere, split: val, every_steps: 1, optional: %s}"
    train_toy(tmp_path / "run", section % "true", "schedule={steps: 1}")
    assert "no validation" in capsys.readouterr().err
    with pytest.raises(InputError, match="E230"):
        train_toy(tmp_path / "other", section % "false", "schedule={steps: 1}")
