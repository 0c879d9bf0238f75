"""Checkpoints: weights to use, and the state that training continues from."""

from __future__ import annotations

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
from vosnet.training.versions import MANIFEST_NAME, Versions, read_manifest

MODEL_NAME, STATE_NAME = "model.safetensors", "state.pt"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and whose bytes match its manifest.

    Args:
        folder: where it lies.
        state: what training continues from: tensors and plain values.
        info: the manifest, such as step and score.
    """

    folder: Path
    state: dict[str, Any]
    info: dict[str, Any]


class CheckpointFolder:
    """The `checkpoints` folder of a run: its versions, and the links `last` and `best` to two of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.versions = Versions(folder)

    @property
    def last_model(self) -> Path:
        """The weights of the newest checkpoint."""
        return self.folder / "last" / MODEL_NAME

    def save(
        self,
        step: int,
        write_model: Callable[[Path], None],
        state: Mapping[str, Any],
        info: Mapping[str, Any],
    ) -> Path:
        """Write a checkpoint, point `last` to it, and drop all before the last two but the best.

        Args:
            step: optimizer steps done.
            write_model: writes the weights to the path it gets.
            state: for `load_checkpoint`; tensors and plain values only.
            info: JSON values for the manifest.

        Raises:
            StorageError: disk full or not writable; earlier checkpoints are untouched.
        """
        folder = self.versions.start(step)
        try:
            write_model(folder / MODEL_NAME)
            buffer = io.BytesIO()  # torch.save reports a full disk without an error number
            torch.save(dict(state), buffer)
            files.write_bytes(folder / STATE_NAME, buffer.getvalue())
            self.versions.finish(step, info)
        except BaseException:
            if not (folder / MANIFEST_NAME).exists():
                shutil.rmtree(folder, ignore_errors=True)  # gives the space back
            raise
        self._point("last", folder)
        return folder

    def mark_best(self, step: int, info: Mapping[str, Any]) -> None:
        """Point `best` to the checkpoint of `step` and add `info` to its manifest."""
        path = self.versions.path(step) / MANIFEST_NAME
        files.write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **info})
        self._point("best", path.parent)

    def best_score(self) -> float:
        """The J&F of the checkpoint that `best` points to; minus infinity without one."""
        try:
            manifest = json.loads((self.folder / "best" / MANIFEST_NAME).read_text(encoding="utf-8"))
            return float(manifest["J&F"])
        except (OSError, ValueError, KeyError):
            return float("-inf")

    def load_latest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest undamaged checkpoint, or None; damaged ones are reported and passed over.

        Raises:
            InputError: there are checkpoints but all are damaged (E273).
        """
        versions = self.versions.complete()
        for path in reversed(versions):
            try:
                return load_checkpoint(path)
            except InputError as error:
                warn(f"{error.message}; using the checkpoint before it")
        if versions:
            hint = "Start again with --overwrite."
            raise InputError("E273", f"every checkpoint in {self.folder} is damaged", hint)
        return None

    def _point(self, name: str, folder: Path) -> None:
        """Let `name` mean `folder`: a relative link, replaced in one step; a copy where links fail."""
        link, temporary = self.folder / name, self.folder / f".{name}{files.TEMPORARY_SUFFIX}"
        temporary.unlink(missing_ok=True)
        is_copy = link.is_dir() and not link.is_symlink()
        try:
            temporary.symlink_to(folder.name)
        except OSError:  # Windows without the privilege, or a file system without links
            if is_copy:
                shutil.rmtree(link)
            shutil.copytree(folder, link)
        else:
            if is_copy:  # made where links were forbidden
                shutil.rmtree(link)
            os.replace(temporary, link)  # noqa: PTH105 - Path.replace follows nothing either, but says so less
        self.versions.prune(spared=(self.folder / "best").resolve().name)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify one checkpoint folder.

    Raises:
        InputError: a file is missing or its SHA-256 is not the manifest's, or it holds more than plain data.
    """
    info = read_manifest(folder)
    missing = {MODEL_NAME, STATE_NAME} - info.pop("files", {}).keys()
    if missing:
        raise InputError("E273", f"{folder / MANIFEST_NAME} lists no {min(missing)}")
    state = load_pickled_tensors(folder / STATE_NAME)
    if not isinstance(state, dict):
        raise InputError("E273", f"checkpoint file {folder / STATE_NAME} holds no training state")
    return Checkpoint(folder, state, info)
