"""Propagation of masks through a clip: the interface for commands and scripts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from vosnet.adaptation.adapt import Adaptation, OnStep, PackedMasks, adapt, require_rereadable
from vosnet.adaptation.settings import AdaptationSettings
from vosnet.masks import with_annotation
from vosnet.models import CallableEncoder, MaskSegmenter, load_model
from vosnet.models.inference import FeatureExtractor, Precision
from vosnet.models.resnet import Arch
from vosnet.propagation.masks import upsample
from vosnet.propagation.passes import Pass, plan_passes
from vosnet.propagation.protocol import Protocol, check_switches, make_protocol
from vosnet.propagation.saved_state import StateFile, fingerprint
from vosnet.propagation.tracker import Tracker
from vosnet.runtime import choose_device
from vosnet.transforms import IMAGENET_MEAN, IMAGENET_STD
from vosnet.video.selection import Direction


@dataclass
class FrameResult:
    """One frame's answer.

    Attributes:
        index: of the frame in the clip.
        mask: object ids, [H, W] uint8, 0 is background.
        ids: object ids known at this frame, in the order of the channels of `probs`.
    """

    index: int
    mask: np.ndarray
    ids: tuple[int, ...]
    _soft: Tensor
    _protocol: Protocol

    @property
    def probs(self) -> np.ndarray:
        """Probabilities at the frame's size, [1 + len(ids), H, W] float32, channel 0 is background.

        Made when asked for. With `min_max` they are stretched per object and no longer sum to 1.
        """
        size = (self.mask.shape[0], self.mask.shape[1])
        large: np.ndarray = upsample(self._soft, size, self._protocol).cpu().numpy()
        return large


class Propagator:
    """Propagates masks through clips with one encoder and one protocol.

    Args:
        extractor: frames to features.
        protocol: how labels are propagated.
        source: one line on where the encoder comes from.
        allow_degrade: when memory runs out and smaller chunks do not help, read fewer recent frames, which
            changes results; otherwise that is an error.
        segmenter: mask encoder and decoder, for protocols with `rounds`.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        protocol: Protocol,
        source: str,
        *,
        allow_degrade: bool = False,
        segmenter: MaskSegmenter | None = None,
    ) -> None:
        self.extractor, self.protocol, self.source, self.segmenter = extractor, protocol, source, segmenter
        self.allow_degrade = allow_degrade

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str] | None = None,
        preset: str | None = None,
        device: str = "auto",
        *,
        arch: Arch = "resnet18",
        seed: int = 0,
        output_stride: int | None = None,
        precision: Precision = "auto",
        compiled: bool = False,
        allow_degrade: bool = False,
        **overrides: Any,
    ) -> Propagator:
        """A propagator with the encoder at `path`.

        Args:
            path: a weights file or run folder, "random" for an untrained encoder, or None for the shipped
                weights (the random encoder while none are installed; `source` says which).
            preset: a name in `PRESETS`; None is the one the checkpoint names, else "dul".
            device: "auto", "cpu", "cuda" or "cuda:1".
            arch: network of the random encoder.
            seed: of the random encoder.
            output_stride: pixels per feature cell; None is the checkpoint's.
            precision: see `FeatureExtractor`.
            compiled: run the encoder through torch.compile.
            allow_degrade: see the class.
            **overrides: switches of `Protocol`, such as layer="layer3", num_recent=5 or short_side=480.

        Raises:
            UsageError: an unknown preset, switch or device (E162, E163, E164).
            InputError: the checkpoint cannot be used (E270-E274), or `rounds` are asked for and it holds no
                mask encoder and decoder (E185).
        """
        target = choose_device(device)
        check_switches(overrides)  # what is wrong is reported before anything is read, where it can be
        if preset is not None:
            make_protocol(preset, **overrides)
        layer = overrides.get("layer")
        wanted = make_protocol(preset or "dul").layer
        loaded = load_model(
            path, layer=layer, default_layer=wanted, output_stride=output_stride, arch=arch, seed=seed
        )
        chosen = preset or loaded.meta.preset or "dul"
        protocol = make_protocol(chosen, **{**overrides, "layer": loaded.meta.layer})
        extractor = FeatureExtractor(
            loaded.encoder,
            mean=loaded.meta.mean,
            std=protocol.std or loaded.meta.std,
            device=target,
            precision=precision,
            compiled=compiled,
        )
        segmenter = loaded.segmenter() if protocol.rounds > 0 else None
        return cls(extractor, protocol, loaded.source, allow_degrade=allow_degrade, segmenter=segmenter)

    @classmethod
    def from_encoder(
        cls,
        encoder: Callable[[Tensor], Tensor],
        output_stride: int,
        preset: str = "dul",
        device: str = "auto",
        *,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        precision: Precision = "auto",
        allow_degrade: bool = False,
        segmenter: MaskSegmenter | None = None,
        **overrides: Any,
    ) -> Propagator:
        """A propagator with any encoder.

        Args:
            encoder: normalized images [N, 3, H, W] to features [N, C, h, w]; a function or a module.
            output_stride: image pixels per feature cell.
            preset: as in `from_checkpoint`.
            device: as in `from_checkpoint`.
            mean: of the normalization, per color channel, of values in 0..1.
            std: of the normalization.
            precision: "auto" is float32 here.
            allow_degrade: see the class.
            segmenter: see the class.
            **overrides: switches of `Protocol`.
        """
        protocol = make_protocol(preset, **overrides)
        wrapped = CallableEncoder(encoder, output_stride)
        extractor = FeatureExtractor(
            wrapped, mean=mean, std=protocol.std or std, device=choose_device(device), precision=precision
        )
        source = f"encoder {wrapped.name}"
        return cls(extractor, protocol, source, allow_degrade=allow_degrade, segmenter=segmenter)

    def settings(self) -> dict[str, Any]:
        """Encoder and protocol as plain values: results are continued only under the same."""
        protocol = {key: str(value) for key, value in vars(self.protocol).items()}
        return {"encoder": self.source, "protocol": protocol}

    @property
    def device(self) -> str:
        """Where the encoder runs now."""
        return str(self.extractor.device)

    def tracker(self) -> Tracker:
        """A new tracker with this encoder and protocol, for callers that feed frames themselves."""
        return Tracker(
            self.extractor, self.protocol, allow_degrade=self.allow_degrade, segmenter=self.segmenter
        )

    def propagate(
        self,
        frames: Iterable[np.ndarray],
        masks: Mapping[int, np.ndarray],
        *,
        direction: Direction = "forward",
        keep_annotations: bool = True,
        spill: str | os.PathLike[str] | None = None,
        spill_every: int = 50,
    ) -> Iterator[FrameResult]:
        """Masks of the frames, one by one as they are computed.

        Args:
            frames: [H, W, 3] uint8 RGB each. "forward" takes any iterable and holds one frame at a time; the
                other directions need `len(frames)` and `frames[i]`.
            masks: label maps [H, W] of annotated frames by frame index. Masks beyond the first add objects or
                restart known ones; where they overlap what was tracked, the later mask wins.
            direction: "forward" from the first annotated frame to the end; "backward" from the last annotated
                frame to frame 0; "both" is forward, then backward from the first annotated frame.
            keep_annotations: answer annotated frames with the given pixels. Differs: the authors write what
                is left of them after down- and upsampling, as does False.
            spill: a file for the tracker's state, saved every `spill_every` frames and removed at the end.
                If it exists already, results go on after the frame at which it was saved.
            spill_every: frames between two savings.

        Yields:
            A `FrameResult` per frame, in the order of processing. Frames before the first annotated one are
            not answered in direction "forward", nor those after the last in "backward".

        Raises:
            UsageError: an unknown direction, no masks, or frames that cannot be indexed (E165).
            InputError: a mask or frame that does not fit (E204, E280-E284).
            OutOfMemoryError: even the smallest settings do not fit (E501).
        """
        passes = plan_passes(frames, masks, direction)
        file = None
        if spill is not None:
            made_by = fingerprint(self.protocol, self.source, masks, direction)
            file = StateFile(spill, spill_every, made_by)
        return self._run(frames, dict(masks), passes, file, keep_annotations)

    def adapt(
        self,
        frames: Iterable[np.ndarray],
        masks: Mapping[int, np.ndarray],
        settings: AdaptationSettings | None = None,
        *,
        direction: Direction = "forward",
        on_step: OnStep | None = None,
    ) -> Adaptation:
        """Propagate, then train a U-Net on the propagated masks, whose answers are the final ones.

        `for index, mask in propagator.adapt(frames, masks).masks(frames)` walks over them.

        Args:
            frames: as for `propagate`, but read three times in all: a list, an array or a VideoReader.
            masks: as for `propagate`.
            settings: of online adaptation; None is the paper's.
            direction: as for `propagate`.
            on_step: see `vosnet.adaptation.adapt.adapt`.

        Raises:
            UsageError: frames that can be read only once (E177), and as `propagate`.
            InputError: as `propagate`.
        """
        require_rereadable(frames)
        propagated = PackedMasks()
        for result in self.propagate(frames, masks, direction=direction):
            propagated[result.index] = result.mask
        return adapt(
            frames, propagated, masks, settings, direction=direction, device=self.device, on_step=on_step
        )

    def _run(
        self,
        frames: Any,
        masks: dict[int, np.ndarray],
        passes: list[Pass],
        file: StateFile | None,
        keep_annotations: bool,  # noqa: FBT001 (private)
    ) -> Iterator[FrameResult]:
        saved = file.load() if file is not None else None
        for number, part in enumerate(passes):
            if saved is not None and number < saved.part:
                continue
            tracker, position = self.tracker(), -1
            if saved is not None and number == saved.part:
                tracker.load_state_dict(saved.state)
                position = saved.position
            for index, frame in part.frames(frames, position):
                mask = masks.get(index)
                probs = tracker.step(frame, mask)
                if index != part.start or not part.silent_start:
                    decided = tracker.decide(probs)
                    if keep_annotations and mask is not None:
                        decided = with_annotation(decided, mask)
                    yield FrameResult(index, decided, tuple(tracker.ids), probs, self.protocol)
                position += 1
                if file is not None:
                    file.save(number, position, tracker)
        if file is not None:
            file.remove()
