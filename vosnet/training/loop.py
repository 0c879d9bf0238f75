"""The training loop: batches in, steps, records, checkpoints and validation at their times."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from vosnet.errors import DivergedError, OutOfMemoryError
from vosnet.progress import Progress
from vosnet.recipe import Recipe
from vosnet.training.distributed import World, lost_rank_is_an_error
from vosnet.training.guard import DivergenceGuard
from vosnet.training.journal import Journal
from vosnet.training.schedule import Schedule
from vosnet.training.signals import StopRequest
from vosnet.training.trainer import StepResult, Trainer
from vosnet.transforms import Clip, Crops, assemble_clip


class Hooks(Protocol):
    """What the loop asks of the run: the files, which only the main rank writes."""

    def save(self, loop: Loop) -> None:
        """Write a checkpoint."""

    def validate(self, loop: Loop) -> None:
        """Measure J&F and mark the best checkpoint."""

    def refresh(self, loop: Loop, interval: int, stop: StopRequest) -> dict[str, Any] | None:
        """Let the objective make its files anew; what made them, or None when stopped before the end."""

    def diverged(self, loop: Loop, crops: Crops, result: StepResult) -> None:
        """Write what is needed to find out why."""

    def after_step(self) -> None:
        """Called after every step."""


@dataclasses.dataclass
class Window:
    """Sums since the last row of the journal."""

    steps: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, values: dict[str, float]) -> None:
        """Add one step's values."""
        self.steps += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Mean per step; starts a new window."""
        means = {name: total / self.steps for name, total in self.sums.items()}
        self.steps, self.sums = 0, {}
        return means


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


class Loop:
    """Runs a trainer through its schedule. Steps and seconds are counted over the whole run.

    Args:
        trainer: computes steps.
        recipe: the settings.
        schedule: length and learning rate.
        world: this rank.
        journal: where rows go; None on ranks that write nothing.
        hooks: saving and validation.
        images_per_step: frames of one optimizer step over all ranks, for the speed in the journal.
        phase: which part of the run this is.
    """

    def __init__(
        self,
        trainer: Trainer,
        recipe: Recipe,
        schedule: Schedule,
        world: World,
        journal: Journal | None,
        hooks: Hooks,
        images_per_step: int,
        phase: PhaseStart | None = None,
    ) -> None:
        self.trainer, self.recipe, self.schedule, self.world = trainer, recipe, schedule, world
        self.journal, self.hooks, self.images_per_step = journal, hooks, images_per_step
        self.guard = DivergenceGuard(recipe.training.bad_steps_in_a_row)
        self.window = Window()
        self.phase = phase or PhaseStart()
        self.step, self.seconds = self.phase.step, self.phase.seconds
        self.waited_s = 0.0
        self._began = 0.0
        self._row_at = (self.step, self.seconds, 0.0)  # step, seconds and waiting time at the last row
        self._saved_at_s = self.seconds
        self._checked = self._validations_due()
        self._validated_at = -1
        self.refreshed: dict[str, Any] | None = None  # what made the files that the objective uses
        self._refresh_s = 0.0  # what the last refresh took

    def state(self) -> dict[str, Any]:
        """Plain values from which `load` continues; `seconds` is the time the schedule has used up."""
        return {
            "step": self.step,
            "seconds": self.elapsed_s(),
            "waited_s": self.waited_s,
            "guard": self.guard.state(),
            "window": dataclasses.asdict(self.window),
            "checked": self._checked,
            "refreshed": self.refreshed,
            "refresh_s": self._refresh_s,
            "phase": dataclasses.asdict(self.phase),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.step, self.seconds, self.waited_s = state["step"], state["seconds"], state["waited_s"]
        self.guard.load(state["guard"])
        self.window = Window(**state["window"])
        self._checked = state["checked"]
        self.refreshed = state.get("refreshed")
        self._refresh_s = state.get("refresh_s", 0.0)
        self._row_at = (self.step, self.seconds, self.waited_s)
        self._saved_at_s = self.seconds

    def elapsed_s(self) -> float:
        """Seconds of this run up to now, over all its sessions."""
        return self.seconds if self._began == 0.0 else time.monotonic() - self._began

    def run(self, batches: Iterator[Crops], stop: StopRequest, progress: Progress) -> bool:
        """Train until the schedule ends or a stop is asked for; the last state is saved either way.

        Returns:
            Whether the schedule was completed.
        """
        self._began = time.monotonic() - self.seconds
        stopped = False
        while not stopped and not self.schedule.done(self.step, self.seconds):
            if not self._refreshed_in_time(stop):
                stopped = True
                break
            stopped = self._one_step(self._next(batches), stop)
            self._after_step(progress)
        if not stopped:
            self._validate()
        self.hooks.save(self)
        return not stopped

    def _refreshed_in_time(self, stop: StopRequest) -> bool:
        """Refresh the objective's files if that is due; False when a stop was asked for meanwhile.

        The state before is saved first: a refresh that is interrupted is repeated from the same weights.
        Files that would be done when little or no time is left to use them are not made.
        """
        every = self.trainer.objective.refresh_interval
        if every is None:
            return True
        interval = every.passed(self.step, self.seconds, self.schedule.steps_per_epoch)
        if self.refreshed is not None and (self.refreshed["interval"] >= interval or self._is_too_late()):
            return True
        if self.step:
            self.hooks.save(self)
        began = time.monotonic()
        made = self.hooks.refresh(self, interval, stop)
        self._refresh_s = self.world.sum([(time.monotonic() - began) * self.world.is_main])[0]
        self.refreshed = made or self.refreshed
        return made is not None

    def _is_too_late(self) -> bool:
        """Whether a refresh would take more of the run's time than it leaves for training."""
        left = self.schedule.limit_s - self.seconds
        return left < 2 * self._refresh_s

    def _next(self, batches: Iterator[Crops]) -> Crops:
        began = time.monotonic()
        crops = next(batches)
        self.waited_s += time.monotonic() - began
        return crops

    def _one_step(self, crops: Crops, stop: StopRequest) -> bool:
        """One step that all ranks take or skip together; whether a stop was asked of any rank."""
        lr = self.recipe.optimizer.lr * self.schedule.factor(self.step, self.seconds)
        with _memory_errors_explained(self.trainer), lost_rank_is_an_error():
            result = self.trainer.compute(self._clip(crops), lr)
        own = [float(not result.finite), float(bool(stop)), self.elapsed_s() * self.world.is_main]
        bad, stopped, self.seconds, loss, *terms = self.world.sum([*own, result.loss, *result.terms.values()])
        if bad:
            self.trainer.discard()
        else:
            self.trainer.apply(result.grad_norm)
            means = [value / self.world.size for value in (loss, *terms)]
            names = ["loss", *result.terms]
            self.window.add({**dict(zip(names, means, strict=True)), "grad_norm": result.grad_norm})
            self._check_terms(dict(zip(result.terms, means[1:], strict=True)))
        self.guard.note(bool(bad))
        self.step += 1
        if self.guard.diverged:
            self.hooks.diverged(self, crops, result)
            raise _diverged(self)
        return bool(stopped)

    def _check_terms(self, terms: dict[str, float]) -> None:
        problem = self.trainer.objective.collapse_reason(terms)
        if problem is not None:
            hint = "The last checkpoint is from before; lower optimizer.lr or change the objective's section."
            raise DivergedError("E702", f"training came to nothing at step {self.step}: {problem}", hint)

    def _clip(self, crops: Crops) -> Clip:
        return assemble_clip(crops, self.world.device, self.recipe.encoder.color_space)

    def _after_step(self, progress: Progress) -> None:
        self.hooks.after_step()
        settings = self.recipe.training
        if self.step % settings.log_steps == 0:
            self._row(progress)
        else:
            progress.advance(1)
        if self.seconds - self._saved_at_s >= 60 * settings.save_minutes:
            self.hooks.save(self)
            self._saved_at_s = self.seconds
        if self._is_validation_time():
            self._validate()

    def _row(self, progress: Progress) -> None:
        step, seconds, waited = self._row_at
        now = self.elapsed_s()
        steps, passed, wait = self.step - step, max(now - seconds, 1e-9), self.waited_s - waited
        self._row_at = (self.step, now, self.waited_s)
        means = self.window.means()
        values: dict[str, Any] = {
            **self.phase_of_row(),
            "epoch": self.schedule.epoch(self.step),
            "loss": means.pop("loss", float("nan")),
            **means,
            "lr": self.trainer.optimizer.param_groups[0]["lr"],
            "samples_per_s": steps * self.recipe.training.batch_size / passed,
            "images_per_s": steps * self.images_per_step / passed,
            "data_wait_s": wait,
            "data_wait_share": wait / passed,
            "skipped_steps": self.guard.total,
            "elapsed_s": now,
            "mem_peak_bytes": peak_memory_bytes(self.world.device),
        }
        if self.journal is not None:
            self.journal.row("train", self.step, values)
        left = self.schedule.remaining_s(self.step, now)
        shown = {"loss": round(values["loss"], 4), "wait": f"{100 * wait / passed:.0f}%"}
        if self.schedule.total_steps is None and left is not None:
            shown["left"] = f"{left / 60:.1f}min"
        progress.advance(1, **shown)

    def phase_of_row(self) -> dict[str, str]:
        """What a row of the journal says of the phase: its name, in a run that has phases."""
        return {"phase": self.phase.name} if self.phase.name else {}

    def _is_validation_time(self) -> bool:
        due = self._validations_due()
        is_time, self._checked = due > self._checked, max(due, self._checked)
        return is_time

    def _validations_due(self) -> int:
        """How many validations the interval asks for up to now."""
        section = self.recipe.validation
        if section is None:
            return 0
        if section.every_minutes is not None:
            return int(self.seconds / (60 * section.every_minutes))
        steps = section.every_steps or (section.every_epochs or 1) * self.schedule.steps_per_epoch
        return self.step // steps

    def _validate(self) -> None:
        """Validate once per step, however many reasons there are: the interval, and the end of the run."""
        if self.recipe.validation is not None and self.step != self._validated_at:
            self._validated_at = self.step
            self.hooks.validate(self)


