"""Load and save networks: our files, other code bases' checkpoints, the shipped weights, random weights."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vosnet import files
from vosnet.errors import InputError, UsageError
from vosnet.models.description import EncoderMeta
from vosnet.models.encoder import Encoder, build_encoder
from vosnet.models.head import ProjectionHead
from vosnet.models.resnet import STAGES, TRUNKS, Arch
from vosnet.models.segmenter import MaskSegmenter
from vosnet.models.weights_file import METADATA_KEY, Weights, find_weights, read_weights
from vosnet.runtime import state_hash
from vosnet.transforms import ColorSpace

RANDOM = "random"
SHIPPED = "shipped"
_SEGMENTER_PARTS = ("mask_encoder.", "mask_decoder.")


@dataclass(frozen=True)
class LoadedModel:
    """Networks read from one file, and where they come from.

    Attributes:
        encoder: in eval mode, float32, on the CPU.
        meta: the file's description, with arch, layer and output_stride as they are read now.
        source: one line for reports, such as "run/model.safetensors (resnet18, layer4)".
        tensors: everything the file holds, under its names.
    """

    encoder: Encoder
    meta: EncoderMeta
    source: str
    tensors: Mapping[str, Tensor]

    def segmenter(self) -> MaskSegmenter:
        """The frame-mask encoder and mask decoder saved with the encoder, in eval mode, float32, on the CPU.

        Raises:
            InputError: the file holds none (E185), or not those it describes (E274).
        """
        if self.meta.segmenter is None:
            raise InputError(
                "E185",
                f"{self.source} holds no mask encoder and mask decoder, which decoding rounds need",
                "Use rounds=0 (--set rounds=0) or another preset, which copy masks without them, or a "
                "checkpoint of an objective that trains them: unified, plus_segmentation.",
            )
        settings = {**self.meta.segmenter, "output_stride": self.encoder.output_stride}
        state = {k: _restored(v) for k, v in self.tensors.items() if k.startswith(_SEGMENTER_PARTS)}
        try:
            with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
                segmenter = MaskSegmenter(**settings)
            segmenter.load_state_dict(state, assign=True)
        except (TypeError, ValueError, RuntimeError) as error:
            message = f"{self.source} does not hold the mask encoder and decoder it describes ({error})"
            raise InputError("E274", message, "Was it written by another version?") from error
        return segmenter.eval()


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
        meta: JSON values for the description, by the names of `EncoderMeta` or any others; what the network
            is (arch, layer, output_stride, padding, color_space) is filled in.
        half: store floating point tensors as float16 where they fit its range.
        head: a projection head that was trained on the encoder's output.
        segmenter: frame-mask encoder and mask decoder that were trained beside it.

    Raises:
        StorageError: disk full or not writable.
    """
    state = dict(encoder.state_dict())
    if head is not None:
        state |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    if segmenter is not None:
        state |= segmenter.state_dict()
    tensors = {name: _stored(tensor, half=half) for name, tensor in sorted(state.items())}
    described = ("arch", "layer", "output_stride", "padding", "color_space")
    values = {name: getattr(encoder, name) for name in described}
    values["segmenter"] = None if segmenter is None else segmenter.settings
    description = EncoderMeta.from_json({**values, **meta}).to_json()
    text = json.dumps(description | {"content_sha256": state_hash(tensors)}, sort_keys=True, allow_nan=False)
    with files.atomic_path(path) as temporary:
        save_file(tensors, temporary, {METADATA_KEY: text})


