"""One phase of a run: its settings, clips and networks, and how far it is."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch

from vosnet.datasets.stream import ClipStream
from vosnet.errors import InputError, UsageError
from vosnet.models import build_encoder
from vosnet.objectives import build_objective
from vosnet.recipe import Recipe, open_stream
from vosnet.runtime import Ranks
from vosnet.training.guard import DivergenceGuard
from vosnet.training.journal import Meter
from vosnet.training.refresh import Refresher
from vosnet.training.schedule import Schedule
from vosnet.training.step import OptimizerStep

MISSING_DATA = {"E260", "E261", "E262", "E264"}
WITHOUT_DATA = """
  where it is: data.sources.0.root=FOLDER on the command line, or `root` in the recipe
  your own clips instead: python tools/train.py recipes/dul_clips.yaml data.sources.0.root=FOLDER
  no data at all: python tools/train.py recipes/demo.yaml"""


@dataclasses.dataclass(frozen=True)
class PhaseStart:
    """Where in the run a phase begins.

    Args:
        index: of the phase, from 0.
        step: optimizer steps done before.
        seconds: training time spent before.
        name: of the phase; empty for a run without phases.
    """

    index: int = 0
    step: int = 0
    seconds: float = 0.0
    name: str = ""


class Phase:
    """A part of the run with settings of its own, and how far it is. Steps and seconds count over the run.

    Args:
        start: where it begins.
        recipe: its settings.
        stream: its clips.
        optimizer_step: its networks and their optimizer.
        refresher: makes the objective's files at their times.

    Attributes:
        step: optimizer steps of the run done.
        seconds: training time of the run at the last step, the same on all ranks.
    """

    def __init__(
        self,
        start: PhaseStart,
        recipe: Recipe,
        stream: ClipStream,
        optimizer_step: OptimizerStep,
        refresher: Refresher,
    ) -> None:
        self.start, self.recipe, self.stream = start, recipe, stream
        self.optimizer_step, self.refresher = optimizer_step, refresher
        self.step, self.seconds = start.step, start.seconds
        self.schedule = Schedule(recipe.schedule, stream.steps_per_epoch, start.step, start.seconds)
        clips = recipe.training.batch_size
        self.meter = Meter(clips, clips * stream.clip_len, start.step, start.seconds)
        self.guard = DivergenceGuard(recipe.training.bad_steps_in_a_row)
        self.clock_at_zero: float | None = None  # `time.monotonic` when the run would have begun
        self.saved_at_s = start.seconds
        self.validations = self.validations_due()  # how many have come due
        self.validated_at = -1

    def elapsed_s(self) -> float:
        """Training time of the run up to now, over all its sessions."""
        return self.seconds if self.clock_at_zero is None else time.monotonic() - self.clock_at_zero

    def of_row(self) -> dict[str, Any]:
        """What every row of the journal says: the phase, in a run that has phases, and the epoch."""
        name = {"phase": self.start.name} if self.start.name else {}
        return {**name, "epoch": self.schedule.epoch(self.step)}

    def validations_due(self) -> int:
        """How many validations the recipe's interval asks for up to now."""
        section = self.recipe.validation
        if section is None:
            return 0
        if section.every_minutes is not None:
            return int(self.seconds / (60 * section.every_minutes))
        steps = section.every_steps or (section.every_epochs or 1) * self.schedule.steps_per_epoch
        return self.step // steps

    def state(self) -> dict[str, Any]:
        """Plain values from which `load` continues."""
        return {
            "step": self.step,
            "seconds": self.elapsed_s(),
            "guard": self.guard.state(),
            "checked": self.validations,
            "phase": dataclasses.asdict(self.start),
            **self.meter.state(),
            **self.refresher.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.step, self.seconds, self.saved_at_s = state["step"], state["seconds"], state["seconds"]
        self.guard.load(state["guard"])
        self.validations = state["checked"]
        self.meter.load(state)
        self.refresher.load(state)


def open_clips(recipe: Recipe, before: Phase | None) -> ClipStream:
    """The clips of a phase; frames that the phase `before` has decoded are kept.

    Raises:
        InputError: data is missing, with what to run instead, or unreadable.
    """
    try:
        return open_stream(recipe, None if before is None else before.stream)
    except InputError as error:
        if error.code not in MISSING_DATA:
            raise
        raise InputError(error.code, f"{error.message}. {error.hint}", WITHOUT_DATA) from error


def build_step(recipe: Recipe, ranks: Ranks, device: torch.device, before: Phase | None) -> OptimizerStep:
    """The networks of a phase; the encoder is the one of the phase `before`.

    Raises:
        UsageError: the batch does not divide by micro-batches and ranks (E105).
    """
    settings = recipe.training
    if settings.batch_size % (settings.accumulate * ranks.size):
        message = (
            f"training.batch_size ({settings.batch_size}) must be a multiple of "
            f"training.accumulate ({settings.accumulate}) times the ranks ({ranks.size})"
        )
        raise UsageError("E105", message)
    torch.manual_seed(recipe.seed)
    encoder = build_encoder(seed=recipe.seed, **recipe.encoder.model_dump(exclude={"test_layer"}))
    if before is not None:  # first of all: an objective may start from a copy of its encoder
        encoder.load_state_dict(before.optimizer_step.objective.encoder.state_dict())
    arguments = dict(recipe.objective)
    objective = build_objective(arguments.pop("name"), encoder, **arguments)
    return OptimizerStep(objective, recipe, ranks, device)
