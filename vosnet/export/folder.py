"""A result folder records the files this tool made: overwriting and resuming touch no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from vosnet.errors import UsageError
from vosnet.files import inside, make_folder, remove_stale_temporaries, translate_storage_errors, write_json

Existing = Literal["refuse", "resume", "overwrite"]
_SETTINGS = ".vosnet-settings.json"
_FILES = ".vosnet-files.txt"


class ResultFolder:
    """Claims `root` for one result.

    Args:
        root: created when missing.
        settings: what determines the result; `resume` requires the same settings.
        existing: what to do when `root` already holds something: "refuse", "resume", or "overwrite", which
            removes the files that this tool made and no others.

    Raises:
        UsageError: `root` is not empty and `existing` is "refuse", or the settings differ on "resume".
        StorageError: `root` cannot be created or written.
    """

    def __init__(
        self,
        root: Path,
        settings: dict[str, Any],
        *,
        existing: Existing = "refuse",
    ) -> None:
        self.root = make_folder(root)
        self._made = self._read_made()
        stored = self._read_settings()
        self.resumed = existing == "resume" and stored is not None
        if existing == "overwrite":
            self._remove_made()
        elif existing == "resume" and stored is not None:
            _require_same(stored, settings, self.root)
        elif any(path.name != ".lock" for path in self.root.iterdir()):
            hint = "Give another --out, or --resume to continue, or --overwrite to replace what it made."
            raise UsageError("E118", f"output folder {self.root} is not empty", hint)
        for folder in {
            path.parent for path in [self.root / _FILES, *(self.root / name for name in self._made)]
        }:
            if folder.is_dir():
                remove_stale_temporaries(folder)
        write_json(self.root / _SETTINGS, settings)

    def path(self, name: str) -> Path:
        """The path of the result file `name` (relative, `/` separated), recorded as made by this tool.

        Raises:
            InputError: `name` would lead out of the folder.
        """
        path = inside(self.root, name)
        if name not in self._made:
            self._made[name] = None
            with translate_storage_errors(self.root / _FILES), (self.root / _FILES).open("a") as file:
                file.write(name + "\n")
        return path

    def has(self, name: str) -> bool:
        """Whether this tool made the file `name` here and it exists."""
        return name in self._made and inside(self.root, name).is_file()

    def forget(self, name: str) -> None:
        """Delete a file that was only needed on the way, such as a spilled state."""
        inside(self.root, name).unlink(missing_ok=True)

    @property
    def made(self) -> list[str]:
        """Names of the files this tool made here that exist, in the order they were first written."""
        return [name for name in self._made if (self.root / name).is_file()]

    def _read_made(self) -> dict[str, None]:
        path = self.root / _FILES
        return dict.fromkeys(path.read_text().splitlines()) if path.is_file() else {}

    def _read_settings(self) -> dict[str, Any] | None:
        path = self.root / _SETTINGS
        return json.loads(path.read_text()) if path.is_file() else None

    def _remove_made(self) -> None:
        for name in self._made:
            path = inside(self.root, name)
            path.unlink(missing_ok=True)
            if path.parent != self.root and path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()
        (self.root / _FILES).unlink(missing_ok=True)
        self._made = {}


def _require_same(stored: dict[str, Any], settings: dict[str, Any], root: Path) -> None:
    fresh = json.loads(json.dumps(settings))
    changed = sorted(key for key in stored.keys() | fresh.keys() if stored.get(key) != fresh.get(key))
    if changed:
        shown = "; ".join(f"{key} was {stored.get(key)!r}, now {fresh.get(key)!r}" for key in changed[:3])
        raise UsageError("E119", f"cannot resume {root}: {shown}", "Use the same settings, or --overwrite.")
