"""Folders `step_N` that are whole or absent: files first, and last a manifest with their hashes."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vosnet import files
from vosnet.errors import InputError

MANIFEST_NAME = "manifest.json"
KEPT = 2


class Versions:
    """The `step_N` folders in `folder`, one per saved step.

    A version is complete once it holds a manifest, which is written last and removed first: whatever moment
    the machine stops at, a folder with a manifest is whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """Where the version of a step lies."""
        return self.folder / f"step_{step:08d}"

    def complete(self) -> list[Path]:
        """The complete versions, oldest first."""
        return [path for path in sorted(self.folder.glob("step_*")) if (path / MANIFEST_NAME).is_file()]

    def start(self, step: int) -> Path:
        """An empty folder for the version of a step; whatever lay there is removed."""
        _remove(self.path(step))
        return files.make_folder(self.path(step))

    def finish(self, step: int, info: Mapping[str, Any]) -> None:
        """Complete the version of a step.

        Args:
            step: optimizer steps done.
            info: JSON values for the manifest, which also gets the step and the SHA-256 of every file.
        """
        path = self.path(step)
        names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        digests = {name: files.sha256(path / name) for name in names}
        files.write_json(path / MANIFEST_NAME, {**info, "step": step, "files": digests})

    def prune(self, spared: str = "") -> None:
        """Remove all complete versions but the newest `KEPT` and the one whose folder is called `spared`."""
        for path in self.complete()[:-KEPT]:
            if path.name != spared:
                _remove(path)

    def clean(self) -> None:
        """Remove what a killed process left: temporary files and incomplete versions."""
        files.remove_stale_temporaries(self.folder)
        for path in self.folder.glob("step_*"):
            files.remove_stale_temporaries(path)
            if not (path / MANIFEST_NAME).is_file():
                shutil.rmtree(path)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a version; every file that it lists is there and unchanged.

    Raises:
        InputError: there is no manifest, or a file is missing or damaged (E273).
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise InputError("E273", f"{folder} holds no {MANIFEST_NAME}")
    try:
        info = dict(json.loads(path.read_text(encoding="utf-8")))
        digests = dict(info.get("files", {}))
    except (OSError, ValueError, TypeError) as error:
        raise InputError("E273", f"{path} is no manifest ({error})") from error
    for name, digest in digests.items():
        if not (folder / name).is_file():
            raise InputError("E273", f"{folder / name} is missing")
        if files.sha256(folder / name) != digest:
            raise InputError("E273", f"{folder / name} is damaged: its SHA-256 is not the manifest's")
    return info


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        (path / MANIFEST_NAME).unlink()  # first, so that a half-removed folder is not a version
    shutil.rmtree(path, ignore_errors=True)
