"""What a continued run takes over: each thing that a checkpoint holds, seen in what comes after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.kill_ten import compare_runs
from tests.support.probe import PROBE, Clock, Probe, clock, probe, stop_after
from tests.support.toy_training import losses, train_toy
from vosnet.errors import DivergedError
from vosnet.synthetic import make_clip, write_davis
from vosnet.training.journal import read_rows

__all__ = ["clock", "probe"]


def stopped_and_continued(
    out: Path, monkeypatch: pytest.MonkeyPatch, step: int, *options: str, finish: bool = True
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        stopped = train_toy(out, *options)
    assert (stopped.step, stopped.completed, stopped.exit_code) == (step, False, 143)
    if finish:
        assert train_toy(out, *options, resume="auto").completed


def test_the_random_numbers_go_on_where_they_were(
    probe: type[Probe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*PROBE, "objective.noise=1.0"]
    train_toy(tmp_path / "whole", *options)
    stopped_and_continued(tmp_path / "run", monkeypatch, 2, *options)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert compare_runs(tmp_path / "whole", tmp_path / "run") == []


def test_a_row_holds_the_steps_before_and_after_the_stop(
    probe: type[Probe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*PROBE, "schedule={steps: 8}", "training.log_steps=4", "training.ema_decay=0.9"]
    probe.bad = {5}
    train_toy(tmp_path / "whole", *options)
    probe.calls = 0
    stopped_and_continued(tmp_path / "run", monkeypatch, 6, *options)
    assert compare_runs(tmp_path / "whole", tmp_path / "run") == []


def test_time_and_waiting_of_a_row_are_those_of_its_own_session(
    probe: type[Probe], clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of 2 s, then two of 4 s: a speed over both sessions would be another one."""
    probe.before.append(lambda call: clock.wait(2.0 if call <= 2 else 4.0)(call))
    options = [*PROBE, "training.log_steps=2", "training.batch_size=2"]
    stopped_and_continued(tmp_path / "run", monkeypatch, 2, *options)
    rows = read_rows(tmp_path / "run")
    assert [row["elapsed_s"] for row in rows] == [4.0, 12.0]
    assert [row["samples_per_s"] for row in rows] == [1.0, 0.5]
    assert [row["images_per_s"] for row in rows] == [2.0, 1.0]
    assert [row["data_wait_s"] for row in rows] == [0.0, 0.0]


def test_skipped_steps_before_the_stop_count_towards_too_many_in_a_row(
    probe: type[Probe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*PROBE, "schedule={steps: 9}", "training.bad_steps_in_a_row=4"]
    probe.bad = {3, 4, 5, 6}
    stopped_and_continued(tmp_path / "run", monkeypatch, 4, *options, finish=False)
    with pytest.raises(DivergedError, match="at step 6: 4 steps in a row"):
        train_toy(tmp_path / "run", *options, resume="auto")


def test_scattered_skipped_steps_before_the_stop_count_too(
    probe: type[Probe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*PROBE, "schedule={steps: 30}", "training.batch_size=1"]
    probe.bad = set(range(1, 23, 2))  # 11 of 22 steps; more than 10 of the last 200 are too many
    stopped_and_continued(tmp_path / "run", monkeypatch, 12, *options, finish=False)
    with pytest.raises(DivergedError, match="at step 21: more than 5 %"):
        train_toy(tmp_path / "run", *options, resume="auto")
    assert read_rows(tmp_path / "run")[-1]["skipped_steps"] == 10  # the row of step 20


def test_a_finished_run_that_is_resumed_leaves_its_checkpoint_as_it_is(
    probe: type[Probe], tmp_path: Path
) -> None:
    train_toy(tmp_path / "run", *PROBE)
    state = tmp_path / "run/checkpoints/last/state.pt"
    before = state.stat()
    assert train_toy(tmp_path / "run", *PROBE, resume="auto").completed
    assert (state.stat().st_ino, state.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.fixture
def validated(tmp_path: Path) -> list[str]:
    write_davis(tmp_path / "davis", {"a": make_clip(0, num_frames=3, size=(48, 64), num_objects=1)})
    return [*PROBE, f"validation={{root: {tmp_path / 'davis'}, sequences: [a], every_steps: 2}}"]


def test_the_best_score_is_remembered_over_the_stop(
    probe: type[Probe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validated: list[str]
) -> None:
    out = tmp_path / "run"
    stopped_and_continued(out, monkeypatch, 3, *validated, finish=False)
    best = out / "checkpoints/best/manifest.json"
    manifest = json.loads(best.read_text())
    assert manifest["step"] == 2
    best.write_text(json.dumps({**manifest, "J&F": 2.0}))  # better than any later one can be
    train_toy(out, *validated, resume="auto")
    assert json.loads(best.read_text())["step"] == 2
    best.write_text(json.dumps({**manifest, "J&F": -1.0}))
    train_toy(out, *validated, "schedule={steps: 6}", resume="auto")
    assert json.loads(best.read_text())["step"] == 6


def test_validation_goes_on_in_its_rhythm(
    probe: type[Probe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validated: list[str]
) -> None:
    out = tmp_path / "run"
    options = [*validated, "validation.every_steps=4", "schedule={steps: 7}"]
    stopped_and_continued(out, monkeypatch, 5, *options)
    rows = [row["step"] for row in read_rows(out) if row["split"] == "val"]
    assert rows == [4, 7]  # every fourth step and the end; neither at the stop nor right after it


def test_refreshed_files_and_what_they_took_are_remembered(
    probe: type[Probe], clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refresh takes 90 s of 10 minutes; one that 3 minutes or less would be left for is not made."""
    probe.before.append(clock.wait(60.0))
    original = Probe.refresh

    def slowly(self: Probe, job: object) -> object:
        clock.now += 90
        return original(self, job)  # type: ignore[arg-type]

    monkeypatch.setattr(Probe, "refresh", slowly)
    options = [*PROBE, "objective.every=3", "schedule={minutes: 10}"]
    train_toy(tmp_path / "whole", *options)
    assert probe.refreshed_at == [0, 3]  # at 0 and 4.5 minutes; at 9 minutes it is too late
    whole = losses(tmp_path / "whole")
    for stop in (2, 5):
        probe.calls = 0
        probe.refreshed_at.clear()
        out = tmp_path / f"run{stop}"
        stopped_and_continued(out, monkeypatch, stop, *options)
        assert probe.refreshed_at == [0, 3]
        assert losses(out) == whole


@pytest.mark.parametrize("stop", [3, 4], ids=["in the first step of the phase", "later"])
def test_the_second_phase_goes_on_with_its_share_of_the_clock(
    probe: type[Probe], clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    probe.before.append(clock.wait(30.0))
    options = [
        *PROBE, "schedule={steps: 2, decay: constant}",
        "phases=[{name: a}, {name: b, schedule: {minutes: 2, decay: cosine, warmup_steps: 3}}]",
    ]  # fmt: skip
    train_toy(tmp_path / "whole", *options)
    stopped_and_continued(tmp_path / "run", monkeypatch, stop, *options)
    assert compare_runs(tmp_path / "whole", tmp_path / "run") == []
