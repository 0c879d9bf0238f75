"""Encoders in files: ours (safetensors with metadata), other people's, the shipped ones, and none at all."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save_file
from torch import Tensor

from vosnet import files
from vosnet.errors import InputError, UsageError
from vosnet.models.encoder import Encoder, build_encoder
from vosnet.models.head import ProjectionHead
from vosnet.models.resnet import STAGES, TRUNKS, Arch, Padding
from vosnet.models.segmenter import MaskSegmenter
from vosnet.models.weights_file import (
    METADATA_KEY,
    Weights,
    default_meta,
    find_weights,
    read_weights,
)
from vosnet.runtime import state_hash
from vosnet.transforms import ColorSpace

RANDOM = "random"
SHIPPED = "shipped"
SEGMENTER_KEY = "segmenter"
_SEGMENTER_PARTS = ("mask_encoder.", "mask_decoder.")


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder ready to use and where it comes from.

    Attributes:
        encoder: in eval mode, float32, on the CPU.
        meta: arch, layer, output_stride, padding, color_space, mean, std and preset (None when unknown), and
            whatever else was saved with it.
        source: one line for reports, such as "run/model.safetensors (resnet18, layer4)".
    """

    encoder: Encoder
    meta: dict[str, Any]
    source: str


def save_encoder(
    path: str | os.PathLike[str],
    encoder: Encoder,
    meta: Mapping[str, Any],
    *,
    half: bool = True,
    head: ProjectionHead | None = None,
    segmenter: MaskSegmenter | None = None,
) -> None:
    """Write an encoder as safetensors, whole or not at all, with its description as JSON metadata.

    Args:
        path: the file to write.
        encoder: the network; a head of its own is saved too.
        meta: JSON values to keep beside arch, layer, output_stride, padding and color_space, which are
            added; `mean`, `std` (default ImageNet's), `preset` and `layer` (the one to read at test time)
            are understood by `load_encoder`.
        half: store floating point tensors as float16 where they fit its range.
        head: a projection head that was trained on the encoder's output.
        segmenter: frame-mask encoder and mask decoder that were trained beside it; `load_segmenter` reads
            them, and who wants the encoder alone does not notice them.

    Raises:
        StorageError: disk full or not writable.
    """
    state = dict(encoder.state_dict())
    if head is not None:
        state |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    kept: dict[str, Any] = {}
    if segmenter is not None:
        state |= segmenter.state_dict()
        kept = {SEGMENTER_KEY: segmenter.settings}
    tensors = {name: _stored(tensor, half) for name, tensor in sorted(state.items())}
    description = {
        **default_meta(),
        **kept,
        "arch": encoder.arch,
        "layer": encoder.layer,
        "output_stride": encoder.output_stride,
        "padding": encoder.padding,
        "color_space": encoder.color_space,
        **meta,
        "content_sha256": state_hash(tensors),
    }
    text = json.dumps(description, sort_keys=True, allow_nan=False)
    with files.atomic_path(path) as temporary:
        save_file(tensors, temporary, {METADATA_KEY: text})


def load_encoder(
    path: str | os.PathLike[str] | None,
    *,
    layer: str | None = None,
    default_layer: str = "layer4",
    output_stride: int | None = None,
    arch: Arch = "resnet18",
    seed: int = 0,
) -> LoadedEncoder:
    """The encoder at `path`: ours, or a checkpoint of DUL, CRW, VFS, torchvision, timm or DINO.

    Args:
        path: a file, a run folder, "random" for He initialisation from `seed`, or None or "shipped"
            for the shipped weights (the random encoder while none are installed).
        layer: what to read ("layer2", "layer3", "layer4", "head"). None: what the file says; else
            `default_layer`, or the deepest stage of a file that ends before it.
        default_layer: the layer for files that do not say one, and for "random".
        output_stride: image pixels per feature cell; None is what the file says, else 8.
        arch: network of the random encoder; files say theirs. Those of MAST see Lab.
        seed: of the random encoder.

    Raises:
        InputError: not found (E270), unreadable (E271), holds code (E272), damaged (E273), no ResNet in it
            or one that does not fit (E274).
    """
    if path is None or str(path) == SHIPPED:
        path = shipped_weights() or RANDOM
        note = ": no trained weights are installed" if path == RANDOM else ""
    else:
        note = ""
    if str(path) == RANDOM:
        return _random(arch, layer or default_layer, output_stride or 8, seed, note)
    file = find_weights(path)
    weights = read_weights(file)
    chosen = layer or weights.meta.get("layer") or _deepest(weights.tensors, default_layer)
    encoder = _build(file, weights, chosen, output_stride or int(weights.meta["output_stride"]))
    meta = {**weights.meta, "arch": encoder.arch, "layer": chosen, "output_stride": encoder.output_stride}
    return LoadedEncoder(encoder.eval(), meta, f"{file} ({encoder.arch}, {chosen})")


