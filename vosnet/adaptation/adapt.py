"""Online adaptation: a U-Net trained from scratch on a video's propagated masks gives the final masks.

Section 3.3 of Zhu et al. 2020. Encoder and propagation stay as they are: masks are propagated first, then the
appearance model learns from all of them, the annotated ones included, and answers for every frame on its own.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch

from vosnet.adaptation.agreement import lost_objects, measure_agreement
from vosnet.adaptation.annotations import Annotations, Masks
from vosnet.adaptation.appearance import AppearanceModel
from vosnet.adaptation.segmentation_loss import segmentation_loss
from vosnet.adaptation.settings import AdaptationSettings
from vosnet.adaptation.training_frames import Batches, TrainingFrames
from vosnet.errors import InputError, OutOfMemoryError, UsageError
from vosnet.runtime import choose_device, is_out_of_memory
from vosnet.video.selection import Direction

OnStep = Callable[[int, float, AppearanceModel], None]


class PackedMasks(dict[int, Any]):
    """Compressed label maps by frame: kilobytes instead of megabytes for each."""

    def __setitem__(self, index: int, mask: np.ndarray) -> None:
        packed = zlib.compress(np.ascontiguousarray(mask, np.uint8).tobytes(), 1)
        super().__setitem__(index, (mask.shape, packed))

    def __getitem__(self, index: int) -> np.ndarray:
        shape, packed = super().__getitem__(index)
        return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(shape)


@dataclass
class AdaptationReport:
    """What happened, as JSON values.

    Attributes:
        iterations: optimizer steps that were taken.
        frames: frames that were trained on.
        seconds: for training alone.
        loss: mean of the first and of the last ten iterations.
        agreement: region similarity of each object with what was taught: on annotated frames, and over the
            whole clip.
        kept_propagated: why the propagated masks are the answer, or "" when the U-Net's are.
    """

    iterations: int = 0
    frames: int = 0
    seconds: float = 0.0
    loss: tuple[float, float] | None = None
    agreement: dict[str, dict[int, float]] = field(default_factory=dict)
    kept_propagated: str = ""


@dataclass(frozen=True)
class Adaptation:
    """The answer for a clip: the appearance model's masks, or the propagated ones where it failed.

    Attributes:
        model: None when the propagated masks are the answer.
        report: what happened.
        propagated: label maps by frame index.
        annotations: the given masks.
    """

    model: AppearanceModel | None
    report: AdaptationReport
    propagated: Masks
    annotations: Annotations

    def masks(self, frames: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """(index, mask [H, W] uint8) of every frame that has a propagated mask, in order.

        Annotated frames keep the given pixels.

        Args:
            frames: the clip once more, from its frame 0.
        """
        wanted = ((index, frame) for index, frame in enumerate(frames) if index in self.propagated)
        if self.model is None:
            yield from ((index, self.propagated[index]) for index, _ in wanted)
            return
        while group := list(islice(wanted, self.model.settings.predict_batch)):
            known = [self.annotations.known(index) for index, _ in group]
            for (index, _), mask in zip(group, self.model.predict([frame for _, frame in group], known)):
                yield index, self.annotations.over(index, mask)


def adapt(
    frames: Iterable[np.ndarray],
    propagated: Masks,
    given: Masks,
    settings: AdaptationSettings | None = None,
    *,
    direction: Direction = "forward",
    device: str = "auto",
    on_step: OnStep | None = None,
) -> Adaptation:
    """Train an appearance model on a clip's propagated masks.

    Args:
        frames: [H, W, 3] uint8 RGB each, from frame 0 of the clip; read once, and once more by
            `Adaptation.masks`.
        propagated: label maps [H, W] uint8 by frame index; frames without one are left out. `PackedMasks`
            keeps many of them small.
        given: annotated label maps [H, W] by frame index, as they were propagated.
        settings: None is the paper's.
        direction: as propagated.
        device: "auto", "cpu", "cuda" or "cuda:1".
        on_step: called with (iteration from 1, its loss, the model) after every step.

    Returns:
        Masks and report. A clip of annotated frames alone is not trained on.

    Raises:
        UsageError: an unknown device (E162), a reader that cannot be read twice (E177).
        InputError: no mask, or masks of another size than the frames (E178, E204).
        OutOfMemoryError: a batch does not fit (E501).
    """
    settings, annotations = settings or AdaptationSettings(), Annotations(given, direction)
    if not annotations.objects or not propagated:
        raise InputError("E178", "online adaptation needs an annotated object and propagated masks")
    require_rereadable(frames)
    if not set(propagated) - set(given):
        report = AdaptationReport(kept_propagated="every frame is annotated: there is nothing to adapt")
        return Adaptation(None, report, propagated, annotations)
    began = time.perf_counter()
    kept = _collect(frames, propagated, annotations, settings)
    model = AppearanceModel(annotations.objects, settings, choose_device(device))
    losses = _train(model, Batches(kept, settings), on_step)
    report = AdaptationReport(len(losses), len(kept.indices), round(time.perf_counter() - began, 3))
    if not np.isfinite(losses[-1]):
        report.kept_propagated = f"the loss was {losses[-1]} in iteration {len(losses)}"
    else:
        report.loss = (float(np.mean(losses[:10])), float(np.mean(losses[-10:])))
        report.agreement = measure_agreement(model, kept)
        report.kept_propagated = lost_objects(report.agreement, settings.min_agreement)
    return Adaptation(None if report.kept_propagated else model, report, propagated, annotations)


def require_rereadable(frames: Iterable[np.ndarray]) -> None:
    """Raise when `frames` would be used up by one reading (E177)."""
    if iter(frames) is frames:
        raise UsageError("E177", "online adaptation reads the frames twice", "Give a list or a VideoReader.")


def _collect(
    frames: Iterable[np.ndarray], propagated: Masks, annotations: Annotations, settings: AdaptationSettings
) -> TrainingFrames:
    """The sample of frames that is trained on."""
    kept = TrainingFrames(annotations, settings.size, settings.max_frames)
    for index, frame in enumerate(frames):
        if index not in propagated:
            continue
        mask = propagated[index]
        if mask.shape != frame.shape[:2]:
            sizes = [f"{shape[1]}x{shape[0]}" for shape in (mask.shape, frame.shape)]
            message = f"frame {index}: propagated mask {sizes[0]}, but the frame is {sizes[1]}"
            raise InputError("E204", message)
        kept.add(index, np.asarray(frame), mask)
    return kept


def _train(model: AppearanceModel, batches: Batches, on_step: OnStep | None) -> list[float]:
    """The loss of every iteration; ends early at the first that is not finite.

    Raises:
        OutOfMemoryError: a batch does not fit (E501).
    """
    settings = model.settings
    optimizer = torch.optim.Adam(model.unet.parameters(), settings.lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda iteration: settings.lr_gamma ** (iteration // settings.lr_step)
    )
    losses: list[float] = []
    try:
        for iteration in range(1, settings.iterations + 1):
            images, labels, known = batches.draw(settings.batch_size, model.device)
            model.unet.train()  # `on_step` may have asked it for masks
            logits = model.logits(images * 255)
            loss = segmentation_loss(logits, labels, known, dice_weight=settings.dice_weight)
            losses.append(loss.item())
            if not np.isfinite(losses[-1]):
                break
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if on_step is not None:
                on_step(iteration, losses[-1], model)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        hint = f"Use a smaller batch_size (now {settings.batch_size}) or size (now {settings.size})."
        raise OutOfMemoryError("E501", "memory ran out during online adaptation", hint) from error
    return losses
