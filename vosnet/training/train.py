"""A training run, read downwards: from claiming its folder to the last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

from vosnet import files
from vosnet.datasets.prefetch import prefetched
from vosnet.datasets.stream import ClipStream
from vosnet.errors import UsageError
from vosnet.models import Encoder, save_encoder
from vosnet.progress import Progress, ProgressMode
from vosnet.recipe import LoadedRecipe, Recipe, recipe_hash
from vosnet.runtime import Ranks, choose_device, joined_ranks, peak_memory_bytes
from vosnet.training import run_folder
from vosnet.training.checkpoint import Checkpoint, CheckpointFolder, load_checkpoint
from vosnet.training.curves import draw_curves
from vosnet.training.disk_space import warn_when_low
from vosnet.training.guard import collapsed, write_report
from vosnet.training.journal import Journal, forget_rows_after
from vosnet.training.lock import RunLock
from vosnet.training.phase import Phase, PhaseStart, build_step, open_clips
from vosnet.training.refresh import Refresher
from vosnet.training.signals import StopRequest, stop_on_signals
from vosnet.training.validation import Validator, open_validator
from vosnet.transforms import Crops

TIMEOUT_S = 1800.0  # long enough for the main rank to validate while the others wait


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What the command line adds to a recipe.

    Args:
        out: the run folder.
        resume: "never", "auto", or a checkpoint or run folder to start from.
        overwrite: replace an earlier run in `out`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        progress: how progress is shown.
        argv: the command line, for env.json.
    """

    out: Path
    resume: str = "never"
    overwrite: bool = False
    device: str = "auto"
    progress: ProgressMode = "auto"
    argv: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Args:
        out: the run folder.
        step: optimizer steps done.
        completed: whether the schedule was finished; False after a signal.
        exit_code: 0, or 130 / 143 after a signal.
    """

    out: Path
    step: int
    completed: bool
    exit_code: int


def train(loaded: LoadedRecipe, options: RunOptions) -> RunResult:
    """Train as the recipe says.

    Raises:
        VosnetError: every expected failure, with its exit code; see `vosnet.errors`.
    """
    device = choose_device(options.device)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    backend = "nccl" if device.type == "cuda" else "gloo"
    with (
        joined_ranks(backend, TIMEOUT_S) as ranks,
        stop_on_signals() as stop,
        contextlib.ExitStack() as stack,
    ):
        ranks.check_same("the recipe", recipe_hash(loaded.recipe))
        lock, mode = None, "new"
        if ranks.is_main:
            claim = run_folder.claimed_folder(options.out, options.resume, overwrite=options.overwrite)
            lock, mode = stack.enter_context(claim)
        is_resumed = ranks.sum([float(mode == "resume")])[0] > 0
        run = _Run(loaded, options, ranks, device, stop, lock, is_resumed)
        phase = run.start(stack)
        completed = run.run_phase(phase)
        while completed and phase.start.index + 1 < len(run.phases):
            start = PhaseStart(phase.start.index + 1, phase.step, phase.seconds)
            phase = run.open_phase(start, before=phase)
            completed = run.run_phase(phase)
        return run.finish(phase, completed=completed)


@dataclasses.dataclass
class _Run:
    """What stays the same over the phases of a run; its methods stand in the order of their calls."""

    loaded: LoadedRecipe
    options: RunOptions
    ranks: Ranks
    device: torch.device
    stop: StopRequest
    lock: RunLock | None
    is_resumed: bool
    journal: Journal | None = None
    validator: Validator | None = None
    saved_step: int = -1
    best_score: float = -math.inf
    listed_bad: int = 0

    def __post_init__(self) -> None:
        self.out, self.recipe = self.options.out, self.loaded.recipe
        self.phases: tuple[Recipe, ...] = self.loaded.phases or (self.recipe,)
        self.checkpoints = CheckpointFolder(self.out / "checkpoints")

    def start(self, stack: contextlib.ExitStack) -> Phase:
        """Open the first phase, fill the folder, and continue from a checkpoint where there is one."""
        torch.use_deterministic_algorithms(self.recipe.deterministic)
        torch.backends.cudnn.benchmark = not self.recipe.deterministic
        if self.is_resumed:
            run_folder.check_continuation(self.out, self.recipe)
        checkpoint = self._find_checkpoint()
        stored = {} if checkpoint is None else checkpoint.state["loop"].get("phase", {})
        phase = self.open_phase(PhaseStart(**stored))
        if checkpoint is None and not phase.optimizer_step.objective.trains_encoder:
            message = "nothing in objective trains the encoder, which starts from random numbers"
            hint = "Let an earlier phase train it, or give objective a term that does."
            raise UsageError("E106", message, hint)
        if self.ranks.is_main:
            self.validator = open_validator(self.recipe.validation, self.device, self.say)
            self._fill_folder(checkpoint)
            self.journal = stack.enter_context(contextlib.closing(Journal(self.out)))
            present = len(self.checkpoints.versions.complete())
            warn_when_low(self.out, phase.optimizer_step, present, self.say)
        if checkpoint is not None:
            phase.optimizer_step.load(checkpoint.state["trainer"])
            phase.load(checkpoint.state["loop"])
            self.saved_step = phase.step if self.is_resumed else -1
            self.say(f"continuing from {checkpoint.folder} at step {phase.step}")
        return phase

    def _find_checkpoint(self) -> Checkpoint | None:
        if self.is_resumed:
            if self.ranks.is_main:
                self.checkpoints.versions.clean()
            self.ranks.wait()
            return self.checkpoints.load_latest(self.say)
        if self.options.resume in {"auto", "never"}:
            return None
        start = files.expand(self.options.resume)
        if (start / "checkpoints").is_dir():
            run_folder.check_continuation(start, self.recipe)
            found = CheckpointFolder(start / "checkpoints").load_latest(self.say)
            if found is not None:
                return found
        return load_checkpoint(start)

    def _fill_folder(self, checkpoint: Checkpoint | None) -> None:
        argv, device = list(self.options.argv), str(self.device)
        environment = run_folder.describe_environment(argv, device, self.ranks.size)
        run_folder.write_start(self.out, self.loaded, environment)
        files.make_folder(self.checkpoints.folder)
        if self.is_resumed:
            forget_rows_after(self.out, checkpoint.state["loop"]["step"] if checkpoint else 0)
            self.best_score = self.checkpoints.best_score()

    def open_phase(self, start: PhaseStart, before: Phase | None = None) -> Phase:
        """The phase that begins at `start`; its networks go on from those of the phase `before`."""
        recipe = self.phases[start.index]
        stream = open_clips(recipe, before)
        self.ranks.check_same("the list of videos", stream.fingerprint)
        optimizer_step = build_step(recipe, self.ranks, self.device, before)
        if self.recipe.phases:
            section = self.recipe.phases[start.index]
            start = dataclasses.replace(start, name=section.name)
            if before is not None:
                is_kept = section.optimizer_state == "kept"
                optimizer_step.continue_from(before.optimizer_step, keep_optimizer=is_kept)
        refresher = Refresher(
            optimizer_step.objective,
            stream,
            self.out,
            self.ranks,
            bfloat16=self.recipe.training.precision == "bfloat16",
            say=self.say,
            mode=self.options.progress,
            beat=self.beat,
        )
        return Phase(start, recipe, stream, optimizer_step, refresher)

    def run_phase(self, phase: Phase) -> bool:
        """Train until the phase's schedule ends or a stop is asked for; the last state is saved either way.

        Returns:
            Whether the schedule was completed.
        """
        self._announce(phase)
        is_stopped = False
        settings, steps = phase.recipe.training, phase.schedule.total_steps
        batches = prefetched(
            phase.stream,
            start=phase.step - phase.start.step,
            rank=self.ranks.rank,
            world=self.ranks.size,
            workers=settings.workers,
            depth=settings.prefetch,
            warn=self.say,
        )
        label = phase.start.name or "training"
        mode: ProgressMode = self.options.progress if self.ranks.is_main else "quiet"
        total = None if steps is None else phase.start.step + steps
        progress = Progress(total, label, unit="step", mode=mode, start=phase.step)
        with contextlib.closing(batches), progress:  # type: ignore[type-var]
            phase.clock_at_zero = time.monotonic() - phase.seconds
            while not is_stopped and not phase.schedule.done(phase.step, phase.seconds):
                if not self.refresh_if_due(phase):
                    is_stopped = True
                    break
                is_stopped = self.take_step(phase, phase.meter.waited_for(batches))
                self.beat()
                self.list_bad_videos(phase.stream)
                self.log(phase, progress)
                self.save_if_due(phase)
                self.validate_if_due(phase)
            if not is_stopped:
                self.validate(phase)
            self.save(phase)
        return not is_stopped

    def refresh_if_due(self, phase: Phase) -> bool:
        """Let the objective make its files anew if that is due; False when a stop was asked for meanwhile.

        The state before is saved first: a refresh that is interrupted is repeated from the same weights.
        """
        left_s = phase.schedule.limit_s - phase.seconds
        if not phase.refresher.is_due(phase.step, phase.seconds, left_s):
            return True
        if phase.step:
            self.save(phase)
        return phase.refresher.refresh(phase.step, phase.seconds, self.stop)

    def take_step(self, phase: Phase, crops: Crops) -> bool:
        """One step that all ranks take or skip together; whether a stop was asked of any rank."""
        lr = phase.recipe.optimizer.lr * phase.schedule.factor(phase.step, phase.seconds)
        result = phase.optimizer_step.compute(crops, lr)
        own = [float(not result.finite), float(bool(self.stop)), phase.elapsed_s() * self.ranks.is_main]
        sums = self.ranks.sum([*own, result.loss, *result.terms.values()])
        bad, stopped, phase.seconds, loss, *terms = sums
        if bad:
            phase.optimizer_step.discard()
        else:
            phase.optimizer_step.apply(result.grad_norm)
            means = {name: value / self.ranks.size for name, value in zip(result.terms, terms, strict=True)}
            phase.meter.add({"loss": loss / self.ranks.size, **means, "grad_norm": result.grad_norm})
            reason = phase.optimizer_step.objective.collapse_reason(means)
            if reason is not None:
                raise collapsed(phase.step, reason)
        phase.guard.note(bool(bad))
        phase.step += 1
        if phase.guard.diverged:
            name = "report.json" if self.ranks.is_main else f"report.rank{self.ranks.rank}.json"
            write_report(self.out / "diverged" / name, phase.step, crops, result, phase.guard.total)
            raise phase.guard.error(phase.step)
        return bool(stopped)

    def beat(self) -> None:
        """Show that the run is alive."""
        if self.lock is not None:
            self.lock.beat()

    def list_bad_videos(self, stream: ClipStream) -> None:
        """Keep the list of videos that turned out to be unreadable."""
        if len(stream.bad) <= self.listed_bad:
            return
        self.listed_bad = len(stream.bad)
        name = "bad_files.txt" if self.ranks.is_main else f"bad_files.rank{self.ranks.rank}.txt"
        run_folder.list_bad_videos(self.out / name, stream.bad)
        self.say(f"{len(stream.bad)} of {stream.num_videos} videos cannot be read; see {self.out / name}")

    def log(self, phase: Phase, progress: Progress) -> None:
        """Show progress, and write a row of the journal when one is due."""
        if phase.step % phase.recipe.training.log_steps:
            progress.advance(1)
            return
        now = phase.elapsed_s()
        measured = phase.meter.row(phase.step, now)
        values: dict[str, Any] = {
            **phase.of_row(),
            **measured,
            "lr": phase.optimizer_step.optimizer.param_groups[0]["lr"],
            "skipped_steps": phase.guard.total,
            "elapsed_s": now,
            "mem_peak_bytes": peak_memory_bytes(self.device),
        }
        if self.journal is not None:
            self.journal.row("train", phase.step, values)
        left_s = phase.schedule.remaining_s(phase.step, now)
        shown: dict[str, float | str] = {
            "loss": round(measured["loss"], 4),
            "wait": f"{100 * measured['data_wait_share']:.0f}%",
        }
        if phase.schedule.total_steps is None and left_s is not None:
            shown["left"] = f"{left_s / 60:.1f}min"
        progress.advance(1, **shown)

    def save_if_due(self, phase: Phase) -> None:
        """Write a checkpoint when the recipe's minutes have passed since the last one."""
        if phase.seconds - phase.saved_at_s >= 60 * phase.recipe.training.save_minutes:
            self.save(phase)
            phase.saved_at_s = phase.seconds

    def save(self, phase: Phase) -> None:
        """Write a checkpoint, once per step."""
        if not self.ranks.is_main or phase.step == self.saved_step:
            return
        self.saved_step = phase.step
        state = {"trainer": phase.optimizer_step.state(), "loop": phase.state()}
        info = {"epoch": phase.schedule.epoch(phase.step), "elapsed_s": round(phase.elapsed_s(), 1)}
        self.checkpoints.save(phase.step, lambda path: self._write_model(path, phase), state, info)

    def _write_model(self, path: Path, phase: Phase) -> None:
        encoder = phase.optimizer_step.encoder
        assert isinstance(encoder, Encoder)
        meta = {
            "recipe": self.recipe.title,
            "recipe_sha256": recipe_hash(self.recipe),
            "step": phase.step,
            "seconds": round(phase.elapsed_s(), 1),
            "preset": self.recipe.preset,
        }
        if self.recipe.encoder.test_layer is not None:
            meta["layer"] = self.recipe.encoder.test_layer
        segmenter = phase.optimizer_step.objective.kept_segmenter()
        save_encoder(path, encoder, meta, half=False, segmenter=segmenter)

    def validate_if_due(self, phase: Phase) -> None:
        """Measure J&F when the recipe's interval has passed."""
        due = phase.validations_due()
        if due > phase.validations:
            phase.validations = due
            self.validate(phase)

    def validate(self, phase: Phase) -> None:
        """Save, measure J&F on the main rank and mark the best checkpoint, once per step.

        The other ranks wait at the next step's sum.
        """
        if self.validator is None or self.journal is None or phase.step == phase.validated_at:
            return
        phase.validated_at = phase.step
        self.save(phase)
        scores = self.validator.measure(self.checkpoints.last_model)
        self.journal.row("val", phase.step, {**phase.of_row(), **scores})
        score = scores["J&F"]
        is_best = score > self.best_score
        note = ", the best so far" if is_best else ""
        self.say(f"step {phase.step}: J&F {100 * score:.1f}{note}")
        if is_best:
            self.best_score = score
            self.checkpoints.mark_best(phase.step, {"J&F": score})

    def finish(self, phase: Phase, *, completed: bool) -> RunResult:
        """Draw the curves and say how the run ended."""
        if self.ranks.is_main:
            draw_curves(self.out, self.say)
        if not completed:
            self.say(f"stopped at step {phase.step} and saved; --resume auto continues")
            return RunResult(self.out, phase.step, completed=False, exit_code=self.stop.exit_code or 143)
        minutes = phase.elapsed_s() / 60
        self.say(f"done: {phase.step} steps in {minutes:.1f} min; weights in {self.checkpoints.last_model}")
        return RunResult(self.out, phase.step, completed=True, exit_code=0)

    def _announce(self, phase: Phase) -> None:
        steps = phase.schedule.total_steps
        length = f"{steps} steps" if steps else f"{phase.recipe.schedule.minutes} min"
        name = f", phase {phase.start.name!r}" if phase.start.name else ""
        ranks = f" x {self.ranks.size} ranks" if self.ranks.size > 1 else ""
        self.say(
            f"{self.recipe.title or 'training'}{name}: {phase.stream.num_videos} videos, "
            f"{phase.schedule.steps_per_epoch} steps an epoch, {length}, on {self.device}{ranks} "
            f"({torch.get_num_threads()} threads, {self.recipe.training.precision}); run folder {self.out}"
        )

    def say(self, message: str) -> None:
        """Tell the user, once over all ranks, and the log."""
        if self.ranks.is_main:
            print(message, file=sys.stderr, flush=True)
            if self.journal is not None:
                self.journal.note(message)
