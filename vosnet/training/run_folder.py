"""The folder of a run: what lies where, when it may be used, and what is written once at the start."""

from __future__ import annotations

import contextlib
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from vosnet import files
from vosnet.errors import UsageError
from vosnet.recipe import (
    LoadedRecipe,
    Recipe,
    load_recipe,
    recipe_differences,
    resolved_text,
    resolved_values,
)
from vosnet.training.lock import LOCK_NAME, RunLock

RESOLVED_NAME, SOURCE_NAME, ENV_NAME = "recipe.resolved.yaml", "recipe.yaml", "env.json"
_FILES = (RESOLVED_NAME, SOURCE_NAME, ENV_NAME, "log.txt", "metrics.jsonl", "curves.png", "bad_files.txt")
_FOLDERS = ("checkpoints", "tb", "eval", "diverged", "refreshed")

# What may differ between a run and its continuation: nothing here changes what a step computes.
MAY_CHANGE = (
    "title", "preset", "schedule.epochs", "schedule.steps", "schedule.minutes", "training.workers",
    "training.prefetch", "training.save_minutes", "training.log_steps", "validation",
)  # fmt: skip


@contextlib.contextmanager
def claimed_folder(
    folder: Path, resume: str, *, overwrite: bool
) -> Iterator[tuple[RunLock, Literal["new", "resume"]]]:
    """Hold the lock of a run folder, and say whether a run is started or resumed there.

    A run that fails before it has written its recipe, e.g. because data is missing, leaves nothing behind.

    Args:
        folder: the run folder; made when it is not there.
        resume: "auto" resumes a run found there; "never" refuses; a path starts a new run from that
            checkpoint.
        overwrite: remove the files of an earlier run (only files that training writes) and start anew.

    Raises:
        LockedError: another process trains there (E801).
        UsageError: something is there and neither resume nor overwrite says what to do with it (E103).
        StorageError: the folder cannot be made.
    """
    existed = folder.exists()
    files.make_folder(folder)
    lock = RunLock(folder)
    lock.acquire()
    try:
        yield lock, _claim(folder, resume, overwrite=overwrite)
    except BaseException:
        if not (folder / RESOLVED_NAME).exists():
            lock.withdraw(keep_folder=existed)
        raise
    finally:
        lock.release()


def _claim(folder: Path, resume: str, *, overwrite: bool) -> Literal["new", "resume"]:
    files.remove_stale_temporaries(folder)
    left = sorted(path.name for path in folder.iterdir() if not path.name.startswith(LOCK_NAME))
    is_run = (folder / RESOLVED_NAME).is_file()
    if is_run and overwrite:
        remove_run(folder)
        return "new"
    if not left:
        return "new"
    if is_run and resume == "auto":
        return "resume"
    if is_run:
        hint = "Add --resume auto to continue it, --overwrite to start anew, or choose another --out."
        raise UsageError("E103", f"run folder {folder} already holds a run", hint)
    hint = "Choose another --out folder; only files of an earlier run can be overwritten."
    raise UsageError("E103", f"folder {folder} is not empty (it holds {', '.join(left[:3])})", hint)


def remove_run(folder: Path) -> None:
    """Delete what training writes into a run folder, and nothing else."""
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    files.remove_stale_temporaries(folder)
    for name in _FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)


def write_start(folder: Path, loaded: LoadedRecipe, environment: dict[str, Any]) -> None:
    """Write the recipe as given, the resolved one, and what it runs on."""
    # The resolved recipe comes first: it marks the folder as a run, which a killed start may be continued in.
    files.write_bytes(folder / RESOLVED_NAME, resolved_text(loaded.recipe).encode())
    files.write_bytes(folder / SOURCE_NAME, loaded.text.encode())
    files.write_json(folder / ENV_NAME, environment)


def check_continuation(folder: Path, recipe: Recipe) -> None:
    """Refuse to continue the run in `folder` when the recipe says something else now.

    Raises:
        UsageError: with every key that differs and both values.
    """
    before = resolved_values(load_recipe(folder / RESOLVED_NAME).recipe)  # keys added since get defaults
    differing = [
        f"{key}: {old!r} then, {new!r} now"
        for key, old, new in recipe_differences(before, resolved_values(recipe))
        if not _may_change(key)
    ]
    if differing:
        hint = "Use the run's own recipe, or start anew in another --out folder."
        message = f"the recipe is not the one {folder} was started with ({'; '.join(differing)})"
        raise UsageError("E104", message, hint)


def _may_change(key: str) -> bool:
    plain = re.sub(r"^phases\.\d+\.", "", key)
    return any(plain == free or plain.startswith(free + ".") for free in MAY_CHANGE)


def list_bad_videos(path: Path, bad: Mapping[str, str]) -> None:
    """Write the videos that cannot be read, a line each with the reason."""
    lines = [f"{name}\t{' '.join(reason.split())}\n" for name, reason in sorted(bad.items())]
    files.write_bytes(path, "".join(lines).encode())


def describe_environment(argv: list[str], device: str, ranks: int) -> dict[str, Any]:
    """Versions, machine and command line, for env.json."""
    import numpy as np
    import torch

    import vosnet

    return {
        "vosnet": vosnet.__version__,
        "commit": _git_commit(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cuda": torch.version.cuda,
        "device": device,
        "gpu": torch.cuda.get_device_name() if device.startswith("cuda") else None,
        "threads": torch.get_num_threads(),
        "ranks": ranks,
        "platform": platform.platform(),
        "host": platform.node(),
        "command": argv,
    }


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=5,
        )
    except (OSError, subprocess.SubprocessError):  # installed from a wheel, or no git
        return None
    return done.stdout.strip()