def load_model(
    path: str | os.PathLike[str] | None,
    *,
    layer: str | None = None,
    default_layer: str = "layer4",
    output_stride: int | None = None,
    arch: Arch = "resnet18",
    seed: int = 0,
) -> LoadedModel:
    """The networks at `path`: ours, or a checkpoint of DUL, CRW, VFS, torchvision, timm or DINO.

    Args:
        path: a file, a run folder, "random" for He initialization from `seed`, or None or "shipped"
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
    note = ""
    if path is None or str(path) == SHIPPED:
        path = shipped_weights() or RANDOM
        note = ": no trained weights are installed" if path == RANDOM else ""
    if str(path) == RANDOM:
        color_space: ColorSpace = "lab" if arch.startswith("mast") else "rgb"
        encoder = build_encoder(
            arch,
            layer=layer or default_layer,
            output_stride=output_stride or 8,
            seed=seed,
            color_space=color_space,
        )
        weights = Weights({}, EncoderMeta(color_space=color_space))
        source = f"random encoder (seed {seed}){note}"
    else:
        file = find_weights(path)
        weights = read_weights(file)
        chosen = layer or weights.meta.layer or _deepest(weights.tensors, default_layer)
        encoder = _build(file, weights, chosen, output_stride or weights.meta.output_stride)
        source = f"{file} ({encoder.arch}, {chosen})"
    meta = replace(weights.meta, arch=encoder.arch, layer=encoder.layer, output_stride=encoder.output_stride)
    return LoadedModel(encoder.eval(), meta, source, weights.tensors)


def shipped_weights() -> Path | None:
    """The weights that came with the package (the first by name), or None."""
    folder = Path(str(resources.files("vosnet"))) / "weights"
    return next(iter(sorted(folder.glob("*.safetensors"))), None)


def _stored(tensor: Tensor, *, half: bool) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    if not half or not tensor.is_floating_point():
        return tensor.clone()
    small = tensor.half()
    return small if bool(small.isfinite().all()) else tensor.float()  # a variance can exceed float16


def _restored(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _deepest(tensors: Mapping[str, Tensor], wanted: str) -> str:
    """`wanted`, or the last stage the tensors hold when they end before it."""
    present = [stage for stage in STAGES if any(name.startswith(stage + ".") for name in tensors)]
    return wanted if wanted in present or wanted == "head" or not present else present[-1]


def _build(path: Path, weights: Weights, layer: str, output_stride: int) -> Encoder:
    tensors, meta = weights
    arch = meta.arch or _arch_of(tensors)
    if arch not in TRUNKS:
        raise InputError("E274", f"{path} holds a {arch}; known are {', '.join(TRUNKS)}")
    head = tensors.get("head.conv2.weight")
    try:
        with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
            encoder = Encoder(
                arch=arch,
                layer=layer,
                output_stride=output_stride,
                padding=meta.padding,
                head_stage=_deepest(tensors, "layer4"),
                head_dims=None if head is None else (head.shape[1], head.shape[0]),
                color_space=meta.color_space,
                with_out_conv=layer == (meta.layer or layer),
            )
    except UsageError as error:
        raise UsageError(error.code, f"{error.message} for {path}") from error
    wanted = encoder.state_dict()
    kept = {name: _restored(tensor) for name, tensor in tensors.items() if not _is_beyond(name, encoder)}
    counters = [name for name in wanted if name.endswith("num_batches_tracked")]
    state = {name: torch.zeros((), dtype=torch.int64) for name in counters} | kept
    if problems := _mismatches(wanted, state):
        message = f"{path} does not fit a {arch} read at {layer}: {'; '.join(problems)}"
        raise InputError("E274", message, "Choose the layer or the file to match.")
    encoder.load_state_dict(state, assign=True)
    return encoder


def _arch_of(tensors: Mapping[str, Tensor]) -> str:
    bottleneck = any(re.fullmatch(r"layer\d\.\d+\.conv3\.weight", name) for name in tensors)
    return "resnet50" if bottleneck else "resnet18"


def _is_beyond(name: str, encoder: Encoder) -> bool:
    """Whether a tensor belongs to a part after the layer that is read."""
    part = name.partition(".")[0]
    return (
        name.startswith(_SEGMENTER_PARTS)
        or (part in STAGES and part not in encoder.stages)
        or (part == "head" and encoder.head is None)
        or (part == "out_conv" and encoder.out_conv is None)
    )


def _mismatches(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> list[str]:
    kinds = {
        "missing": [name for name in wanted if name not in got],
        "unexpected": [name for name in got if name not in wanted],
    }
    shapes = [
        f"{name} is {list(got[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted
        if name in got and got[name].shape != wanted[name].shape
    ]
    problems = [f"{kind} {_grouped(names)}" for kind, names in kinds.items() if names]
    return problems + shapes[:3] + ([f"{len(shapes) - 3} more of other shapes"] if len(shapes) > 3 else [])


def _grouped(names: list[str]) -> str:
    """Names counted by their first part, as in "layer4 (30 tensors), fc (2 tensors)"."""
    counts = Counter(name.partition(".")[0] for name in names)
    return ", ".join(f"{part} ({count} tensors)" for part, count in counts.items())
