"""Mask-embedded segmentation learning (Li et al., CVPR 2023): VOS itself, on pseudo masks."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vosnet.errors import SettingError
from vosnet.matching import dense_readout, nearest_attention
from vosnet.models.segmenter import MaskSegmenter, SegmenterSettings, refinement_rounds
from vosnet.objectives.base import RefreshInterval, RefreshJob
from vosnet.objectives.mask_targets import (
    choose_objects,
    coarse_log_probs,
    cross_entropy,
    mean_iou,
    object_target,
)
from vosnet.objectives.pseudo_masks import PseudoMasks, write_pseudo_masks
from vosnet.objectives.settings import ObjectiveSettings, check_at_least, check_positive
from vosnet.objectives.video_clusters import ClusterSettings
from vosnet.transforms import Clip

PUBLISHED_EPOCHS = 10


@dataclass(frozen=True, kw_only=True)
class MaskEmbeddingSettings(SegmenterSettings):
    """Options of the mask embedding, beside those of its networks (`SegmenterSettings`).

    At test time there is one known mask, every later reference holds an answer, and cells copy from a few
    neighbors. `rollout` and `k` train for that. The paper states the equations and three rounds at test time;
    every default here is ours.

    Args:
        num_objects: clusters of a clip that become objects, drawn among those that the references show;
            the others are background.
        num_references: reference frames, the latest before the last frame; None takes all.
        rollout: only the first frame's mask is given. Every later frame is a query in its turn and then a
            reference for the frames after it, with the mask that was "copied" there or with the "decoded"
            one, both without gradient. None: all masks but the last are given.
        k: neighbors per query cell, as when masks are propagated; None: the softmax runs over all cells.
        rounds: refinement rounds in training.
        temperature: divides the affinity; "sqrt_dim" is the root of the number of feature channels.
        normalize: L2-normalize the features.
        coarse_weight: weight of the coarse mask's own cross-entropy.
        encoder_gradient: whether the loss trains the visual encoder.
    """

    num_objects: int = 2
    num_references: int | None = None
    rollout: Literal["copied", "decoded"] | None = None
    k: int | None = None
    rounds: int = 1
    temperature: float | Literal["sqrt_dim"] = 0.05
    normalize: bool = True
    coarse_weight: float = 0.0
    encoder_gradient: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, self, "num_objects", "num_references", "k", "rounds")
        check_positive(self, "temperature")


@dataclass(frozen=True, kw_only=True)
class SegmentationSettings(ObjectiveSettings):
    """Options of the segmentation term.

    Args:
        segmentation_weight: of L_seg; ours, the paper states none.
        clustering: how videos are divided into pseudo masks.
        mask_embedding: how masks are predicted.
        refresh_epochs: pseudo masks are made anew so often; the default, when no clock is given, is 10.
        refresh_steps: instead of epochs.
        refresh_minutes: instead of epochs, for short runs.
    """

    segmentation_weight: float = 1.0
    clustering: ClusterSettings = field(default_factory=ClusterSettings)
    mask_embedding: MaskEmbeddingSettings = field(default_factory=MaskEmbeddingSettings)
    refresh_epochs: float | None = None
    refresh_steps: int | None = None
    refresh_minutes: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        clusters, objects = self.clustering.num_clusters, self.mask_embedding.num_objects
        if objects > clusters:
            message = f"must be at most clustering.num_clusters ({clusters}), got {objects}"
            raise SettingError("mask_embedding.num_objects", message)
        self.refresh_interval  # noqa: B018 - raises when the clocks contradict each other

    @property
    def refresh_interval(self) -> RefreshInterval:
        """The clock that is given, or the published one."""
        clocks = (self.refresh_epochs, self.refresh_steps, self.refresh_minutes)
        given = any(clock is not None for clock in clocks)
        return RefreshInterval(*clocks) if given else RefreshInterval(epochs=PUBLISHED_EPOCHS)


class Prediction(NamedTuple):
    """The masks predicted for one query frame.

    Args:
        coarse: Y-bar_q, masks copied from the reference frames, [B, O, h, w] in [0, 1].
        rounds: aggregated logits of each refinement round, [B, 1 + O, h', w'], channel 0 is background.
    """

    coarse: Tensor
    rounds: list[Tensor]


class SegmentationTerm(nn.Module):
    """L_seg of Li et al. 2023 around any visual encoder, with the pseudo masks that it learns from.

    The last frame of a clip is the query, the frames before it are references with known masks:
    A = softmax over all reference cells of <I_r, I_q> / temperature, V_q = A^T V([I_r, Y_r]),
    Y-bar_q = A^T Y_r, Y-hat_q = D([V_q, V([I_q, Y-bar_q])]). Each pseudo-mask cluster that is chosen is one
    object; the objects of a clip run as one batch and are aggregated softly.

    Args:
        output_stride: the visual encoder's.
        settings: the options.
    """

    def __init__(self, output_stride: int, settings: SegmentationSettings) -> None:
        super().__init__()
        self.clustering, self.settings = settings.clustering, settings.mask_embedding
        self.segmenter = MaskSegmenter(output_stride=output_stride, **self.settings.networks())
        self.masks: PseudoMasks | None = None

    @property
    def encoder_gradient(self) -> bool:
        """Whether the loss trains the visual encoder."""
        return self.settings.encoder_gradient

    def refresh(self, job: RefreshJob, encoder: nn.Module) -> Iterator[str]:
        """Make pseudo masks with the encoder as it is; see `Objective.refresh`."""
        return write_pseudo_masks(job, encoder, self.clustering)

    def use_refreshed(self, folder: Path) -> None:
        """Learn from now on from the pseudo masks in `folder`."""
        self.masks = PseudoMasks(folder)

    def forward(self, features: Tensor, clip: Clip) -> tuple[Tensor, dict[str, Tensor]]:
        """`loss` of a clip, on its pseudo masks.

        Args:
            features: of the visual encoder, [B, T, C, h, w].
            clip: the batch.

        Raises:
            ValueError: no pseudo masks were made yet.
        """
        if self.masks is None:
            raise ValueError("the segmentation term needs pseudo masks: call refresh and use_refreshed first")
        labels = self.masks.labels(clip, self.segmenter.answer_grid((features.shape[-2], features.shape[-1])))
        return self.loss(features, clip.frames, labels, clip.draws)

    def loss(
        self, features: Tensor, frames: Tensor, labels: Tensor, draws: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the masks of the queries, averaged over queries, rounds and known cells.

        Args:
            features: of the visual encoder, [B, T, C, h, w], T at least 2.
            frames: as the visual encoder takes them, [B, T, 3, H, W].
            labels: cluster of every cell, [B, T, h', w'] int64, on a grid as fine as the features' or finer
                (`MaskSegmenter.answer_grid`); negative where unknown. An unknown cell shows no object as a
                reference and does not count as a query.
            draws: the sample's own random numbers, [B, D]; they choose the objects.

        Returns:
            Scalar with gradient (0 where nothing is known), and detached `segmentation` (its value),
            `coarse` (cross-entropy of the coarse masks), `objects` (per clip) and `iou` (of the last round
            of the last frame).
        """
        own = self.settings
        first = 0 if own.num_references is None else max(0, features.shape[1] - 1 - own.num_references)
        features, frames, labels = features[:, first:], frames[:, first:], labels[:, first:]
        given = 1 if own.rollout else features.shape[1] - 1
        chosen, valid = choose_objects(
            labels[:, :given], draws, self.clustering.num_clusters, own.num_objects
        )
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
        return loss + own.coarse_weight * coarse if own.coarse_weight else loss, terms

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
        if self.settings.normalize:
            features = F.normalize(features, dim=2)
        planes, predictions = self._remember(frames[:, :R], masks, grid), []
        for t, query in enumerate(frames[:, R:].unbind(1), start=R):
            readout = self._readout(features[:, t], features[:, :t], planes)
            objects = rearrange(readout, "b (o d) h w -> b o d h w", o=count)  # d = 1 + D'
            coarse, support = objects[:, :, 0], objects[:, :, 1:]
            refine = functools.partial(self.segmenter.refine, query, support, copied=coarse)
            rounds = refinement_rounds(refine, coarse, self.settings.rounds, valid)
            predictions.append(Prediction(coarse, rounds))
            if t + 1 < features.shape[1]:
                kept = coarse if self.settings.rollout == "copied" else rounds[-1].softmax(1)[:, 1:]
                remembered = self._remember(query[:, None], kept.detach()[:, None], grid)
                planes = torch.cat([planes, remembered], dim=1)
        return predictions

    def _remember(self, frames: Tensor, masks: Tensor, grid: tuple[int, int]) -> Tensor:
        """What is read out of reference frames: each object's mask beside V's features, [B, R, P, h, w]."""
        flat = masks.flatten(0, 1)
        embedded = self.segmenter.embed(frames.flatten(0, 1), flat).features.float()
        on_grid = flat if flat.shape[-2:] == grid else F.interpolate(flat, grid, mode="area")
        planes = torch.cat([on_grid.flatten(0, 1)[:, None], embedded], dim=1)
        return rearrange(planes, "(b r o) d h w -> b r (o d) h w", r=masks.shape[1], o=masks.shape[2])

    def _readout(self, query: Tensor, memory: Tensor, planes: Tensor) -> Tensor:
        given, k = self.settings.temperature, self.settings.k
        temperature = math.sqrt(query.shape[1]) if isinstance(given, str) else given
        if k is None:
            return dense_readout(query, memory, planes, temperature=temperature)
        return nearest_attention(query, memory, planes, k=k, temperature=temperature)
