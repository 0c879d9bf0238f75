"""An objective whose steps can be written down in a few lines of plain torch, and a clock that it moves."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from vosnet.objectives import (
    OBJECTIVES,
    Listed,
    Objective,
    ObjectiveOutput,
    ObjectiveSettings,
    RefreshInterval,
    RefreshJob,
)
from vosnet.progress import Progress
from vosnet.transforms import Clip

PROBE = ["objective={name: probe}", "optimizer={lr: 1e-2}", "schedule={steps: 4}"]


def without_batch_norm(module: nn.Module) -> nn.Module:
    """Batch norm sees a part of the batch: only a network without it is the same however a batch is split."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(1, child.num_features))
        else:
            without_batch_norm(child)
    return module


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(ObjectiveSettings):
    """What recipes may say of the probe."""

    batch_norm: bool = True
    noise: float = 0.0
    every: int | None = None
    every_minutes: float | None = None


class Probe(Objective):
    """The mean square of one number per clip; the class attributes say what happens at which forward pass."""

    calls: ClassVar[int] = 0
    bad: ClassVar[set[int]] = set()  # forward passes, counted from 1, whose loss is NaN
    before: ClassVar[list[Callable[[int], None]]] = []  # told the number of each forward pass
    refreshed_at: ClassVar[list[int]] = []  # forward passes that were done at each refresh

    def __init__(self, encoder: nn.Module, settings: ProbeSettings) -> None:
        super().__init__()
        self.encoder = encoder if settings.batch_norm else without_batch_norm(encoder)
        self.head = nn.Linear(encoder.feature_dim, 1)  # type: ignore[arg-type]
        self.noise, self.weight = settings.noise, 1.0
        if settings.every or settings.every_minutes:
            self.refresh_interval = RefreshInterval(steps=settings.every, minutes=settings.every_minutes)

    def forward(self, clip: Clip) -> ObjectiveOutput:
        Probe.calls += 1
        for told in Probe.before:
            told(Probe.calls)
        numbers = self.head(self.encoder(clip.frames[:, 0]).mean((2, 3)))[:, 0] - 1
        total = self.weight * numbers.square().mean() * (1 + self.noise * torch.rand(()))
        scale = math.nan if Probe.calls in Probe.bad else 1.0
        return ObjectiveOutput(total * scale, {"mean": numbers.detach().mean()})

    def refresh(self, job: RefreshJob) -> Iterator[str]:
        Probe.refreshed_at.append(Probe.calls)
        for video in job.share():
            np.save(job.folder / f"{video.name.replace('/', '_')}.npy", len(Probe.refreshed_at) + job.part)
            yield video.name

    def use_refreshed(self, folder: Path) -> None:
        self.weight = 1 + sum(float(np.load(path)) for path in sorted(folder.glob("*.npy"))) / 10


LISTED = Listed(ProbeSettings, Probe)


class Clock:
    """Stands in for `time.monotonic`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def wait(self, seconds: float) -> Callable[[int], None]:
        """What lets every forward pass take so long."""

        def later(call: int) -> None:
            self.now += seconds

        return later


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> type[Probe]:
    """The objective `probe`, known to recipes, with nothing planned."""
    monkeypatch.setitem(OBJECTIVES, "probe", LISTED)
    for name, fresh in {"calls": 0, "bad": set(), "before": [], "refreshed_at": []}.items():
        monkeypatch.setattr(Probe, name, fresh)
    return Probe


@pytest.fixture
def clock(probe: type[Probe], monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that stands still unless a test moves it."""
    fake = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: fake.now)
    return fake


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send SIGTERM so that a run ends by itself after `step` (> 1) steps: the signal comes a step before."""
    original = Progress.advance

    def advance(progress: Progress, steps: int = 1, **fields: float | int | str) -> None:
        original(progress, steps, **fields)
        if progress.unit == "step" and progress.done == step - 1:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Progress, "advance", advance)
