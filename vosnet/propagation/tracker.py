"""The tracker: frames go in one by one, per-object probabilities come out."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vosnet.errors import InputError, UsageError
from vosnet.masks import with_annotation
from vosnet.matching import Chunks, nearest_readout, normalize_features, window_readout
from vosnet.memory import Context, MemoryBank, SpacedBank
from vosnet.models.inference import FeatureExtractor
from vosnet.models.segmenter import MaskSegmenter
from vosnet.propagation.decoding import MaskRounds
from vosnet.propagation.fallbacks import Ladder, Rung
from vosnet.propagation.masks import decide, input_size, mask_to_values
from vosnet.propagation.protocol import Protocol

logger = logging.getLogger(__name__)
MIN_WORKSPACE_BYTES = 2**20


class Tracker:
    """Carries masks from frame to frame; memory is bounded whatever the length.

    The first frame needs a mask. A mask on a later frame adds its objects with a reference frame of their
    own: each reference frame answers for the objects first annotated there (the first one for background
    too), and the answers are put together into one set of probabilities that all contexts read later (the
    YouTube-VOS rule of Araslanov et al. 2021). Where a later mask overlaps what was tracked, the later mask
    wins. An object that is annotated again starts anew from there.

    Args:
        extractor: frames to features.
        protocol: how labels travel.
        allow_degrade: when memory runs out and nothing else is left, keep fewer recent frames.
        chunks: how much is done at once; the ladder makes it smaller when memory runs out.
        segmenter: mask encoder and decoder, for protocols with `rounds`.

    Attributes:
        ids: object ids of the channels 1..K-1; channel 0 is background.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        protocol: Protocol,
        *,
        allow_degrade: bool = False,
        chunks: Chunks | None = None,
        segmenter: MaskSegmenter | None = None,
    ) -> None:
        self.extractor, self.protocol = extractor, protocol
        self.rounds = _rounds(segmenter, extractor, protocol)
        self.chunks = chunks or Chunks()
        self.ids: list[int] = []
        self.size: tuple[int, int] | None = None
        self.bank = _bank(protocol)
        self.ladder = Ladder(self._rungs(allow_degrade))

    def step(self, frame: np.ndarray, mask: np.ndarray | None = None) -> Tensor:
        """Probabilities of the next frame.

        Args:
            frame: [H, W, 3] uint8, RGB; every frame of one size.
            mask: label map of this frame, [H, W] integer ids 1..255, 0 where nothing new is said.

        Returns:
            probs, [1 + len(ids), h, w] on the feature grid, channel 0 is background; with `rounds` on the
            grid of the decoder.

        Raises:
            InputError: wrong frame (E280, E281) or mask (E204, E282), no object in the first mask (E283).
            OutOfMemoryError: the smallest settings do not fit (E501).
        """
        self._check_frame(frame)
        new_ids = [] if mask is None else object_ids(mask, frame.shape[:2])
        if not new_ids and self.bank.length == 0:
            raise InputError("E283", "the first mask holds no object", "Mark at least one with an id from 1.")
        features = self.ladder.run(lambda: self._features(frame))
        probs, copied = self.ladder.run(
            lambda: self._probs(features.to(self.extractor.device), frame, mask, new_ids)
        )
        self.ids += [i for i in new_ids if i not in self.ids]
        values = self.ladder.run(lambda: self._values(probs, copied, mask, new_ids))
        grid = (features.shape[1], features.shape[2])
        stored = self.ladder.run(lambda: self._stored(values, frame, grid))
        channels = self._channels(new_ids) if new_ids else []
        self.ladder.run(lambda: self._keep(features, stored, channels))
        return probs

    def decide(self, probs: Tensor) -> np.ndarray:
        """The label map of `probs` at the source's size, [H, W] uint8."""
        assert self.size is not None
        size = self.size
        return self.ladder.run(
            lambda: decide(
                probs.to(self.extractor.device), self.ids, size, self.protocol, self.chunks.channels
            )
        )

    def to(self, device: torch.device) -> None:
        """Move the encoder and the memory."""
        self.extractor.to(device)
        if self.rounds is not None:
            self.rounds.to(device)
        self.bank.to(device)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on after the last frame: tensors, and JSON values in "meta"."""
        tensors, bank = self.bank.state()
        meta = {"ids": self.ids, "size": self.size, "bank": bank}
        return {"tensors": tensors, "meta": meta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, with the same protocol and encoder."""
        meta, device = state["meta"], self.extractor.device
        self.ids = list(meta["ids"])
        self.size = None if meta["size"] is None else (meta["size"][0], meta["size"][1])
        tensors = {name: tensor.to(device, copy=True) for name, tensor in state["tensors"].items()}
        self.bank.load_state(tensors, meta["bank"])

    def _check_frame(self, frame: np.ndarray) -> None:
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            message = f"frames must be [H, W, 3] uint8 RGB, got {list(frame.shape)} {frame.dtype}"
            raise InputError("E280", message)
        size = (frame.shape[0], frame.shape[1])
        if self.size is None:
            self.size = size
        elif self.size != size:
            message = f"frame size changes from {_wxh(self.size)} to {_wxh(size)}"
            raise InputError("E281", message, "Resize the frames to one size.")

    def _features(self, frame: np.ndarray) -> Tensor:
        assert self.size is not None
        features = self.extractor(frame[None], input_size(self.size, self.protocol))[0]
        return normalize_features(features) if self.protocol.normalize else features

    def _image(self, frame: np.ndarray) -> Tensor:
        assert self.size is not None
        return self.extractor.images(frame[None], input_size(self.size, self.protocol))[0]

    def _channels(self, ids: list[int]) -> list[int]:
        """Value channels of `ids`; with background when no other reference frame answers for it."""
        channels = [1 + self.ids.index(i) for i in ids]
        own = {0, *self._planes(channels)}
        others = any(set(context.channels) - own for context in self.bank.contexts)
        return self._planes(channels if others else [0, *channels])

    def _planes(self, channels: list[int]) -> list[int]:
        """What memory holds of value channels: themselves, or with `rounds` all planes of an object."""
        return channels if self.rounds is None else self.rounds.planes(channels)

    def _probs(
        self, features: Tensor, frame: np.ndarray, mask: np.ndarray | None, new_ids: list[int]
    ) -> tuple[Tensor, Tensor]:
        """The answer, and what was copied to begin with; without `rounds` they are one tensor."""
        if mask is None or not new_ids:
            return self._decoded(features, frame)
        grid = self._mask_grid((features.shape[1], features.shape[2]))
        wanted = [0, *new_ids] if self.bank.length == 0 else new_ids
        given = mask_to_values(mask, wanted, grid, self.protocol, self._mask_stride)
        _check_all_there(given[-len(new_ids) :], mask, new_ids, self.protocol)
        given = given.to(features.device)
        if self.bank.length == 0:
            return given, given
        probs, copied = self._decoded(features, frame)
        merged = self._merged(probs, given, new_ids)
        if copied is probs:
            return merged, merged
        copied = functional.interpolate(copied[None], given.shape[-2:], mode="bilinear")[0]
        return merged, self._merged(copied, given, new_ids)

    def _decoded(self, features: Tensor, frame: np.ndarray) -> tuple[Tensor, Tensor]:
        read = self._read(features)
        if self.rounds is None:
            return read, read
        answer = self.rounds.decode(self._image(frame), read, self._objects_at_once)
        return answer, self.rounds.copied(read)

    def _read(self, features: Tensor) -> Tensor:
        """Every context's answer in its own channels."""
        planes = self._planes(list(range(1 + len(self.ids))))
        probs = features.new_zeros(len(planes), *features.shape[1:])
        for context in self.bank.contexts:
            probs[context.channels] = self._readout(features, context)
        return probs

    def _readout(self, features: Tensor, context: Context) -> Tensor:
        memory, values = self.bank.read(context)
        protocol = self.protocol
        temperature = protocol.temperature_for(features.shape[0])
        near = protocol.neighborhood
        if protocol.k is not None:
            return nearest_readout(
                features,
                memory,
                values,
                k=protocol.k,
                temperature=temperature,
                neighborhood=near,
                chunks=self.chunks,
            )
        return window_readout(
            features,
            memory,
            values,
            temperature=temperature,
            radius=near.radius,
            dilations=self._dilations(context, memory.shape[0]),
            outside=protocol.outside,
            chunks=self.chunks,
        )

    def _dilations(self, context: Context, count: int) -> list[int]:
        """How much wider than the plain window each frame of the context is searched."""
        if not isinstance(self.bank, SpacedBank):
            return [1] * count
        return [self.protocol.dilation(self.bank.length - frame) for frame in self.bank.frames_read(context)]

    def _merged(self, probs: Tensor, given: Tensor, new_ids: list[int]) -> Tensor:
        """`probs` with the objects of a later mask: (1 - s) probs + s given, s the sum of `given`.

        What an object that is annotated again held before goes to the background: its new mask is complete.
        """
        ids = self.ids + [i for i in new_ids if i not in self.ids]
        probs = torch.cat([probs, probs.new_zeros(1 + len(ids) - probs.shape[0], *probs.shape[1:])])
        channels = [1 + ids.index(i) for i in new_ids]
        probs[0] += probs[channels].sum(0)
        probs[channels] = 0
        covered = given.sum(0)
        probs *= 1 - covered
        probs[channels] += covered * given
        return probs

    def _stored(self, values: Tensor, frame: np.ndarray, grid: tuple[int, int]) -> Tensor:
        """What memory keeps of a frame: its values, with `rounds` each object's features beside its own."""
        if self.rounds is None:
            return values
        values = values.to(self.extractor.device)
        return self.rounds.embed(self._image(frame), values, grid, self._objects_at_once)

    def _values(self, probs: Tensor, copied: Tensor, given: np.ndarray | None, new_ids: list[int]) -> Tensor:
        """What `memory_values` says; the decided mask has annotated pixels as they were given."""
        if self.protocol.memory_values != "hard":
            return copied if self.protocol.memory_values == "copied" else probs
        assert self.size is not None
        mask = decide(probs, self.ids, self.size, self.protocol, self.chunks.channels)
        if given is not None and new_ids:
            mask = with_annotation(mask, given)
        grid = (probs.shape[1], probs.shape[2])
        values = mask_to_values(mask, [0, *self.ids], grid, self.protocol, self._mask_stride)
        return values.to(probs.device)

    def _mask_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The grid of the answers, for features on `grid`."""
        assert self.size is not None
        return (
            grid if self.rounds is None else self.rounds.mask_grid(input_size(self.size, self.protocol), grid)
        )

    @property
    def _mask_stride(self) -> int:
        """Pixels of the network's input per cell of the answers."""
        return self.extractor.output_stride if self.rounds is None else self.rounds.mask_stride

    @property
    def _objects_at_once(self) -> int:
        return max(1, self.chunks.channels // 4)  # a pass through V and D holds far more than a mask

    def _keep(self, features: Tensor, stored: Tensor, channels: list[int]) -> None:
        features, stored = features.to(self.extractor.device), stored.to(self.extractor.device)
        self.bank.append(features, stored, reference_for=channels)

    def _rungs(self, allow_degrade: bool) -> list[Rung]:  # noqa: FBT001 (private)
        rungs: list[Rung] = [self._shrink_workspace, self._shrink_channels, self._move_to_cpu]
        return [*rungs, self.bank.shrink] if allow_degrade else rungs

    def _shrink_workspace(self) -> str | None:
        if self.chunks.workspace // 4 < MIN_WORKSPACE_BYTES:
            return None
        self.chunks.workspace_bytes = self.chunks.workspace // 4
        return f"kernel workspace {self.chunks.workspace_bytes / 2**20:.0f} MiB"

    def _shrink_channels(self) -> str | None:
        if self.chunks.channels == 1:
            return None
        self.chunks.channels = max(1, self.chunks.channels // 4)
        return f"{self.chunks.channels} objects at once"

    def _move_to_cpu(self) -> str | None:
        if self.extractor.device.type == "cpu":
            return None
        self.to(torch.device("cpu"))
        return "moved to the CPU"


def _bank(protocol: Protocol) -> MemoryBank | SpacedBank:
    """The memory that `protocol.context` asks for."""
    if protocol.context != "mast":
        return MemoryBank(protocol.context, protocol.num_recent, protocol.k)
    assert protocol.references is not None
    return SpacedBank(protocol.references)


def _rounds(
    segmenter: MaskSegmenter | None, extractor: FeatureExtractor, protocol: Protocol
) -> MaskRounds | None:
    if protocol.rounds == 0:
        return None
    if segmenter is None:
        message = f"rounds is {protocol.rounds}, but there is no mask encoder and mask decoder"
        raise UsageError("E186", message, "Give a segmenter, or use rounds=0, which copies masks without it.")
    return MaskRounds(segmenter, extractor, protocol.rounds)


def object_ids(mask: np.ndarray, size: tuple[int, ...]) -> list[int]:
    """The objects of a label map, ascending.

    Raises:
        InputError: another size than the frame (E204), no [H, W] integer array or ids beyond 255 (E282).
    """
    if mask.ndim != 2 or mask.dtype.kind not in "uib":
        raise InputError("E282", f"a mask is [H, W] of integer ids, got {list(mask.shape)} {mask.dtype}")
    if mask.shape != tuple(size):
        message = f"mask size {_wxh(mask.shape)} does not match the frame's {_wxh(size)}"
        raise InputError("E204", message, "Give a mask of the frame's size.")
    ids = [int(i) for i in np.unique(mask)]
    if ids and (ids[0] < 0 or ids[-1] > 255):
        raise InputError("E282", f"object ids must lie in 1..255, got {ids[0] if ids[0] < 0 else ids[-1]}")
    return [i for i in ids if i != 0]


def _check_all_there(values: Tensor, mask: np.ndarray, ids: list[int], protocol: Protocol) -> None:
    """Raise or warn if an object left no trace on the feature grid: nothing can be copied from it (E172)."""
    for i, value in zip(ids, values, strict=True):
        if bool(value.any()):
            continue
        pixels, grid = int((mask == i).sum()), _wxh(tuple(value.shape))
        message = f"object {i} ({pixels} pixels) is empty on the feature grid of {grid} cells"
        if protocol.empty_objects == "lose":
            logger.warning("%s: it is lost", message)
            continue
        hint = (
            "Mark it where it is larger, use a larger short_side, an encoder of smaller stride or another "
            f"mask_down than {protocol.mask_down}, or give it up with empty_objects=lose."
        )
        raise InputError("E172", message, hint)


def _wxh(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]}"
