"""Length of a run or phase, and the learning rate at each step."""

from __future__ import annotations

import dataclasses
import math

from vosnet.recipe.schema import ScheduleSection


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a run or one of its phases, as pure functions of steps and seconds.

    Args:
        settings: the recipe's section.
        steps_per_epoch: optimizer steps in one pass over the videos.
        start_step: step of the run at which this schedule begins; not 0 after an earlier phase.
        start_s: training time of the run at which it begins.
    """

    settings: ScheduleSection
    steps_per_epoch: int
    start_step: int = 0
    start_s: float = 0.0

    @property
    def total_steps(self) -> int | None:
        """Steps of the schedule; None if time limits it."""
        if self.settings.steps is not None:
            return self.settings.steps
        if self.settings.epochs is not None:
            return self.settings.epochs * self.steps_per_epoch
        return None

    @property
    def limit_s(self) -> float:
        """Training time of the run at which the schedule ends; infinite if steps limit it."""
        if self.total_steps is not None:
            return math.inf
        assert self.settings.minutes is not None
        return self.start_s + 60 * self.settings.minutes

    def epoch(self, step: int) -> int:
        """Epochs completed before `step`."""
        return (step - self.start_step) // self.steps_per_epoch

    def fraction(self, step: int, seconds: float) -> float:
        """Completed share of the schedule, in [0, 1].

        Args:
            step: optimizer steps of the run done.
            seconds: training time of the run spent, over all sessions of a resumed run.
        """
        if self.total_steps is not None:
            return min(1.0, (step - self.start_step) / self.total_steps)
        assert self.settings.minutes is not None
        return min(1.0, (seconds - self.start_s) / (60 * self.settings.minutes))

    def done(self, step: int, seconds: float) -> bool:
        """Whether the run is over after `step` steps and `seconds` seconds."""
        return self.fraction(step, seconds) >= 1.0

    def factor(self, step: int, seconds: float) -> float:
        """What the base learning rate is multiplied by for the step after `step` steps."""
        s = self.settings
        warm = min(1.0, (step - self.start_step + 1) / s.warmup_steps) if s.warmup_steps else 1.0
        if s.decay == "cosine":
            cosine = 0.5 * (1 + math.cos(math.pi * self.fraction(step, seconds)))
            return warm * (s.final_factor + (1 - s.final_factor) * cosine)
        if s.decay == "step":
            assert s.step_epochs is not None
            return warm * s.gamma ** (self.epoch(step) // s.step_epochs)
        if s.decay == "milestones":
            return warm * s.gamma ** sum(self.epoch(step) >= epoch for epoch in s.milestones)
        return warm

    def remaining_s(self, step: int, seconds: float) -> float | None:
        """Estimated seconds left, from the pace so far; None before the first step."""
        fraction = self.fraction(step, seconds)
        return (seconds - self.start_s) * (1 - fraction) / fraction if fraction > 0 else None
