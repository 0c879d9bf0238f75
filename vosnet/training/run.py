"""A training run from a recipe: folder, lock, data, networks, resume, loop, and what is left at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import sys
import time
from pathlib import Path
from typing import Any

import torch

from vosnet import files
from vosnet.datasets.prefetch import prefetched
from vosnet.datasets.stream import ClipStream
from vosnet.errors import InputError, UsageError
from vosnet.models import Encoder, build_encoder, save_encoder
from vosnet.objectives import build_objective
from vosnet.progress import Progress, ProgressMode
from vosnet.recipe import LoadedRecipe, Recipe, open_stream, recipe_hash
from vosnet.training import journal as journals
from vosnet.training import run_folder
from vosnet.training.checkpoint import Checkpoint, CheckpointFolder, load_checkpoint
from vosnet.training.curves import draw_curves
from vosnet.training.disk_space import warn_when_low
from vosnet.training.distributed import World, joined_world
from vosnet.training.lock import RunLock, locked_folder
from vosnet.training.loop import Loop, PhaseStart
from vosnet.training.refresh import Refresher
from vosnet.training.schedule import Schedule
from vosnet.training.signals import StopRequest, stop_on_signals
from vosnet.training.trainer import StepResult, Trainer
from vosnet.training.validation import Validator, open_validator
from vosnet.transforms import Crops

MISSING_DATA = {"E260", "E261", "E262", "E264"}
WITHOUT_DATA = """
  where it is: data.sources.0.root=FOLDER on the command line, or `root` in the recipe
  your own clips instead: python tools/train.py recipes/dul_clips.yaml data.sources.0.root=FOLDER
  no data at all: python tools/train.py recipes/demo.yaml"""


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
    with joined_world(options.device) as world, stop_on_signals() as stop, contextlib.ExitStack() as stack:
        world.check_same("the recipe", recipe_hash(loaded.recipe))
        lock = None
        mode = "new"
        if world.is_main:
            is_ours = not options.out.exists()
            files.make_folder(options.out)
            lock = stack.enter_context(locked_folder(options.out))
            stack.push(functools.partial(_leave_no_trace, lock, options.out, is_ours))
            mode = run_folder.claim_folder(options.out, options.resume, overwrite=options.overwrite)
        is_resumed = world.sum([float(mode == "resume")])[0] > 0
        return _Run(loaded, options, world, lock, resumed=is_resumed).execute(stop, stack)


class _Run:
    """The run while it lasts; implements the loop's hooks."""

    def __init__(
        self, loaded: LoadedRecipe, options: RunOptions, world: World, lock: RunLock | None, *, resumed: bool
    ) -> None:
        self.loaded, self.options, self.world, self.lock = loaded, options, world, lock
        self.recipe: Recipe = loaded.recipe
        self.phases: tuple[Recipe, ...] = loaded.phases or (loaded.recipe,)
        self.stream: ClipStream | None = None
        self.out = options.out
        self.resumed = resumed
        self.checkpoints = CheckpointFolder(self.out / "checkpoints")
        self.journal: journals.Journal | None = None
        self.listed_bad = 0
        self.saved_step = -1
        self.best = float("-inf")
        if resumed:
            run_folder.check_continuation(self.out, self.recipe)

    def execute(self, stop: StopRequest, stack: contextlib.ExitStack) -> RunResult:
        _set_determinism(self.recipe)
        checkpoint = self._find_checkpoint()
        loop = self._open_phase(_phase_start(checkpoint))
        if checkpoint is None and not loop.trainer.objective.trains_encoder:
            message = "nothing in objective trains the encoder, which starts from random numbers"
            hint = "Let an earlier phase train it, or give objective a term that does."
            raise UsageError("E106", message, hint)
        self.validator = self._open_validator()
        if self.world.is_main:
            self._prepare_folder(checkpoint)
            self.journal = stack.enter_context(contextlib.closing(journals.Journal(self.out)))
            loop.journal = self.journal
        if self.world.is_main:
            warn_when_low(self.out, loop.trainer, len(self.checkpoints.steps()), self._say)
        if checkpoint is not None:
            loop.trainer.load(checkpoint.state["trainer"])
            loop.load(checkpoint.state["loop"])
            self._resume_refreshed(loop)
            self.saved_step = loop.step if self.resumed else -1
            self._say(f"continuing from {checkpoint.folder} at step {loop.step}")
        completed = self._loop(loop, stop)
        while completed and loop.phase.index + 1 < len(self.phases):
            loop = self._open_phase(PhaseStart(loop.phase.index + 1, loop.step, loop.seconds), loop.trainer)
            completed = self._loop(loop, stop)
        return self._finish(loop, stop, completed=completed)

    def _open_phase(self, start: PhaseStart, before: Trainer | None = None) -> Loop:
        """What runs one phase; its networks are those of `before`, the phase that has just ended."""
        recipe = self.phases[start.index]
        self._check_batch(recipe)
        self.stream = stream = _open_stream(recipe, self.stream)
        self.world.check_same("the list of videos", stream.fingerprint)
        phase, name = None, ""
        if self.recipe.phases:
            phase = self.recipe.phases[start.index]
            name = phase.name
        trainer = self._build_trainer(recipe, before)
        if before is not None and phase is not None:
            trainer.continue_from(before, keep_optimizer=phase.optimizer_state == "kept")
        schedule = Schedule(recipe.schedule, stream.steps_per_epoch, start.step, start.seconds)
        images = recipe.training.batch_size * stream.clip_len
        self.refresher = self._open_refresher(trainer, stream)
        start = dataclasses.replace(start, name=name)
        return Loop(trainer, recipe, schedule, self.world, self.journal, self, images, start)

    def _loop(self, loop: Loop, stop: StopRequest) -> bool:
        self._announce(loop)
        settings, schedule = loop.recipe.training, loop.schedule
        assert self.stream is not None
        batches = prefetched(
            self.stream,
            start=loop.step - schedule.start_step,
            rank=self.world.rank,
            world=self.world.size,
            workers=settings.workers,
            depth=settings.prefetch,
            warn=self._say,
        )
        mode: ProgressMode = self.options.progress if self.world.is_main else "quiet"
        total = None if schedule.total_steps is None else schedule.start_step + schedule.total_steps
        progress = Progress(total, loop.phase.name or "training", unit="step", mode=mode, start=loop.step)
        with contextlib.closing(batches), progress:  # type: ignore[type-var]
            return loop.run(batches, stop, progress)

    def _finish(self, loop: Loop, stop: StopRequest, *, completed: bool) -> RunResult:
        if self.world.is_main:
            draw_curves(self.out, self._say)
        if completed:
            self._say(
                f"done: {loop.step} steps in {loop.elapsed_s() / 60:.1f} min; weights in {self._last()}"
            )
            return RunResult(self.out, loop.step, completed=True, exit_code=0)
        self._say(f"stopped at step {loop.step} and saved; --resume auto continues")
        return RunResult(self.out, loop.step, completed=False, exit_code=stop.exit_code or 143)

    def save(self, loop: Loop) -> None:
        """Hook: write a checkpoint."""
        if not self.world.is_main or loop.step == self.saved_step:
            return
        self.saved_step = loop.step
        state = {"trainer": loop.trainer.state(), "loop": loop.state()}
        info = {"epoch": loop.schedule.epoch(loop.step), "elapsed_s": round(loop.elapsed_s(), 1)}
        self.checkpoints.save(loop.step, lambda path: self._write_model(path, loop), state, info)

    def validate(self, loop: Loop) -> None:
        """Hook: measure J&F on the main rank; the other ranks wait at the next step's reduction."""
        if self.validator is None or self.journal is None:
            return
        self.save(loop)
        scores = self.validator.measure(self._last())
        self.journal.row(
            "val", loop.step, {**loop.phase_of_row(), "epoch": loop.schedule.epoch(loop.step), **scores}
        )
        score = scores["J&F"]
        is_best = score > self.best
        self._say(f"step {loop.step}: J&F {100 * score:.1f}" + (", the best so far" if is_best else ""))
        if is_best:
            self.best = score
            self.checkpoints.mark_best(loop.step, {"J&F": score})

    def refresh(self, loop: Loop, interval: int, stop: StopRequest) -> dict[str, Any] | None:
        """Hook: every rank makes its share of the objective's files."""
        began = time.monotonic()
        version = self.refresher.refresh(interval, loop.step, stop)
        if version is None:
            return None
        self._say(f"step {loop.step}: refreshed the objective's files in {time.monotonic() - began:.0f} s")
        return dataclasses.asdict(version)

    def diverged(self, loop: Loop, crops: Crops, result: StepResult) -> None:
        """Hook: write what is needed to find out why."""
        folder = self.out / "diverged"
        name = "report.json" if self.world.is_main else f"report.rank{self.world.rank}.json"
        finite = {k: v if torch.isfinite(torch.tensor(v)) else str(v) for k, v in result.terms.items()}
        report = {
            "step": loop.step,
            "loss": str(result.loss),
            "grad_norm": str(result.grad_norm),
            "terms": finite,
            "videos": list(crops.names),
            "sample_ids": crops.ids.tolist(),
            "skipped_steps": loop.guard.total,
            "random_state_sha256": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
        }
        files.write_json(folder / name, report)

    def after_step(self) -> None:
        """Hook: keep the lock's heartbeat going, and list videos that turned out to be unreadable."""
        if self.lock is not None:
            self.lock.beat()
        assert self.stream is not None
        if len(self.stream.bad) > self.listed_bad:
            self._list_bad_videos()

    def _build_trainer(self, recipe: Recipe, before: Trainer | None) -> Trainer:
        torch.manual_seed(recipe.seed)
        encoder = build_encoder(seed=recipe.seed, **recipe.encoder.model_dump(exclude={"test_layer"}))
        if before is not None:  # first of all: an objective may start from a copy of its encoder
            encoder.load_state_dict(before.objective.encoder.state_dict())
        arguments = dict(recipe.objective)
        objective = build_objective(arguments.pop("name"), encoder, **arguments)
        return Trainer(objective, recipe, self.world)

    def _open_refresher(self, trainer: Trainer, stream: ClipStream) -> Refresher:
        return Refresher(
            trainer.objective,
            stream,
            self.out,
            self.world,
            bfloat16=self.recipe.training.precision == "bfloat16",
            say=self._say,
            mode=self.options.progress,
            beat=self.after_step,
        )

    def _resume_refreshed(self, loop: Loop) -> None:
        if loop.trainer.objective.refresh_interval is not None:
            version = self.refresher.resume(loop.refreshed)
            loop.refreshed = None if version is None else dataclasses.asdict(version)

    def _open_validator(self) -> Validator | None:
        if not self.world.is_main:
            return None
        return open_validator(self.recipe.validation, self.world.device, self._say)

    def _check_batch(self, recipe: Recipe) -> None:
        settings, ranks = recipe.training, self.world.size
        if settings.batch_size % (settings.accumulate * ranks):
            message = (
                f"training.batch_size ({settings.batch_size}) must be a multiple of "
                f"training.accumulate ({settings.accumulate}) times the ranks ({ranks})"
            )
            raise UsageError("E105", message)

    def _find_checkpoint(self) -> Checkpoint | None:
        if self.resumed:
            if self.world.is_main:
                self.checkpoints.clean()
            self.world.barrier()
            return self.checkpoints.load_latest(self._say)
        if self.options.resume in {"auto", "never"}:
            return None
        start = files.expand(self.options.resume)
        if (start / "checkpoints").is_dir():
            run_folder.check_continuation(start, self.recipe)
            found = CheckpointFolder(start / "checkpoints").load_latest(self._say)
            if found is not None:
                return found
        return load_checkpoint(start)

    def _prepare_folder(self, checkpoint: Checkpoint | None) -> None:
        device, ranks = str(self.world.device), self.world.size
        environment = run_folder.describe_environment(list(self.options.argv), device, ranks)
        run_folder.write_start(self.out, self.loaded, environment)
        files.make_folder(self.checkpoints.folder)
        if self.resumed:
            journals.forget_rows_after(self.out, checkpoint.state["loop"]["step"] if checkpoint else 0)
            self.best = self.checkpoints.best_score()

    def _write_model(self, path: Path, loop: Loop) -> None:
        encoder = loop.trainer.encoder
        assert isinstance(encoder, Encoder)
        meta = {
            "recipe": self.recipe.title,
            "recipe_sha256": recipe_hash(self.recipe),
            "step": loop.step,
            "seconds": round(loop.elapsed_s(), 1),
            "preset": self.recipe.preset,
        }
        if self.recipe.encoder.test_layer is not None:
            meta["layer"] = self.recipe.encoder.test_layer
        save_encoder(path, encoder, meta, half=False, segmenter=loop.trainer.objective.kept_segmenter())

    def _announce(self, loop: Loop) -> None:
        schedule, device = loop.schedule, self.world.device
        assert self.stream is not None
        length = (
            f"{schedule.total_steps} steps" if schedule.total_steps else f"{loop.recipe.schedule.minutes} min"
        )
        phase = f", phase {loop.phase.name!r}" if loop.phase.name else ""
        ranks = f" x {self.world.size} ranks" if self.world.size > 1 else ""
        self._say(
            f"{self.recipe.title or 'training'}{phase}: {self.stream.num_videos} videos, "
            f"{schedule.steps_per_epoch} steps an epoch, {length}, on {device}{ranks} "
            f"({torch.get_num_threads()} threads, {self.recipe.training.precision}); run folder {self.out}"
        )

    def _list_bad_videos(self) -> None:
        assert self.stream is not None
        listing = "bad_files.txt" if self.world.is_main else f"bad_files.rank{self.world.rank}.txt"
        bad = {name: " ".join(reason.split()) for name, reason in sorted(self.stream.bad.items())}
        files.write_bytes(self.out / listing, "".join(f"{k}\t{v}\n" for k, v in bad.items()).encode())
        self.listed_bad = len(bad)
        self._say(f"{len(bad)} of {self.stream.num_videos} videos cannot be read; see {self.out / listing}")

    def _last(self) -> Path:
        return self.checkpoints.folder / "last" / "model.safetensors"

    def _say(self, message: str) -> None:
        if self.world.is_main:
            print(message, file=sys.stderr, flush=True)
            if self.journal is not None:
                self.journal.note(message)


def _leave_no_trace(lock: RunLock, out: Path, is_ours: bool, kind: object, *_: object) -> None:  # noqa: FBT001
    """Withdraw from a folder in which a run failed before it began, such as for want of its data."""
    if kind is not None and not (out / run_folder.RESOLVED_NAME).exists():
        lock.withdraw(keep_folder=not is_ours)


def _phase_start(checkpoint: Checkpoint | None) -> PhaseStart:
    """Where the phase of a checkpoint began; the run's beginning without one."""
    stored = {} if checkpoint is None else checkpoint.state["loop"].get("phase", {})
    return PhaseStart(**stored)


def _open_stream(recipe: Recipe, before: ClipStream | None) -> ClipStream:
    """The recipe's clips; when the data is not there, the error also says what to run instead."""
    try:
        return open_stream(recipe, before)
    except InputError as error:
        if error.code not in MISSING_DATA:
            raise
        raise InputError(error.code, f"{error.message}. {error.hint}", WITHOUT_DATA) from error


def _set_determinism(recipe: Recipe) -> None:
    torch.use_deterministic_algorithms(recipe.deterministic)
    torch.backends.cudnn.benchmark = not recipe.deterministic
