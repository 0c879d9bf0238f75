"""When a run logs, saves, validates, refreshes and ends, by a clock that the steps move."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.support.probe import PROBE, Clock, Probe, clock, probe
from tests.support.toy_training import train_toy
from vosnet.recipe.schema import ScheduleSection
from vosnet.synthetic import make_clip, write_davis
from vosnet.training.journal import read_rows
from vosnet.training.schedule import Schedule

__all__ = ["clock", "probe"]

TWO = (
    "phases=[{name: a}, {name: b, optimizer: {lr: 1e-3}, "
    "schedule: {minutes: 2, decay: cosine, warmup_steps: 2, final_factor: 0.2}}]"
)


def rows_of(out: Path, split: str) -> list[int]:
    return [row["step"] for row in read_rows(out) if row["split"] == split]


def saved_before_each_step(probe: type[Probe], out: Path) -> list[int]:
    """Filled during the run: the newest complete checkpoint at each forward pass, 0 before the first."""
    newest: list[int] = []

    def look(call: int) -> None:
        steps = [int(path.parent.name[5:]) for path in out.glob("checkpoints/step_*/manifest.json")]
        newest.append(max(steps, default=0))

    probe.before.append(look)
    return newest


def test_a_phase_limited_by_minutes_has_its_own_minutes_warm_up_and_cosine(
    probe: type[Probe], clock: Clock, tmp_path: Path
) -> None:
    probe.before.append(clock.wait(30.0))
    result = train_toy(tmp_path / "run", *PROBE, "schedule={steps: 3, decay: constant}", TWO)
    assert result.step == 3 + 4  # two minutes of steps of 30 s
    cosine = [0.2 + 0.8 * (1 + math.cos(math.pi * share)) / 2 for share in (0, 1 / 4, 2 / 4, 3 / 4)]
    rates = [1e-3 * c * w for c, w in zip(cosine, (0.5, 1, 1, 1))]
    rows = read_rows(tmp_path / "run")
    assert [row["lr"] for row in rows] == pytest.approx([1e-2] * 3 + rates)
    assert [row["elapsed_s"] for row in rows] == [30.0 * step for step in range(1, 8)]


def test_epochs_and_decays_of_a_phase_are_counted_from_where_it_begins(
    probe: type[Probe], tmp_path: Path
) -> None:
    """Five videos in batches of two are two steps an epoch; in batches of one, five."""
    phases = "phases=[{name: a}, {name: b, training: {batch_size: 1}, schedule: %s}]"
    decay = "{epochs: 2, decay: step, step_epochs: 1, gamma: 0.1}"
    first = "schedule={steps: 3, decay: constant}"
    train_toy(tmp_path / "run", *PROBE, first, phases % decay)
    rows = read_rows(tmp_path / "run")
    assert len(rows) == 3 + 2 * 5
    assert [row["lr"] for row in rows] == pytest.approx([1e-2] * 8 + [1e-3] * 5)
    assert [row["epoch"] for row in rows] == [0, 1, 1] + [0] * 4 + [1] * 5 + [2]


def test_a_phases_milestones_warm_up_and_rest_are_counted_from_where_it_begins() -> None:
    section = ScheduleSection(epochs=4, decay="milestones", milestones=(2, 3), gamma=0.5, warmup_steps=4)
    schedule = Schedule(section, steps_per_epoch=10, start_step=100, start_s=50.0)
    assert [schedule.factor(100 + s, 0.0) for s in (0, 3, 4, 19, 20, 30)] == [0.25, 1, 1, 1, 0.5, 0.25]
    assert not schedule.done(139, 1e9)
    assert schedule.done(140, 0.0)
    assert schedule.remaining_s(110, 80.0) == pytest.approx(90.0)  # 30 s for a quarter
    assert schedule.remaining_s(100, 50.0) is None
    timed = Schedule(ScheduleSection(minutes=1), 10, start_step=100, start_s=50.0)
    assert (timed.done(999, 109.0), timed.done(101, 110.0), timed.limit_s) == (False, True, 110.0)
    assert timed.remaining_s(110, 80.0) == pytest.approx(30.0)


def test_a_checkpoint_is_written_whenever_the_minutes_have_passed_in_either_phase(
    probe: type[Probe], clock: Clock, tmp_path: Path
) -> None:
    probe.before.append(clock.wait(30.0))
    newest = saved_before_each_step(probe, tmp_path / "run")
    options = ["schedule={steps: 5, decay: constant}", TWO, "training.save_minutes=1"]
    train_toy(tmp_path / "run", *PROBE, *options)
    # at steps 2 and 4, at the end of the first phase, then two steps later
    assert newest == [0, 0, 2, 2, 4, 5, 5, 7, 7]


def test_a_run_shorter_than_the_interval_is_saved_at_its_end_alone(
    probe: type[Probe], clock: Clock, tmp_path: Path
) -> None:
    probe.before.append(clock.wait(30.0))
    newest = saved_before_each_step(probe, tmp_path / "run")
    train_toy(tmp_path / "run", *PROBE, "training.save_minutes=10")
    assert newest == [0, 0, 0, 0]
    assert [path.name for path in (tmp_path / "run/checkpoints").glob("step_*")] == ["step_00000004"]


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    write_davis(tmp_path / "davis", {"a": make_clip(0, num_frames=3, size=(48, 64), num_objects=1)})
    return tmp_path / "davis"


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        # step 3 ends the first phase, step 7 the second
        pytest.param("every_steps: 2", [2, 3, 4, 6, 7], id="steps"),
        pytest.param("every_minutes: 1.5", [3, 6, 7], id="minutes"),
        pytest.param("every_epochs: 2", [3, 4, 7], id="epochs"),
    ],
)
def test_validation_has_its_rhythm_in_both_phases_and_comes_at_the_end_of_each(
    probe: type[Probe], clock: Clock, tmp_path: Path, davis: Path, every: str, expected: list[int]
) -> None:
    probe.before.append(clock.wait(30.0))
    section = f"validation={{root: {davis}, sequences: [a], {every}}}"
    train_toy(tmp_path / "run", *PROBE, "schedule={steps: 3, decay: constant}", TWO, section)
    assert rows_of(tmp_path / "run", "val") == expected
    assert rows_of(tmp_path / "run", "train") == [1, 2, 3, 4, 5, 6, 7]
    phases = [row["phase"] for row in read_rows(tmp_path / "run") if row["split"] == "val"]
    assert phases == ["a" if step <= 3 else "b" for step in expected]


def test_a_refresh_is_due_at_the_beginning_of_each_phase_and_at_its_interval(
    probe: type[Probe], tmp_path: Path
) -> None:
    phases = "phases=[{name: a}, {name: b, schedule: {steps: 4}}]"
    train_toy(tmp_path / "run", *PROBE, "objective={name: probe, every: 2}", "schedule={steps: 3}", phases)
    assert probe.refreshed_at == [0, 2, 3, 4, 6]


def test_a_refresh_by_the_clock(probe: type[Probe], clock: Clock, tmp_path: Path) -> None:
    probe.before.append(clock.wait(30.0))
    train_toy(tmp_path / "run", *PROBE, "objective={name: probe, every_minutes: 1.0}", "schedule={steps: 5}")
    assert probe.refreshed_at == [0, 2, 4]


def test_what_is_saved_before_a_refresh_is_the_state_before_it(probe: type[Probe], tmp_path: Path) -> None:
    """An interrupted refresh is repeated from the weights it began with."""
    at_refresh: list[list[str]] = []
    original = Probe.refresh

    def look(self: Probe, job: object) -> object:
        complete = (tmp_path / "run").glob("checkpoints/step_*/manifest.json")
        at_refresh.append(sorted(path.parent.name for path in complete))
        return original(self, job)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Probe, "refresh", look)
        train_toy(tmp_path / "run", *PROBE, "objective={name: probe, every: 3}", "schedule={steps: 5}")
    assert at_refresh == [[], ["step_00000003"]]
