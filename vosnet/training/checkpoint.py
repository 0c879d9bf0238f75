"""Checkpoints that are whole or absent: weights to use, state to resume from, and a manifest written last."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from vosnet import files
from vosnet.errors import InputError
from vosnet.models.untrusted import load_pickled_tensors

MODEL_NAME, STATE_NAME, MANIFEST_NAME = "model.safetensors", "state.pt", "manifest.json"
KEPT = 2


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and whose bytes match its manifest.

    Args:
        folder: where it lies.
        state: what the trainer needs to continue: tensors and plain values.
        info: the manifest's description, such as step and score.
    """

    folder: Path
    state: dict[str, Any]
    info: dict[str, Any]


class CheckpointFolder:
    """The `checkpoints` folder of a run: `step_N` folders, and the links `last` and `best`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(
        self,
        step: int,
        write_model: Callable[[Path], None],
        state: Mapping[str, Any],
        info: Mapping[str, Any],
        *,
        best: bool = False,
    ) -> Path:
        """Write a checkpoint, point `last` (and `best`) to it, and drop the ones before the last two.

        Files are synced one after the other and the manifest last, so a folder with a manifest is complete
        whatever moment the machine stops at.

        Args:
            step: optimizer steps done.
            write_model: writes the weights to the path it gets.
            state: for `load`; tensors and plain values only.
            info: JSON values for the manifest.
            best: whether `best` should point here too.

        Raises:
            StorageError: disk full or not writable; earlier checkpoints are untouched.
        """
        folder = self.folder / f"step_{step:08d}"
        if (folder / MANIFEST_NAME).exists():  # the same step again: a run that was resumed and ended at once
            (folder / MANIFEST_NAME).unlink()
        files.make_folder(folder)
        try:
            write_model(folder / MODEL_NAME)
            buffer = (
                io.BytesIO()
            )  # torch.save reports a full disk without an error number; Path.write_bytes does
            torch.save(dict(state), buffer)
            files.write_bytes(folder / STATE_NAME, buffer.getvalue())
            digests = {name: files.sha256(folder / name) for name in (MODEL_NAME, STATE_NAME)}
            files.write_json(folder / MANIFEST_NAME, {**info, "step": step, "files": digests})
        except BaseException:
            if not (folder / MANIFEST_NAME).exists():
                shutil.rmtree(folder, ignore_errors=True)  # give the space back; the last good one stays
            raise
        self._point("last", folder)
        if best:
            self._point("best", folder)
        self._prune()
        return folder

    def mark_best(self, step: int, info: Mapping[str, Any]) -> None:
        """Point `best` to the checkpoint of `step` and add `info` to its manifest."""
        folder = self.folder / f"step_{step:08d}"
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        files.write_json(folder / MANIFEST_NAME, {**manifest, **info})
        self._point("best", folder)
        self._prune()

    def best_score(self) -> float:
        """The J&F of the checkpoint that `best` points to; minus infinity without one."""
        try:
            manifest = json.loads((self.folder / "best" / MANIFEST_NAME).read_text(encoding="utf-8"))
            return float(manifest["J&F"])
        except (OSError, ValueError, KeyError):
            return float("-inf")

    def steps(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        found = sorted(self.folder.glob("step_*"))
        return [folder for folder in found if (folder / MANIFEST_NAME).is_file()]

    def load_latest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest undamaged checkpoint; damaged ones are reported and passed over. None without any.

        Raises:
            InputError: there are checkpoints but all are damaged.
        """
        steps = self.steps()
        for folder in reversed(steps):
            try:
                return load_checkpoint(folder)
            except InputError as error:
                warn(f"{error.message}; using the checkpoint before it")
        if steps:
            hint = "Start again with --overwrite."
            raise InputError("E273", f"every checkpoint in {self.folder} is damaged", hint)
        return None

    def clean(self) -> None:
        """Remove what a killed process left: temporary files and checkpoints without a manifest."""
        files.remove_stale_temporaries(self.folder)
        for folder in self.folder.glob("step_*"):
            files.remove_stale_temporaries(folder)
            if not (folder / MANIFEST_NAME).is_file():
                shutil.rmtree(folder)

    def _point(self, name: str, folder: Path) -> None:
        """Let `name` mean `folder`: a relative link, replaced in one step; a copy where links fail."""
        link, temporary = self.folder / name, self.folder / f".{name}{files.TEMPORARY_SUFFIX}"
        temporary.unlink(missing_ok=True)
        try:
            temporary.symlink_to(folder.name)
        except OSError:  # Windows without the privilege, or a file system without links
            if link.is_dir() and not link.is_symlink():
                shutil.rmtree(link)
            shutil.copytree(folder, link)
            return
        if link.is_dir() and not link.is_symlink():  # a copy made where links were forbidden
            shutil.rmtree(link)
        os.replace(temporary, link)  # noqa: PTH105 - Path.replace follows nothing either, but says so less

    def _prune(self) -> None:
        best = (self.folder / "best").resolve().name
        for folder in self.steps()[:-KEPT]:
            if folder.name != best:
                with contextlib.suppress(FileNotFoundError):
                    (
                        folder / MANIFEST_NAME
                    ).unlink()  # first, so that a half-removed folder is not a checkpoint
                shutil.rmtree(folder, ignore_errors=True)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify one checkpoint folder.

    Raises:
        InputError: a file is missing or its SHA-256 is not the manifest's, or it holds more than plain data.
    """
    try:
        info = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        digests = dict(info.pop("files"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("E273", f"checkpoint {folder} has no readable manifest ({error})") from error
    for name in (MODEL_NAME, STATE_NAME):
        path = folder / name
        if not path.is_file():
            raise InputError("E273", f"checkpoint file {path} is missing")
        if files.sha256(path) != digests.get(name):
            raise InputError("E273", f"checkpoint file {path} is damaged: its SHA-256 is not the manifest's")
    state = load_pickled_tensors(folder / STATE_NAME)
    if not isinstance(state, dict):
        raise InputError("E273", f"checkpoint file {folder / STATE_NAME} holds no training state")
    return Checkpoint(folder, state, info)
