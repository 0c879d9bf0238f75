"""Weights files: found, checked against their SHA-256, and read without executing anything."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vosnet import files
from vosnet.errors import InputError
from vosnet.models.description import EncoderMeta
from vosnet.models.foreign import recognize
from vosnet.models.untrusted import load_pickled_tensors
from vosnet.runtime import state_hash

METADATA_KEY = "vosnet"


class Weights(NamedTuple):
    """Tensors under torchvision's names and what the file says about them."""

    tensors: dict[str, Tensor]
    meta: EncoderMeta


def find_weights(path: str | os.PathLike[str]) -> Path:
    """The weights file that `path` means: itself, or the newest of a run folder.

    Raises:
        InputError: nothing there (E270).
    """
    path = files.expand(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(
            "E270", f"checkpoint {path} does not exist", 'Give a file, a run folder, or "random".'
        )
    steps = sorted(path.glob("checkpoints/step_*/model.safetensors"), key=lambda p: files.natural_key(str(p)))
    for file in [path / "model.safetensors", path / "checkpoints/last/model.safetensors", *reversed(steps)]:
        if file.is_file():
            return file
    message = f"run folder {path} holds no model.safetensors, checkpoints/last/ or checkpoints/step_*/"
    raise InputError("E270", message, "Has the run saved a checkpoint yet?")


def read_weights(path: Path) -> Weights:
    """Read one weights file of ours or of another code base.

    Raises:
        InputError: unreadable (E271), holds code (E272), damaged (E273), no ResNet in it (E274).
    """
    _check_manifest(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    known = "the names of DUL, CRW, VFS, torchvision, timm or DINO"
    return _of_another_code_base(path, load_pickled_tensors(path), known)


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        message = f"{path} is no readable safetensors file, or it is cut short or damaged ({error})"
        raise InputError("E271", message, "Copy or download it again.") from error
    if METADATA_KEY not in metadata:
        return _of_another_code_base(path, tensors, "torchvision's names")
    try:
        said = json.loads(metadata[METADATA_KEY])
        expected = said.pop("content_sha256", None)
        meta = EncoderMeta.from_json(said)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError("E273", f"{path} has damaged metadata ({error})", "Copy it again.") from error
    if expected is not None and expected != state_hash(tensors):
        raise InputError(
            "E273", f"{path} is damaged: its tensors do not match their SHA-256", "Copy it again."
        )
    return Weights(tensors, meta)


def _of_another_code_base(path: Path, content: Any, known: str) -> Weights:
    state = recognize(content)
    if state is None:
        hint = "Rename its tensors to torchvision's and save them as safetensors."
        raise InputError("E274", f"{path} holds no ResNet under {known}", hint)
    preset = None if state.layer is None else state.origin
    return Weights(state.tensors, EncoderMeta(layer=state.layer, padding=state.padding, preset=preset))


def _check_manifest(path: Path) -> None:
    """Compare with `manifest.json` beside the file, where one lists its SHA-256."""
    manifest = path.with_name("manifest.json")
    if not manifest.is_file():
        return
    try:
        content = json.loads(manifest.read_text())
        entry = content.get("files", content).get(path.name)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError("E273", f"{manifest} is unreadable ({error})", "Remove or restore it.") from error
    expected = entry.get("sha256") if isinstance(entry, dict) else entry
    if expected is not None and expected != files.sha256(path):
        message = f"{path} is damaged: its SHA-256 is not the one in {manifest.name}"
        raise InputError("E273", message, "Use an earlier checkpoint, or copy it again.")
