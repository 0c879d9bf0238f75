"""Online adaptation: a U-Net trained from nothing on one video's propagated masks gives the final masks.

Section 3.3 of Zhu et al. 2020. The encoder and the propagation are not touched: masks travel first, then the
appearance model learns from all of them, the annotated ones included, and answers for every frame on its own.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vosnet.adaptation.appearance import AppearanceModel
from vosnet.adaptation.segmentation_loss import merge_unknown, segmentation_loss
from vosnet.adaptation.settings import AdaptationSettings
from vosnet.adaptation.training_frames import (
    Batches,
    TrainingFrames,
    frame_weights,
    known_ids,
)
from vosnet.errors import InputError, OutOfMemoryError, UsageError
from vosnet.masks import with_annotation
from vosnet.runtime import choose_device, is_out_of_memory
from vosnet.transforms import normalize_images
from vosnet.video.selection import Direction

Masks = Mapping[int, np.ndarray]
_PROBES = 16  # frames on which the trained model is compared with what it was taught


class PackedMasks(dict[int, Any]):
    """Label maps by frame, compressed: a long clip's masks take kilobytes per frame, not megabytes."""

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


OnStep = Callable[[int, float, AppearanceModel], None]


class Adaptation:
    """The answer for a clip: the appearance model's masks, or the propagated ones where it failed.

    Attributes:
        report: what happened.
        model: None when the propagated masks are the answer.
    """

    def __init__(
        self,
        model: AppearanceModel | None,
        report: AdaptationReport,
        propagated: Masks,
        given: Masks,
        direction: Direction,
    ) -> None:
        self.model, self.report = model, report
        self._propagated, self._given, self._direction = propagated, given, direction
        self._ids = _ids_by_frame(given)

    def masks(self, frames: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """(index, mask [H, W] uint8) of every frame that has a propagated mask, in order.

        Annotated frames keep the given pixels.

        Args:
            frames: the clip once more, from its frame 0.
        """
        wanted = ((index, frame) for index, frame in enumerate(frames) if index in self._propagated)
        if self.model is None:
            for index, _ in wanted:
                yield index, self._propagated[index]
            return
        while group := list(islice(wanted, self.model.settings.predict_batch)):
            known = [known_ids(self._ids, index, self._direction) for index, _ in group]
            for (index, _), mask in zip(group, self.model.predict([frame for _, frame in group], known)):
                given = self._given.get(index)
                yield index, mask if given is None else with_annotation(mask, given)


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
    settings = settings or AdaptationSettings()
    ids = _ids_by_frame(given)
    objects = sorted({label for labels in ids.values() for label in labels})
    if not objects or not propagated:
        raise InputError("E178", "online adaptation needs an annotated object and propagated masks")
    require_rereadable(frames)
    report = AdaptationReport()
    if not set(propagated) - set(given):
        report.kept_propagated = "every frame is annotated: there is nothing to adapt"
        return Adaptation(None, report, propagated, given, direction)
    began = time.perf_counter()
    kept = _collect(frames, propagated, given, settings, objects, direction)
    model = AppearanceModel(objects, settings, choose_device(device))
    batches = _batches(kept, given, settings, direction)
    try:
        losses = _train(model, batches, on_step)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        hint = f"Use a smaller batch_size (now {settings.batch_size}) or size (now {settings.size})."
        raise OutOfMemoryError("E501", "memory ran out during online adaptation", hint) from error
    report.iterations, report.frames = len(losses), len(kept.indices)
    report.seconds = round(time.perf_counter() - began, 3)
    if not np.isfinite(losses[-1]):
        report.kept_propagated = f"the loss was {losses[-1]} in iteration {len(losses)}"
    else:
        report.loss = (float(np.mean(losses[:10])), float(np.mean(losses[-10:])))
        report.agreement = _agreement(model, kept, set(given))
        report.kept_propagated = _lost_objects(report.agreement, settings.min_agreement)
    return Adaptation(None if report.kept_propagated else model, report, propagated, given, direction)


def require_rereadable(frames: Iterable[np.ndarray]) -> None:
    """Raise when `frames` would be used up by one reading (E177)."""
    if iter(frames) is frames:
        raise UsageError("E177", "online adaptation reads the frames twice", "Give a list or a VideoReader.")


def _ids_by_frame(given: Masks) -> dict[int, set[int]]:
    return {index: {int(i) for i in np.unique(mask) if i} for index, mask in given.items()}


def _collect(
    frames: Iterable[np.ndarray],
    propagated: Masks,
    given: Masks,
    settings: AdaptationSettings,
    objects: list[int],
    direction: Direction,
) -> TrainingFrames:
    kept = TrainingFrames(objects, settings.size, settings.max_frames)
    ids = _ids_by_frame(given)
    for index, frame in enumerate(frames):
        if index not in propagated:
            continue
        mask = propagated[index]
        if mask.shape != frame.shape[:2]:
            sizes = [f"{shape[1]}x{shape[0]}" for shape in (mask.shape, frame.shape)]
            raise InputError(
                "E204", f"frame {index}: propagated mask {sizes[0]}, but the frame is {sizes[1]}"
            )
        if index in given:
            mask = with_annotation(mask, given[index])
        kept.add(index, np.asarray(frame), mask, known_ids(ids, index, direction), keep=index in given)
    return kept


def _batches(
    kept: TrainingFrames, given: Masks, settings: AdaptationSettings, direction: Direction
) -> Batches:
    origin = max(given) if direction == "backward" else min(given)
    distances = [abs(index - origin) for index in kept.indices]
    return Batches(
        kept,
        frame_weights(distances, decay=settings.decay, last_weight=settings.last_weight),
        given,
        given_share=settings.given_share,
        jitter=settings.jitter,
        flip_probability=settings.flip_probability,
        zoom=settings.zoom,
        seed=settings.seed,
    )


def _train(model: AppearanceModel, batches: Batches, on_step: OnStep | None) -> list[float]:
    """The loss of every iteration; ends early at the first that is not finite."""
    settings, unet = model.settings, model.unet
    optimizer = torch.optim.Adam(unet.parameters(), settings.lr, fused=True)
    run: Callable[[Tensor], Tensor] = torch.compile(unet) if settings.compiled else unet
    losses: list[float] = []
    for iteration in range(settings.iterations):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * settings.lr_gamma ** (iteration // settings.lr_step)
        images, labels, known = batches.draw(settings.batch_size, model.device)
        unet.train()
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.autocast):
            logits = run(normalize_images(images * 255))
        loss = segmentation_loss(logits, labels, known, dice_weight=settings.dice_weight)
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            break
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if on_step is not None:
            on_step(iteration + 1, losses[-1], model)
    return losses


@torch.no_grad()
def _agreement(model: AppearanceModel, kept: TrainingFrames, given: set[int]) -> dict[str, dict[int, float]]:
    """Region similarity of each object with its labels: on annotated frames, and on frames all along."""
    indices = kept.indices
    spread = {indices[i] for i in np.linspace(0, len(indices) - 1, min(_PROBES, len(indices))).astype(int)}
    counts = {name: np.zeros((2, len(model.ids) + 1)) for name in ("annotated", "clip")}
    model.unet.eval()
    for index in sorted(spread | given & set(indices)):
        image, labels, known = kept.read([index], model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.autocast):
            logits = model.unet(normalize_images(image * 255))
        found = merge_unknown(logits.float(), known).argmax(1)
        pair = _overlap(found, labels, len(model.ids) + 1)
        if index in given:
            counts["annotated"] += pair
        if index in spread:
            counts["clip"] += pair
    return {
        name: {i: round(float(a / b), 4) for i, a, b in zip(model.ids, both[0, 1:], both[1, 1:]) if b}
        for name, both in counts.items()
    }


def _overlap(found: Tensor, labels: Tensor, channels: int) -> np.ndarray:
    """Pixels in common and in either, [2, channels]."""
    areas = [
        torch.bincount(x.flatten(), minlength=channels) for x in (found, labels, labels[found == labels])
    ]
    return torch.stack([areas[2], areas[0] + areas[1] - areas[2]]).cpu().numpy().astype(float)


def _lost_objects(agreement: dict[str, dict[int, float]], least: float) -> str:
    """Which objects the model does not find again, in words; "" when it finds all.

    A model that cannot reproduce the annotated masks has not learned these objects. Against the propagated
    masks, which it may well correct, half of that is asked.
    """
    for name, limit in (("annotated", least), ("clip", least / 2)):
        lost = {i: value for i, value in agreement[name].items() if value < limit}
        if lost:
            where = "its annotation" if name == "annotated" else "the propagated masks"
            listed = ", ".join(f"{i} ({value:.2f})" for i, value in lost.items())
            return f"the appearance model lost object {listed}: J with {where} below {limit:g}"
    return ""
