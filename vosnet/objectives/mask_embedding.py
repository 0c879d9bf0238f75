"""Mask-embedded segmentation learning (Li et al., CVPR 2023): VOS itself, on pseudo masks."""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vosnet.matching import dense_readout, nearest_attention
from vosnet.models.mask_encoder import MaskArch
from vosnet.models.segmenter import MaskSegmenter, refinement_rounds
from vosnet.transforms import more_draws

SALT = 0x5E6  # of the draws that choose objects


class Prediction(NamedTuple):
    """What one query frame is said to show.

    Args:
        coarse: Y-bar_q, masks copied from the reference frames, [B, O, h, w] in [0, 1].
        rounds: aggregated logits of each refinement round, [B, 1 + O, h', w'], channel 0 is background.
    """

    coarse: Tensor
    rounds: list[Tensor]


class MaskEmbedding(nn.Module):
    """The segmentation term of Li et al. 2023 around any visual encoder.

    The last frame of a clip is the query, the frames before it are references with known masks:
    A = softmax over all reference cells of <I_r, I_q> / temperature, V_q = A^T V([I_r, Y_r]),
    Y-bar_q = A^T Y_r, Y-hat_q = D([V_q, V([I_q, Y-bar_q])]). Each pseudo-mask cluster that is chosen is one
    object; the objects of a clip run as one batch and are aggregated softly.

    At test time there is one known mask, every later reference holds an answer, and cells copy from a few
    neighbours. `rollout` and `k` train for that.

    The paper states the equations, M = 5 clusters and three rounds at test time; every other default here
    is ours.

    Args:
        output_stride: the visual encoder's.
        num_clusters: labels of a clip lie below this number (M).
        num_objects: clusters of a clip that become objects, drawn among those that the references show;
            the others are background.
        num_references: reference frames, the latest before the last frame; None takes all.
        rollout: only the first frame's mask is given. Every later frame is a query in its turn and then a
            reference for the frames after it, with the mask that was "copied" there or with the "decoded"
            one, both without gradient. None: all masks but the last are given.
        k: neighbours per query cell, as when masks are propagated; None: the softmax runs over all cells.
        rounds: refinement rounds in training.
        temperature: divides the affinity; "sqrt_dim" is the root of the number of feature channels.
        normalize: L2-normalize the features.
        coarse_weight: weight of the coarse mask's own cross-entropy.
        encoder_gradient: whether the loss trains the visual encoder.
        arch, width, depth, mask_dim, hidden_dim, skips, upsample, residual: the networks; see
            `MaskSegmenter`.
    """

    def __init__(
        self,
        output_stride: int,
        *,
        num_clusters: int = 5,
        num_objects: int = 2,
        num_references: int | None = None,
        rollout: Literal["copied", "decoded"] | None = None,
        k: int | None = None,
        rounds: int = 1,
        temperature: float | Literal["sqrt_dim"] = 0.05,
        normalize: bool = True,
        coarse_weight: float = 0.0,
        encoder_gradient: bool = True,
        arch: MaskArch = "resnet18",
        width: int = 64,
        depth: int | None = None,
        mask_dim: int = 128,
        hidden_dim: int = 128,
        skips: bool = True,
        upsample: bool = True,
        residual: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= num_objects <= num_clusters:
            raise ValueError(f"num_objects must lie in 1..num_clusters ({num_clusters}), got {num_objects}")
        if rounds < 1:
            raise ValueError(f"rounds must be at least 1 in training, got {rounds}")
        if num_references is not None and num_references < 1:
            raise ValueError(f"num_references must be at least 1, or null for all, got {num_references}")
        if rollout not in (None, "copied", "decoded"):
            raise ValueError(f"rollout must be copied, decoded or null, got {rollout!r}")
        if k is not None and k < 1:
            raise ValueError(f"k must be at least 1, or null for all cells, got {k}")
        if isinstance(temperature, str) and temperature != "sqrt_dim":
            raise ValueError(f"temperature must be a number or 'sqrt_dim', got {temperature!r}")
        if not isinstance(temperature, str) and not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.num_clusters, self.num_objects, self.num_references = num_clusters, num_objects, num_references
        self.rollout, self.k, self.output_stride = rollout, k, output_stride
        self.rounds, self.temperature, self.normalize = rounds, temperature, normalize
        self.coarse_weight, self.encoder_gradient = coarse_weight, encoder_gradient
        self.segmenter = MaskSegmenter(
            arch=arch,
            output_stride=output_stride,
            width=width,
            depth=depth,
            mask_dim=mask_dim,
            hidden_dim=hidden_dim,
            skips=skips,
            upsample=upsample,
            residual=residual,
        )

    def forward(
        self, features: Tensor, frames: Tensor, labels: Tensor, draws: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same as `loss`."""
        return self.loss(features, frames, labels, draws)

    def loss(
        self, features: Tensor, frames: Tensor, labels: Tensor, draws: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the masks of the queries, averaged over queries, rounds and known cells.

        Args:
            features: of the visual encoder, [B, T, C, h, w], T at least 2.
            frames: as the visual encoder takes them, [B, T, 3, H, W].
            labels: cluster of every cell, [B, T, h', w'] int64, on a grid as fine as the features' or finer
                (`label_grid`); negative where unknown. An unknown cell shows no object as a reference and
                does not count as a query.
            draws: the sample's own random numbers, [B, D]; they choose the objects.

        Returns:
            Scalar with gradient (0 where nothing is known), and detached `segmentation` (its value),
            `coarse` (cross-entropy of the coarse masks), `objects` (per clip) and `iou` (of the last round
            of the last frame).
        """
        first = 0 if self.num_references is None else max(0, features.shape[1] - 1 - self.num_references)
        features, frames, labels = features[:, first:], frames[:, first:], labels[:, first:]
        given = 1 if self.rollout else features.shape[1] - 1
        chosen, valid = choose_objects(labels[:, :given], draws, self.num_clusters, self.num_objects)
        masks = (labels[:, :given, None] == chosen[:, None, :, None, None]).float()  # [B, R, O, h', w']
        losses, coarse_losses = [], []
        for prediction, label in zip(
            self.predict(features, frames, masks, valid), labels[:, given:].unbind(1), strict=True
        ):
            target = object_target(label, chosen, valid)
            losses += [cross_entropy(logits.log_softmax(1), target) for logits in prediction.rounds]
            coarse_losses.append(cross_entropy(coarse_log_probs(prediction.coarse), target))
        loss, coarse = torch.stack(losses).mean(), torch.stack(coarse_losses).mean()
        terms = {
            "segmentation": loss.detach(),
            "coarse": coarse.detach(),
            "objects": valid.float().sum(1).mean(),
            "iou": mean_iou(prediction.rounds[-1].detach(), target, valid),
        }
        return loss + self.coarse_weight * coarse if self.coarse_weight else loss, terms

    def predict(self, features: Tensor, frames: Tensor, masks: Tensor, valid: Tensor) -> list[Prediction]:
        """Masks of the frames whose masks are not given.

        Args:
            features: [B, T, C, h, w].
            frames: [B, T, 3, H, W].
            masks: of the first R frames, [B, R, O, h', w'] in [0, 1]. For what the frames after those hold
                as references, see `rollout`.
            valid: which slots hold an object, [B, O].

        Returns:
            One per frame R, ..., T - 1.
        """
        R, count = masks.shape[1:3]
        grid = (features.shape[-2], features.shape[-1])
        features = features.float() if self.encoder_gradient else features.detach().float()
        if self.normalize:
            features = F.normalize(features, dim=2)
        planes, predictions = self._remember(frames[:, :R], masks, grid), []
        for t, query in enumerate(frames[:, R:].unbind(1), start=R):
            readout = self._readout(features[:, t], features[:, :t], planes)
            objects = readout.view(len(readout), count, -1, *grid)  # [B, O, 1 + D', h, w]
            coarse, support = objects[:, :, 0], objects[:, :, 1:]
            refine = functools.partial(self._refine, query, support, coarse)
            predictions.append(Prediction(coarse, refinement_rounds(refine, coarse, self.rounds, valid)))
            if t + 1 < features.shape[1]:
                kept = coarse if self.rollout == "copied" else predictions[-1].rounds[-1].softmax(1)[:, 1:]
                remembered = self._remember(query[:, None], kept.detach()[:, None], grid)
                planes = torch.cat([planes, remembered], dim=1)
        return predictions

    def label_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The finest grid on which labels tell this term more: that of the decoder's answers.

        Args:
            grid: h and w of the features.
        """
        factor = max(1, self.output_stride // 4) if self.segmenter.settings["upsample"] else 1
        return factor * grid[0], factor * grid[1]

    def _remember(self, frames: Tensor, masks: Tensor, grid: tuple[int, int]) -> Tensor:
        """What is read out of reference frames: each object's mask beside V's features, [B, R, P, h, w]."""
        embedded = self.segmenter.embed(frames.flatten(0, 1), masks.flatten(0, 1)).features.float()
        on_grid = _on_grid(masks.flatten(0, 1), grid).flatten(0, 1)[:, None]
        return torch.cat([on_grid, embedded], dim=1).view(*masks.shape[:2], -1, *grid)

    def _readout(self, query: Tensor, memory: Tensor, planes: Tensor) -> Tensor:
        temperature = self._temperature(query.shape[1])
        if self.k is None:
            return dense_readout(query, memory, planes, temperature=temperature)
        return nearest_attention(query, memory, planes, k=self.k, temperature=temperature)

    def _refine(self, query: Tensor, support: Tensor, coarse: Tensor, masks: Tensor) -> Tensor:
        return self.segmenter.refine(query, support, masks, coarse)

    def _temperature(self, channels: int) -> float:
        return math.sqrt(channels) if isinstance(self.temperature, str) else self.temperature


def choose_objects(
    labels: Tensor, draws: Tensor, num_clusters: int, num_objects: int
) -> tuple[Tensor, Tensor]:
    """Which clusters become objects: a random few of those that the reference frames show.

    Args:
        labels: of the reference frames, [B, R, h, w]; negative where unknown.
        draws: the sample's own random numbers, [B, D].
        num_clusters: labels lie below it.
        num_objects: slots.

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
        chosen: cluster of each slot, [B, O].
        valid: [B, O].
    """
    is_object = (labels[:, None] == chosen[:, :, None, None]) & valid[:, :, None, None]
    slot = torch.arange(1, chosen.shape[1] + 1, device=labels.device)[:, None, None]
    return torch.where(labels < 0, -1, (is_object * slot).sum(1))


def cross_entropy(log_probs: Tensor, target: Tensor) -> Tensor:
    """Mean over the known cells of -log_probs at the target; 0, with a gradient of 0, when none is known.

    Args:
        log_probs: [B, K, h', w'].
        target: [B, h, w], copied to the grid of `log_probs` by nearest cell centres.
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


def _on_grid(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    if masks.shape[-2:] == grid:
        return masks
    return F.interpolate(masks, grid, mode="area")