def load_segmenter(path: str | os.PathLike[str] | None, *, output_stride: int | None = None) -> MaskSegmenter:
    """The frame-mask encoder and mask decoder that were saved with the encoder at `path`.

    Args:
        path: as in `load_encoder`.
        output_stride: the encoder's, where it is not the file's.

    Returns:
        In eval mode, float32, on the CPU.

    Raises:
        InputError: the file holds none (E185), or see `load_encoder`.
    """
    if path is None or str(path) in {SHIPPED, RANDOM}:
        raise _without_segmenter("the shipped encoder" if str(path) != RANDOM else "a random encoder")
    file = find_weights(path)
    weights = read_weights(file)
    if SEGMENTER_KEY not in weights.meta:
        raise _without_segmenter(str(file))
    settings = dict(weights.meta[SEGMENTER_KEY])
    if output_stride is not None:
        settings["output_stride"] = output_stride
    got = {name: tensor for name, tensor in weights.tensors.items() if name.startswith(_SEGMENTER_PARTS)}
    try:
        segmenter = MaskSegmenter(**settings)
        segmenter.load_state_dict({name: _restored(tensor) for name, tensor in got.items()})
    except (TypeError, ValueError, RuntimeError) as error:
        message = f"{file} does not hold the mask encoder and decoder it describes ({error})"
        raise InputError("E274", message, "Was it written by another version?") from error
    return segmenter.eval()


def _restored(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _without_segmenter(what: str) -> InputError:
    message = f"{what} holds no mask encoder and mask decoder, which decoding rounds need"
    hint = (
        "Use rounds=0 (--set rounds=0) or another preset, which copy masks without them, or a checkpoint "
        "of an objective that trains them: unified, plus_segmentation."
    )
    return InputError("E185", message, hint)


def shipped_weights() -> Path | None:
    """The weights that came with the package (the first by name), or None."""
    folder = Path(str(resources.files("vosnet"))) / "weights"
    return next(iter(sorted(folder.glob("*.safetensors"))), None)


def _stored(tensor: Tensor, half: bool) -> Tensor:  # noqa: FBT001 (private)
    tensor = tensor.detach().cpu().contiguous()
    if not half or not tensor.is_floating_point():
        return tensor.clone()
    small = tensor.half()
    return small if bool(small.isfinite().all()) else tensor.float()  # a variance can exceed float16


def _random(arch: Arch, layer: str, output_stride: int, seed: int, note: str) -> LoadedEncoder:
    color_space: ColorSpace = "lab" if arch.startswith("mast") else "rgb"
    encoder = build_encoder(
        arch, layer=layer, output_stride=output_stride, seed=seed, color_space=color_space
    )
    meta = {
        **default_meta(),
        "color_space": color_space,
        "arch": arch,
        "layer": layer,
        "output_stride": encoder.output_stride,
        "seed": seed,
    }
    return LoadedEncoder(encoder.eval(), meta, f"random encoder (seed {seed}){note}")


def _deepest(tensors: Mapping[str, Tensor], wanted: str) -> str:
    """`wanted`, or the last stage the tensors hold when they end before it."""
    present = [stage for stage in STAGES if any(name.startswith(stage + ".") for name in tensors)]
    return wanted if wanted in present or wanted == "head" or not present else present[-1]


def _build(path: Path, weights: Weights, layer: str, output_stride: int) -> Encoder:
    tensors = weights.tensors
    arch = _arch_of(tensors)
    said = weights.meta.get("arch", arch)
    if said not in TRUNKS:
        raise InputError("E274", f"{path} holds a {said}; known are {', '.join(TRUNKS)}")
    try:
        encoder = Encoder(
            arch=cast("Arch", said),
            layer=layer,
            output_stride=output_stride,
            padding=cast("Padding", weights.meta["padding"]),
            head_stage=_deepest(tensors, "layer4"),
            head_dims=_head_dims(tensors) if layer == "head" else None,
            color_space=weights.meta["color_space"],
            with_out_conv=layer == weights.meta.get("layer", layer),
        )
    except UsageError as error:
        raise UsageError(error.code, f"{error.message} for {path}") from error
    wanted = encoder.state_dict()
    kept = {name: tensor for name, tensor in tensors.items() if not _beyond(name, encoder)}
    problems = _mismatches(wanted, kept)
    if problems:
        message = f"{path} does not fit a {said} read at {layer}: {'; '.join(problems)}"
        raise InputError("E274", message, "Choose the layer or the file to match.")
    optional = {name: wanted[name] for name in wanted if name.endswith("num_batches_tracked")}
    encoder.load_state_dict({**optional, **{name: tensor.float() for name, tensor in kept.items()}})
    return encoder


def _arch_of(tensors: Mapping[str, Tensor]) -> str:
    if any(re.fullmatch(r"layer\d\.\d+\.conv3\.weight", name) for name in tensors):
        return "resnet50"
    return "resnet18"


def _head_dims(tensors: Mapping[str, Tensor]) -> tuple[int, int] | None:
    last = tensors.get("head.conv2.weight")
    return None if last is None else (last.shape[1], last.shape[0])


def _beyond(name: str, encoder: Encoder) -> bool:
    """Whether a tensor belongs to a part behind the layer that is read."""
    part = name.partition(".")[0]
    return (
        name.startswith(_SEGMENTER_PARTS)
        or (part in STAGES and part not in encoder.stages)
        or (part == "head" and encoder.head is None)
        or (part == "out_conv" and encoder.out_conv is None)
    )


def _mismatches(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> list[str]:
    missing = [name for name in wanted if name not in got and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in got if name not in wanted]
    shapes = [
        f"{name} is {list(got[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted
        if name in got and got[name].shape != wanted[name].shape
    ]
    problems = [
        f"{kind} {_grouped(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    return problems + shapes[:3] + ([f"{len(shapes) - 3} more of other shapes"] if len(shapes) > 3 else [])


def _grouped(names: list[str]) -> str:
    """Names counted by their first part, as in "layer4 (30 tensors), fc (2 tensors)"."""
    counts = Counter(name.partition(".")[0] for name in names)
    return ", ".join(f"{part} ({count} tensors)" for part, count in counts.items())
