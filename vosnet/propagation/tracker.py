"""The tracker: frames go in one by one, per-object probabilities come out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vosnet.errors import InputError
from vosnet.masks import object_ids, with_annotation
from vosnet.matching import Chunks, nearest_readout, normalize_features, window_readout
from vosnet.memory import MemoryBank, Reading, SpacedBank
from vosnet.models.inference import FeatureExtractor
from vosnet.models.segmenter import MaskSegmenter
from vosnet.propagation.decoding import PreparedFrame, make_strategy
from vosnet.propagation.fallbacks import Fallback, Fallbacks, fewer_channels, smaller_workspace
from vosnet.propagation.masks import decide, input_size, mask_to_values
from vosnet.propagation.protocol import Protocol

logger = logging.getLogger(__name__)


class Tracker:
    """Propagates masks frame by frame, in bounded memory unless the protocol keeps all frames.

    The first frame needs a mask. A mask on a later frame adds its objects with a reference frame of their
    own: each reference frame owns the objects first annotated there (the first one background too), and their
    readouts form one set of probabilities that all contexts copy from later (the YouTube-VOS rule of
    Araslanov et al. 2021). Where a later mask overlaps what was tracked, the later mask wins. An object that
    is annotated again restarts from there.

    Args:
        extractor: frames to features.
        protocol: how labels are propagated.
        allow_degrade: when memory runs out and nothing else is left, keep fewer recent frames.
        chunks: how much is done at once; out-of-memory fallbacks make it smaller.
        segmenter: mask encoder and decoder, for protocols with `rounds`.

    Attributes:
        ids: object ids of the channels 1..K-1 in the order in which they came; channel 0 is background.
        bank: the frames that may still be read.
        fallbacks: what to try when memory runs out, and what was tried.
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
        self.extractor, self.protocol, self.chunks = extractor, protocol, chunks or Chunks()
        self.strategy = make_strategy(segmenter, extractor, protocol.rounds, self.chunks)
        self.ids: list[int] = []
        self.size: tuple[int, int] | None = None
        self.bank = _bank(protocol)
        fallbacks: list[Fallback] = [
            partial(smaller_workspace, self.chunks),
            partial(fewer_channels, self.chunks),
            self._move_to_cpu,
        ]
        self.fallbacks = Fallbacks([*fallbacks, self.bank.shrink] if allow_degrade else fallbacks)

    def step(self, frame: np.ndarray, mask: np.ndarray | None = None) -> Tensor:
        """Probabilities of the next frame.

        Args:
            frame: [H, W, 3] uint8, RGB; every frame of one size.
            mask: label map of this frame, [H, W] integer ids 1..255; 0 adds nothing.

        Returns:
            probs, [1 + len(ids), h, w] on the feature grid, channel 0 is background; with `rounds` on the
            grid of the decoder.

        Raises:
            InputError: wrong frame (E280, E281) or mask (E204, E282), no object in the first mask (E283), an
                object too small for the feature grid (E172).
            OutOfMemoryError: the smallest settings do not fit (E501).
        """
        self._check_frame(frame)
        new_ids: list[int] = []
        if mask is not None:
            mask = checked_mask(mask, frame.shape[:2])
            new_ids = object_ids(mask)
        if not new_ids and self.bank.length == 0:
            raise InputError("E283", "the first mask holds no object", "Mark at least one with an id from 1.")
        return self.fallbacks.run(lambda: self._step(frame, mask if new_ids else None, new_ids))

    def decide(self, probs: Tensor) -> np.ndarray:
        """The label map of `probs` at the source's size, [H, W] uint8."""
        return self.fallbacks.run(lambda: self._decide(probs.to(self.extractor.device), self.ids))

    def to(self, device: torch.device) -> None:
        """Move the networks and the memory."""
        for part in (self.extractor, self.strategy, self.bank):
            part.to(device)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on after the last frame: tensors, and JSON values in "meta"."""
        tensors, bank = self.bank.state()
        return {"tensors": tensors, "meta": {"ids": self.ids, "size": self.size, "bank": bank}}

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

    def _step(self, frame: np.ndarray, mask: np.ndarray | None, new_ids: list[int]) -> Tensor:
        """`step` without its checks; nothing changes before the last lines, which take no memory."""
        ids = list(dict.fromkeys([*self.ids, *new_ids]))
        prepared = self._prepare(frame)
        if self.bank.length == 0:
            assert mask is not None
            probs = kept = self._given(prepared, mask, [0, *new_ids])
        else:
            probs, copied = self.strategy.answer(prepared, self._read(prepared.features))
            kept = copied if self.protocol.memory_values == "copied" else probs
            if mask is not None:
                given = self._given(prepared, mask, new_ids)
                channels = [1 + ids.index(i) for i in new_ids]
                probs, kept = (merged(part, given, channels, 1 + len(ids)) for part in (probs, kept))
        if self.protocol.memory_values == "hard":
            decided = self._decide(probs, ids)
            decided = decided if mask is None else with_annotation(decided, mask)
            kept = self._to_values(prepared, decided, [0, *ids])
        stored = self.strategy.store(prepared, kept)
        self.bank.append(prepared.features, stored, reference_for=self._reference_for(ids, new_ids))
        self.ids = ids
        return probs

    def _prepare(self, frame: np.ndarray) -> PreparedFrame:
        assert self.size is not None
        images = self.extractor.images(frame[None], input_size(self.size, self.protocol))
        features = self.extractor.features(images)[0]
        return PreparedFrame(images[0], normalize_features(features) if self.protocol.normalize else features)

    def _read(self, query: Tensor) -> Tensor:
        """The readout of every context, each in its own channels, [P, h, w]."""
        count = len(self.strategy.planes(range(1 + len(self.ids))))
        planes = query.new_zeros(count, *query.shape[1:])
        for context in self.bank.contexts:
            planes[context.channels] = self._readout(query, self.bank.read(context))
        return planes

    def _readout(self, query: Tensor, memory: Reading) -> Tensor:
        protocol, near = self.protocol, self.protocol.neighborhood
        operands = query, memory.features, memory.values
        temperature = protocol.temperature_for(query.shape[0])
        if protocol.k is not None:
            return nearest_readout(
                *operands, k=protocol.k, temperature=temperature, neighborhood=near, chunks=self.chunks
            )
        return window_readout(
            *operands, temperature=temperature, radius=near.radius, dilations=memory.dilations,
            outside=protocol.outside, chunks=self.chunks,
        )  # fmt: skip

    def _given(self, frame: PreparedFrame, mask: np.ndarray, ids: list[int]) -> Tensor:
        """A given mask on the grid of the answers, one channel per id.

        An object that vanished when downsampled cannot be copied: an error (E172) or a warning.
        """
        given = self._to_values(frame, mask, ids)
        for i, value in zip(ids, given, strict=True):
            if i == 0 or bool(value.any()):
                continue
            pixels, grid = int((mask == i).sum()), _wxh(tuple(value.shape))
            message = f"object {i} ({pixels} pixels) is empty on the feature grid of {grid} cells"
            if self.protocol.empty_objects == "lose":
                logger.warning("%s: it is lost", message)
                continue
            hint = (
                "Mark it where it is larger, use a larger short_side, an encoder of smaller stride or "
                f"another mask_down than {self.protocol.mask_down}, or give it up with empty_objects=lose."
            )
            raise InputError("E172", message, hint)
        return given

    def _to_values(self, frame: PreparedFrame, mask: np.ndarray, ids: Sequence[int]) -> Tensor:
        grid, stride = self.strategy.mask_grid(frame), self.strategy.mask_stride
        return mask_to_values(mask, ids, grid, self.protocol, stride).to(frame.features.device)

    def _decide(self, probs: Tensor, ids: Sequence[int]) -> np.ndarray:
        assert self.size is not None
        return decide(probs, ids, self.size, self.protocol, self.chunks.channels)

    def _reference_for(self, ids: list[int], new_ids: list[int]) -> list[int]:
        """Planes copied from this frame from now on; plus background if no other reference frame owns any."""
        if not new_ids:
            return []
        channels = [1 + ids.index(i) for i in new_ids]
        own = self.strategy.planes([0, *channels])
        others = any(set(context.channels) - set(own) for context in self.bank.contexts)
        return self.strategy.planes(channels) if others else own

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
    return SpacedBank(protocol.references, protocol.dilation)


def merged(probs: Tensor, given: Tensor, channels: list[int], count: int) -> Tensor:
    """Probabilities with the objects of a later mask: (1 - s) probs + s given, s the sum of `given`.

    What an object held before it was annotated again goes to the background: its new mask is complete.

    Args:
        probs: of what was tracked, [K, h, w].
        given: the later mask, one channel per object of it, [M, h', w'].
        channels: of these objects in the result.
        count: channels of the result.

    Returns:
        [count, h', w'].
    """
    if probs.shape[1:] != given.shape[1:]:
        probs = functional.interpolate(probs[None], given.shape[1:], mode="bilinear")[0]
    probs = torch.cat([probs, probs.new_zeros(count - probs.shape[0], *probs.shape[1:])])
    probs[0] += probs[channels].sum(0)
    probs[channels] = 0
    covered = given.sum(0)
    probs *= 1 - covered
    probs[channels] += covered * given
    return probs


def checked_mask(mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """A given label map as bytes, [H, W] uint8.

    Raises:
        InputError: another size than the frame (E204), no [H, W] integer array or ids beyond 255 (E282).
    """
    if mask.ndim != 2 or mask.dtype.kind not in "uib":
        raise InputError("E282", f"a mask is [H, W] of integer ids, got {list(mask.shape)} {mask.dtype}")
    if mask.shape != tuple(size):
        message = f"mask size {_wxh(mask.shape)} does not match the frame's {_wxh(size)}"
        raise InputError("E204", message, "Give a mask of the frame's size.")
    low, high = int(mask.min(initial=0)), int(mask.max(initial=0))
    if low < 0 or high > 255:
        raise InputError("E282", f"object ids must lie in 1..255, got {low if low < 0 else high}")
    return mask.astype(np.uint8, copy=False)


def _wxh(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]}"
