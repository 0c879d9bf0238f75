"""Cross-entropy and Dice against label maps in which not every object is known yet."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def merge_unknown(logits: Tensor, known: Tensor) -> Tensor:
    """Logits in which objects nobody has annotated yet count as background.

    Before its first annotation an object may well be in view; label maps call it background there. Their
    probabilities are added, so that such frames do not teach the network to overlook it later.

    Args:
        logits: [N, K, H, W], channel 0 is background.
        known: boolean [N, K], channel 0 always true.

    Returns:
        [N, K, H, W], -inf in the channels that are not known.
    """
    if bool(known.all()):
        return logits
    there = known[:, :, None, None]
    hidden = logits.masked_fill(there, -torch.inf)
    background = torch.logsumexp(torch.cat([logits[:, :1], hidden[:, 1:]], 1), 1, keepdim=True)
    return torch.cat([background, logits[:, 1:].masked_fill(~there[:, 1:], -torch.inf)], 1)


def segmentation_loss(logits: Tensor, labels: Tensor, known: Tensor, *, dice_weight: float) -> Tensor:
    """Pixel-wise cross-entropy plus `dice_weight` times the Dice loss (appendix B of Zhu et al. 2020).

    Dice is 1 - 2 |P Y| / (|P| + |Y|) with probabilities P, per image and known object, one pixel added above
    and below so that an absent object that is not predicted costs nothing. The form is ours.

    Args:
        logits: [N, K, H, W], channel 0 is background.
        labels: channel of each pixel, [N, H, W] int64.
        known: which channels are annotated so far, boolean [N, K].
        dice_weight: of the Dice term.

    Returns:
        Scalar.
    """
    log_probs = functional.log_softmax(merge_unknown(logits.float(), known), 1).flatten(2)  # [N, K, HW]
    labels = labels.flatten(1)[:, None]  # [N, 1, HW]
    log_true = log_probs.gather(1, labels)
    sums = log_probs.exp().sum(2)  # [N, K]
    index = labels[:, 0]
    overlap = torch.zeros_like(sums).scatter_add(1, index, log_true[:, 0].exp())
    area = torch.zeros_like(sums).scatter_add(1, index, torch.ones_like(log_true[:, 0]))
    dice = 1 - (2 * overlap + 1) / (sums + area + 1)
    objects = known[:, 1:].to(dice.dtype)
    mean_dice = (dice[:, 1:] * objects).sum() / objects.sum().clamp_min(1)
    return -log_true.mean() + dice_weight * mean_dice
