"""Files that an objective makes of the training videos: at their times, whole, and exact after a resume."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.toy_training import losses, train_toy
from vosnet.errors import DivergedError, InputError
from vosnet.objectives import (
    OBJECTIVES,
    Listed,
    Objective,
    ObjectiveOutput,
    ObjectiveSettings,
    RefreshInterval,
    RefreshJob,
)
from vosnet.transforms import Clip

TOY = ["objective={name: refreshing}", "schedule={steps: 6}"]
INTERRUPT_AT: list[int] = []  # the call of `refresh` that is interrupted by a signal


@dataclass(frozen=True, kw_only=True)
class RefreshingSettings(ObjectiveSettings):
    every: int = 2
    limit: float = -1.0
    refresh_s: float = 0.0


class Refreshing(Objective):
    """Its files hold a feature of each video; the loss multiplies by it, so every step feels a wrong file."""

    calls = 0

    def __init__(self, encoder: nn.Module, settings: RefreshingSettings) -> None:
        super().__init__()
        self.encoder = encoder
        self.refresh_interval = RefreshInterval(steps=settings.every)
        self.limit, self.refresh_s = settings.limit, settings.refresh_s

    def refresh(self, job: RefreshJob) -> Iterator[str]:
        Refreshing.calls += 1
        for video in job.share():
            time.sleep(self.refresh_s)
            images = torch.from_numpy(video.read([len(video) - 1])).permute(0, 3, 1, 2).float() / 255
            with torch.no_grad():
                self.encoder.eval()
                value = self.encoder(images).mean().numpy()
                self.encoder.train()
            np.save(job.folder / (video.name.replace("/", "_") + ".npy"), value)
            if Refreshing.calls in INTERRUPT_AT:
                signal.raise_signal(signal.SIGTERM)
            yield video.name

    def use_refreshed(self, folder: Path) -> None:
        self.values = {path.stem: float(np.load(path)) for path in folder.glob("*.npy")}

    def forward(self, clip: Clip) -> ObjectiveOutput:
        scale = torch.tensor([1 + self.values[name.replace("/", "_")] for name in clip.names])
        total = (self.encoder(clip.frames[:, 0]).mean((1, 2, 3)) * scale).square().mean()
        return ObjectiveOutput(total, {"size": total.detach()})

    def collapse_reason(self, terms: dict[str, float]) -> str | None:
        return f"size is {terms['size']:.1e}" if terms["size"] < self.limit else None


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "refreshing", Listed(RefreshingSettings, Refreshing))
    Refreshing.calls = 0
    INTERRUPT_AT.clear()


def versions(out: Path) -> list[int]:
    return sorted(int(path.parent.name[5:]) for path in out.glob("refreshed/step_*/manifest.json"))


def test_files_are_made_at_the_start_and_at_every_interval_and_old_ones_go(tmp_path: Path) -> None:
    train_toy(tmp_path / "run", *TOY)
    assert Refreshing.calls == 3  # before steps 0, 2 and 4
    assert versions(tmp_path / "run") == [2, 4]
    folder = tmp_path / "run/refreshed/step_00000004"
    assert len(list(folder.glob("*.npy"))) == 5
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["step"], manifest["interval"]) == (4, 2)
    newest = np.load(folder / "generated_00000.npy")
    assert newest != np.load(tmp_path / "run/refreshed/step_00000002/generated_00000.npy")


@pytest.mark.parametrize("call", [1, 3])
def test_an_interrupted_refresh_is_repeated_and_the_run_goes_on_exactly(tmp_path: Path, call: int) -> None:
    train_toy(tmp_path / "whole", *TOY)
    Refreshing.calls = 0
    INTERRUPT_AT.append(call)
    stopped = train_toy(tmp_path / "run", *TOY)
    assert (stopped.step, stopped.completed, stopped.exit_code) == (2 * (call - 1), False, 143)
    assert stopped.step not in versions(tmp_path / "run")
    (tmp_path / "run/refreshed" / f"step_{stopped.step:08d}" / "stray.npy").write_bytes(b"half")
    INTERRUPT_AT.clear()
    assert train_toy(tmp_path / "run", *TOY, resume="auto").completed
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert not list((tmp_path / "run").glob("refreshed/*/stray.npy"))


def test_a_run_that_stops_between_two_refreshes_goes_on_with_the_files_it_had(tmp_path: Path) -> None:
    options = [*TOY, "objective.every=4"]
    train_toy(tmp_path / "whole", *options)
    train_toy(tmp_path / "run", *options, "schedule={steps: 3}")
    Refreshing.calls = 0
    train_toy(tmp_path / "run", *options, resume="auto")
    assert Refreshing.calls == 1  # at step 4 alone
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_files_of_another_checkpoint_or_data_set_are_refused_and_missing_ones_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, out = [*TOY, "objective.every=4"], tmp_path / "run"
    train_toy(out, *options, "schedule={steps: 3}")
    manifest = out / "refreshed/step_00000000/manifest.json"
    made = json.loads(manifest.read_text())
    for key, what in (("data", "another data set"), ("weights", "another checkpoint")):
        manifest.write_text(json.dumps(made | {key: "f" * 64}))
        with pytest.raises(InputError, match=rf"E181 .*step_00000000 was made from {what} \(f{{12}}, "):
            train_toy(out, *options, resume="auto")
    manifest.write_text(json.dumps(made))
    file = manifest.parent / min(made["files"])
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"x")
    with pytest.raises(InputError, match=rf"E181 .*{file.name} is damaged"):
        train_toy(out, *options, resume="auto")
    file.write_bytes(content)
    manifest.write_text("{")
    with pytest.raises(InputError, match=r"E181 .* is no manifest"):
        train_toy(out, *options, resume="auto")
    shutil.rmtree(manifest.parent)
    assert train_toy(out, *options, resume="auto").completed
    assert "is made anew from the weights as they are" in capsys.readouterr().err
    assert versions(out) == [3, 4]


def test_training_that_came_to_nothing_is_stopped_with_the_value(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"E702 .*training collapsed at step 0: size is \d"):
        train_toy(tmp_path / "run", *TOY, "objective.limit=1e9")


def test_files_that_could_hardly_be_used_any_more_are_not_made(tmp_path: Path) -> None:
    timed = "objective={name: refreshing, refresh_s: 0.3}"
    train_toy(tmp_path / "run", timed, "schedule={minutes: 0.03}")  # the first takes 1.5 of 1.8 s
    assert Refreshing.calls == 1
    train_toy(tmp_path / "steps", timed, "schedule={steps: 3}")  # no clock: however long it takes
    assert Refreshing.calls == 1 + 2


def test_ranks_share_the_videos() -> None:
    names = list("abcde")
    shares = [RefreshJob(Path(), names, part, 2).share() for part in range(2)]  # type: ignore[arg-type]
    assert shares == [["a", "c", "e"], ["b", "d"]]


def test_an_interval_has_one_clock() -> None:
    assert [RefreshInterval(epochs=2).passed(step, 0, 5) for step in (9, 10, 25)] == [0, 1, 2]
    assert [RefreshInterval(minutes=0.5).passed(9, s, 5) for s in (29, 31)] == [0, 1]
    for wrong in ({}, {"epochs": 1, "steps": 2}, {"minutes": 0}):
        with pytest.raises(
            ValueError, match="exactly one of refresh_epochs, refresh_steps and refresh_minutes"
        ):
            RefreshInterval(**wrong)  # type: ignore[arg-type]
