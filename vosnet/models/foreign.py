"""Checkpoints of other code bases: which one it is, and its tensors under torchvision's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vosnet.models.resnet import Padding


@dataclass(frozen=True)
class EncoderState:
    """An encoder's tensors and what their names and container say about it.

    Attributes:
        origin: "dul", "crw", "vfs" or "torchvision".
        tensors: torchvision's names; a projection head under `head.`.
        layer: the layer its authors read at test time; None for torchvision's names, which many share.
        padding: "reflect" when the names show padded convolutions (CRW from scratch).
    """

    origin: str
    tensors: dict[str, Tensor]
    layer: str | None
    padding: Padding = "zeros"


_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")  # DistributedDataParallel, torch.compile
_TEST_LAYER = {"dul": "layer4", "crw": "layer3", "vfs": "layer3", "torchvision": None}
_TRUNK = re.compile(r"(conv1|bn1|layer[1-4]|head)\.")


def recognize(raw: Any) -> EncoderState | None:
    """The encoder in a loaded checkpoint of DUL, CRW, VFS (mmaction) or torchvision, timm and DINO.

    Returns:
        None when no ResNet tensors are found under any of the known names.
    """
    flat = _flatten(raw)
    for origin, rename in (("dul", _dul), ("crw", _crw), ("vfs", _vfs), ("torchvision", _torchvision)):
        tensors = {}
        for key, tensor in flat.items():
            name = rename(key)
            if name is not None and _TRUNK.match(name):
                tensors[name] = tensor
        if "conv1.weight" in tensors:
            padded = origin == "crw" and any(_PADDED.search(key) for key in flat)
            padding: Padding = "reflect" if padded else "zeros"
            return EncoderState(origin, tensors, _TEST_LAYER[origin], padding)
    return None


def _flatten(raw: Any) -> dict[str, Tensor]:
    """The tensors of the first known container inside `raw`, without wrappers' prefixes."""
    while isinstance(raw, Mapping):
        inner = next((raw[key] for key in ("state_dict", "model", "teacher") if key in raw), None)
        if not isinstance(inner, Mapping):
            break
        raw = inner
    if not isinstance(raw, Mapping):
        return {}
    flat = {}
    for key, value in raw.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            flat[_WRAPPERS.sub("", key)] = value
    return flat


def _dul(key: str) -> str | None:
    if key.startswith("fast_net.backbone."):
        return key.removeprefix("fast_net.backbone.")
    if key.startswith("fast_net.emb_q."):
        return "head." + key.removeprefix("fast_net.emb_q.")
    return None


_PADDED = re.compile(r"(conv\d)\.1\.(weight|bias)$")


def _crw(key: str) -> str | None:
    if not key.startswith("encoder.model."):
        return None
    return _PADDED.sub(r"\1.\2", key.removeprefix("encoder.model."))


def _vfs(key: str) -> str | None:
    if not key.startswith("backbone.") or not (".conv." in key or ".bn." in key):
        return None
    name = key.removeprefix("backbone.")
    name = name.replace("downsample.conv.", "downsample.0.").replace("downsample.bn.", "downsample.1.")
    name = re.sub(r"conv(\d)\.bn\.", r"bn\1.", name)
    return re.sub(r"(conv\d)\.conv\.", r"\1.", name)


def _torchvision(key: str) -> str | None:
    name = key.removeprefix("backbone.")
    return None if name.startswith("head.") else name  # DINO's head is another kind of head