def peak_memory_bytes(device: torch.device) -> int | None:
    """Most memory in use so far: of the GPU, or of this process; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _diverged(loop: Loop) -> DivergedError:
    guard = loop.guard
    if guard.in_a_row >= guard.max_in_a_row:
        what = f"{guard.in_a_row} steps in a row had a loss or gradient that is not finite"
    else:
        what = "more than 5 % of the last 200 steps had a loss or gradient that is not finite"
    hint = "Look at diverged/report.json; lower optimizer.lr, or set training.precision=float32."
    return DivergedError("E701", f"training diverged at step {loop.step}: {what}", hint)


class _memory_errors_explained:  # noqa: N801 - reads as the statement it is
    """Adds the measured peak and the ways out, in order of effect, to an out-of-memory error."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        is_cpu_error = isinstance(error, RuntimeError) and "allocate memory" in str(error)
        if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or is_cpu_error):
            return
        settings, device = self._trainer.settings, self._trainer.world.device
        peak = peak_memory_bytes(device)
        used = "" if peak is None else f"; the peak was {peak / 1e9:.1f} GB"
        ways = [f"training.accumulate={2 * settings.accumulate} (halves it; half the anchors per loss)"]
        if settings.precision == "float32":
            ways.append("training.precision=bfloat16 (about 0.6 of it)")
        ways += ["a smaller data.crop_size (by its square)", "encoder.layer=layer3 (a smaller network)"]
        hint = f"In order of effect: {'; '.join(ways[:3])}."
        message = f"out of memory on {device} in a training step{used}"
        raise OutOfMemoryError("E502", message, hint) from error
