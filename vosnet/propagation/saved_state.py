"""The tracker's state in a file, from which an interrupted clip is resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vosnet import files
from vosnet.errors import InputError
from vosnet.propagation.protocol import Protocol
from vosnet.propagation.tracker import Tracker


class SavedState(NamedTuple):
    """Where a run was: the number of its pass, the position within it, and the tracker's state dict."""

    part: int
    position: int
    state: dict[str, Any]


class StateFile:
    """Saves the tracker's state every few frames, whole or not at all, and loads it again.

    Args:
        path: a safetensors file.
        every: frames between two savings.
        belongs_to: of the run; see `fingerprint`.
    """

    def __init__(self, path: str | os.PathLike[str], every: int, belongs_to: str) -> None:
        self.path, self.every, self._belongs_to = files.expand(path), every, belongs_to

    def load(self) -> SavedState | None:
        """The state of an interrupted run, or None when there is none.

        Raises:
            InputError: unreadable, or of another clip, mask, checkpoint or protocol (E285).
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                meta = json.loads((file.metadata() or {})["vosnet"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            message = f"state file {self.path} is damaged or no state file ({error})"
            raise InputError("E285", message, "Delete it to start over.") from error
        if meta["belongs_to"] != self._belongs_to:
            message = f"state file {self.path} was written with other masks, settings or weights"
            raise InputError("E285", message, "Delete it to start over.")
        return SavedState(meta["part"], meta["position"], {"tensors": tensors, "meta": meta["tracker"]})

    def save(self, part: int, position: int, tracker: Tracker) -> None:
        """Save the state if it is due."""
        if (position + 1) % self.every:
            return
        state = tracker.state_dict()
        meta = {"belongs_to": self._belongs_to, "part": part, "position": position, "tracker": state["meta"]}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in state["tensors"].items()}
        with files.atomic_path(self.path) as temporary:
            save_file(tensors, temporary, {"vosnet": json.dumps(meta)})

    def remove(self) -> None:
        """Delete the file of a finished run."""
        self.path.unlink(missing_ok=True)


def fingerprint(protocol: Protocol, source: str, masks: Mapping[int, np.ndarray], direction: str) -> str:
    """SHA-256 over everything a run's results depend on, but for the frames themselves."""
    settings = json.dumps([dataclasses.asdict(protocol), source, direction], sort_keys=True)
    digest = hashlib.sha256(settings.encode())
    for index in sorted(masks):
        mask = np.ascontiguousarray(masks[index])
        digest.update(f"{index} {mask.shape} {mask.dtype}".encode())
        digest.update(mask.tobytes())
    return digest.hexdigest()
