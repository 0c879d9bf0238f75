"""Whether the trained appearance model can be trusted: how well it repeats what it was taught."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vosnet.adaptation.appearance import AppearanceModel
from vosnet.adaptation.segmentation_loss import merge_unknown
from vosnet.adaptation.training_frames import TrainingFrames

_PROBES = 16  # frames all along the clip

Agreement = dict[str, dict[int, float]]


@torch.no_grad()
def measure_agreement(model: AppearanceModel, kept: TrainingFrames) -> Agreement:
    """Region similarity of each object with its labels: on annotated frames, and on frames all along."""
    indices, given = kept.indices, kept.annotations.masks
    spread = {indices[i] for i in np.linspace(0, len(indices) - 1, min(_PROBES, len(indices))).astype(int)}
    counts = {name: np.zeros((2, len(model.ids) + 1)) for name in ("annotated", "clip")}
    model.unet.eval()
    for index in sorted(spread | set(given) & set(indices)):
        images, labels, known = kept.read([index], model.device)
        found = merge_unknown(model.logits(images * 255).float(), known).argmax(1)
        pair = _overlap(found, labels, len(model.ids) + 1)
        if index in given:
            counts["annotated"] += pair
        if index in spread:
            counts["clip"] += pair
    return {
        name: {i: round(float(a / b), 4) for i, a, b in zip(model.ids, both[0, 1:], both[1, 1:]) if b}
        for name, both in counts.items()
    }


def lost_objects(agreement: Agreement, least: float) -> str:
    """Objects the model failed to recover, as text; "" if there are none.

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


def _overlap(found: Tensor, labels: Tensor, channels: int) -> np.ndarray:
    """Pixels in common and in either, [2, channels]."""
    parts = (found, labels, labels[found == labels])
    in_found, in_labels, common = (torch.bincount(x.flatten(), minlength=channels) for x in parts)
    return torch.stack([common, in_found + in_labels - common]).cpu().numpy().astype(float)
