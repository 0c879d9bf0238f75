"""Targets of the segmentation term: objects from clusters, the channel of every cell, and the scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vosnet.transforms import more_draws

SALT = 0x5E6  # of the draws that choose objects


def choose_objects(
    labels: Tensor, draws: Tensor, num_clusters: int, num_objects: int
) -> tuple[Tensor, Tensor]:
    """Which clusters become objects: a random few of those that the reference frames show.

    Args:
        labels: of the reference frames, below `num_clusters`, [B, R, h, w]; negative where unknown.
        draws: the sample's own random numbers, [B, D].

    Returns:
        Clusters, [B, O] int64, and whether the slot holds one, [B, O] bool.
    """
    seen = F.one_hot(labels.flatten(1).clamp(min=-1) + 1, num_clusters + 1).amax(1)[:, 1:]
    rank = more_draws(draws, num_clusters, SALT) - 2.0 * (seen == 0)  # unseen ones come last
    best = rank.topk(num_objects, dim=1)
    return best.indices, best.values >= 0


def object_target(labels: Tensor, chosen: Tensor, valid: Tensor) -> Tensor:
    """Channel of every cell: 0 background, 1 + slot for an object, -1 unknown, [B, h, w] int64.

    Args:
        labels: clusters of the query, [B, h, w].
        chosen, valid: see `choose_objects`.
    """
    is_object = (labels[:, None] == chosen[:, :, None, None]) & valid[:, :, None, None]
    slot = torch.arange(1, chosen.shape[1] + 1, device=labels.device)[:, None, None]
    return torch.where(labels < 0, -1, (is_object * slot).sum(1))


def cross_entropy(log_probs: Tensor, target: Tensor) -> Tensor:
    """Mean over the known cells of -log_probs at the target; 0, with a gradient of 0, when none is known.

    Args:
        log_probs: [B, K, h', w'].
        target: [B, h, w], copied to the grid of `log_probs` by nearest cell centers.
    """
    target = _resized_target(target, log_probs)
    known = target >= 0
    picked = log_probs.gather(1, target.clamp(min=0)[:, None])[:, 0]
    return -torch.where(known, picked, 0.0).sum() / known.sum().clamp(min=1)


def coarse_log_probs(coarse: Tensor) -> Tensor:
    """Log-probabilities of background and objects from copied masks, [B, O, h, w] -> [B, 1 + O, h, w]."""
    background = 1 - coarse.sum(1, keepdim=True)
    return torch.cat([background, coarse], dim=1).clamp(min=1e-4).log()


@torch.no_grad()
def mean_iou(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean over the objects of intersection over union with the target; 0 when there is none."""
    target = _resized_target(target, logits)
    slot = torch.arange(1, logits.shape[1], device=logits.device)[:, None, None]
    predicted = (logits.argmax(1)[:, None] == slot) & (target >= 0)[:, None]
    true = target[:, None] == slot
    union = (predicted | true).sum((2, 3))
    iou = (predicted & true).sum((2, 3)) / union.clamp(min=1)
    iou = torch.where(union == 0, 1.0, iou)
    return torch.where(valid, iou, 0.0).sum() / valid.sum().clamp(min=1)


def _resized_target(target: Tensor, like: Tensor) -> Tensor:
    if target.shape[-2:] == like.shape[-2:]:
        return target
    resized = F.interpolate(target[:, None].float(), like.shape[-2:], mode="nearest-exact")
    return resized[:, 0].to(target.dtype)
