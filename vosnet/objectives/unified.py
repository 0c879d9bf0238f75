"""Unified Mask Embedding and Correspondence Learning (Li et al., CVPR 2023)."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vosnet.errors import UsageError
from vosnet.models import ProjectionHead
from vosnet.models.segmenter import MaskSegmenter
from vosnet.objectives.anchors import grid_index
from vosnet.objectives.base import Objective, ObjectiveOutput, RefreshJob
from vosnet.objectives.contrast import anchor_cross_entropy
from vosnet.objectives.equivariance import (
    Alignment,
    PairLoss,
    feature_variance,
    frame_variance,
    long_term_assignments,
    long_term_pairs,
    pair_loss,
    short_term_pairs,
)
from vosnet.objectives.gather import gather_ranks, world
from vosnet.objectives.mask_embedding import MaskEmbedding
from vosnet.objectives.pseudo_masks import (
    ClusterSettings,
    PseudoMasks,
    refresh_interval,
    write_pseudo_masks,
)
from vosnet.transforms import Clip

CHUNK_SIZE = 2048  # cells per block of the long-term loss; changes memory and time, not the result
_GIVEN_BY_CODE = ("output_stride", "num_clusters")


class Unified(Objective):
    """short_term_weight * L_short + long_term_weight * L_long + segmentation_weight * L_seg.

    Clips are "paired": frame 0, its successor, then frames at least `long_term_gap` away (`data.order`).
    L_short compares frames 0 and 1, L_long frame 0 with each distant one, L_seg takes the last frame as the
    query and those before as its references. A term of weight 0 is not computed, its networks are not made.
    With L_seg alone and `mask_embedding.encoder_gradient` false, the encoder stays what an earlier phase made
    of it, running statistics included, and only V and D learn.

    The paper gives the equations, M = 5 clusters, the refresh every 10 epochs and the gap of 5 frames. All
    other defaults are ours.

    Args:
        encoder: images to features, [N, 3, H, W] -> [N, C, h, w], with `feature_dim` and `output_stride`.
        short_term_weight: of L_short.
        long_term_weight: of L_long.
        segmentation_weight: of L_seg.
        loss: what "~" is; see `vosnet.objectives.equivariance`.
        temperature: divides the cosines of "infonce".
        alignment: how the long-term affinity copies: "hard" or "soft"; see
            `vosnet.objectives.equivariance`.
        affinity_temperature: divides the cosines of the soft affinity.
        embedding_dim: the two correspondence terms compare a projection of the features to so many channels,
            which is dropped after training; None: the features themselves.
        hidden_dim: channels inside that projection; None: the encoder's.
        grid_size: the long-term term's cells of I_t are grid_size ** 2, on a lattice shifted at random.
        short_term_grid_size: the same of the short-term term; cells nearer to each other than Phi enlarges
            look alike and must not be told apart.
        stop_gradient: "target": the right sides, Phi(E(.)), are constants and their frames run without
            gradient, unless the segmentation term needs it; "none": both sides learn.
        long_term_gap: smallest distance of the distant frames from frame 0; clips that do not keep it are
            refused.
        min_frame_variance: training stops when the features' variance within frames falls below it; see
            `frame_variance`. Collapse shows there first: batch norm keeps the frames apart for long.
        clustering: keyword arguments of `ClusterSettings`.
        mask_embedding: keyword arguments of `MaskEmbedding`.
        refresh_epochs: pseudo masks are made anew so often; the default, when no clock is given, is 10.
        refresh_steps: instead of epochs.
        refresh_minutes: instead of epochs, for short runs.

    Raises:
        ValueError: an argument is out of range; the message begins with its name.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        short_term_weight: float = 1.0,
        long_term_weight: float = 1.0,
        segmentation_weight: float = 1.0,
        loss: PairLoss = "infonce",
        temperature: float = 0.1,
        alignment: Alignment = "hard",
        affinity_temperature: float = 0.05,
        embedding_dim: int | None = None,
        hidden_dim: int | None = None,
        grid_size: int = 8,
        short_term_grid_size: int = 4,
        stop_gradient: Literal["target", "none"] = "target",
        long_term_gap: int = 5,
        min_frame_variance: float = 1e-3,
        clustering: dict[str, Any] | None = None,
        mask_embedding: dict[str, Any] | None = None,
        refresh_epochs: float | None = None,
        refresh_steps: int | None = None,
        refresh_minutes: float | None = None,
    ) -> None:
        super().__init__()
        weights = {
            "short_term_weight": short_term_weight,
            "long_term_weight": long_term_weight,
            "segmentation_weight": segmentation_weight,
        }
        _check_weights(weights)
        _check_choice("loss", loss, ("infonce", "cosine"))
        _check_choice("alignment", alignment, ("hard", "soft"))
        _check_choice("stop_gradient", stop_gradient, ("target", "none"))
        for name, value in (
            ("temperature", temperature),
            ("affinity_temperature", affinity_temperature),
        ):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        clustering, mask_embedding = clustering or {}, mask_embedding or {}
        _check_keys("clustering", clustering, [f.name for f in dataclasses.fields(ClusterSettings)])
        _check_keys("mask_embedding", mask_embedding, _mask_embedding_keys())
        self.encoder = encoder
        self.short_term_weight, self.long_term_weight = short_term_weight, long_term_weight
        self.segmentation_weight = segmentation_weight
        self.loss, self.temperature = loss, temperature
        self.alignment = alignment
        self.affinity_temperature, self.grid_size = affinity_temperature, grid_size
        self.short_term_grid_size = short_term_grid_size
        self.stop_gradient, self.long_term_gap = stop_gradient, long_term_gap
        self.min_frame_variance = min_frame_variance
        self.clusters = ClusterSettings(**clustering)
        self.masks: PseudoMasks | None = None
        self.segmentation: MaskEmbedding | None = None
        self.head: ProjectionHead | None = None
        if embedding_dim and (short_term_weight or long_term_weight):
            feature_dim = int(encoder.feature_dim)  # type: ignore[arg-type]
            self.head = ProjectionHead(feature_dim, hidden_dim or feature_dim, embedding_dim)
        interval = refresh_interval(refresh_epochs, refresh_steps, refresh_minutes)
        if segmentation_weight:
            stride, count = int(encoder.output_stride), self.clusters.num_clusters  # type: ignore[arg-type]
            self.segmentation = MaskEmbedding(stride, num_clusters=count, **mask_embedding)
            self.refresh_interval = interval
        if not self.trains_encoder:
            encoder.requires_grad_(False)
        self._encode = self._run_encoder
        self._short_pairs, self._long_pairs = short_term_pairs, self._long
        self._assignments = long_term_assignments

    @property
    def trains_encoder(self) -> bool:
        through_masks = self.segmentation is not None and self.segmentation.encoder_gradient
        return bool(self.short_term_weight or self.long_term_weight) or through_masks

    def train(self, mode: bool = True) -> Unified:  # noqa: FBT001 (nn.Module's)
        """Training mode, except for an encoder that stays as it is: also its running statistics do."""
        super().train(mode)
        if not self.trains_encoder:
            self.encoder.eval()
        return self

    def compile_graphs(self, backend: str = "inductor") -> None:
        whole = functools.partial(torch.compile, fullgraph=True, dynamic=False, backend=backend)
        self._encode = whole(self._run_encoder)
        self._short_pairs, self._long_pairs = whole(short_term_pairs), whole(self._long)
        self._assignments = whole(long_term_assignments)

    def forward(self, clip: Clip) -> ObjectiveOutput:
        """Losses and watch values of one batch.

        Returns:
            total, and terms: `short_term`, `long_term` and what the segmentation term names (unweighted, if
            their weight is not 0), `feature_variance` and `frame_variance` (the same within single frames).

        Raises:
            UsageError: the clips are not paired, or their distant frames are too near.
        """
        self._check_clip(clip)
        features = self.embed(clip)
        total = clip.frames.new_zeros((), dtype=torch.float32)
        terms: dict[str, Tensor] = {}
        with torch.autocast(clip.frames.device.type, enabled=False):
            if self.short_term_weight:
                loss = self.short_term(features, clip)
                total, terms["short_term"] = total + self.short_term_weight * loss, loss.detach()
            if self.long_term_weight:
                loss = self.long_term(features, clip)
                total, terms["long_term"] = total + self.long_term_weight * loss, loss.detach()
            seen = torch.cat([*features.compared.values(), *features.view.values()])
            terms["feature_variance"] = feature_variance(seen)
            terms["frame_variance"] = frame_variance(seen)
        if self.segmentation is not None:
            loss, more = self._segmentation_loss(features, clip)
            total, terms = total + self.segmentation_weight * loss, terms | more
        return ObjectiveOutput(total, terms)

    def embed(self, clip: Clip) -> Features:
        """Features of the frames that the terms need, with gradient only where one of them needs it."""
        T = clip.frames.shape[1]
        distant = set(range(2, T)) if self.long_term_weight else set()
        views = {*([0] if self.short_term_weight else []), *distant}
        frames = {*([1] if self.short_term_weight else []), *([0, *distant] if distant else [])}
        if self.stop_gradient == "none":
            learning, learning_views = frames, views
        elif self.alignment == "hard":
            learning, learning_views = frames - {1}, views - distant
        else:
            learning, learning_views = frames & {0}, views
        if self.segmentation is not None:
            frames = set(range(T))
            learning = frames if self.segmentation.encoder_gradient else learning
        found = self._embed(clip, learning, learning_views)
        with torch.no_grad():
            fixed = self._embed(clip, frames - learning, views - learning_views)
        return Features(*({**ours, **theirs} for ours, theirs in zip(found, fixed, strict=True)))

    def _embed(self, clip: Clip, frames: set[int], views: set[int]) -> tuple[dict[int, Tensor], ...]:
        """The contents of `Features` for some frames, by one pass."""
        images = [clip.frames[:, t] for t in sorted(frames)] + [clip.view[:, t] for t in sorted(views)]
        if not images:
            return {}, {}, {}
        encoded, compared = (torch.split(made, len(clip.frames)) for made in self._encode(_stacked(images)))
        return (
            dict(zip(sorted(frames), encoded, strict=False)),
            dict(zip(sorted(frames), compared, strict=False)),
            dict(zip(sorted(views), compared[len(frames) :], strict=True)),
        )

    def short_term(self, features: Features, clip: Clip) -> Tensor:
        """L_short: E(Phi(I_0)) against Phi(E(I_1)), scalar."""
        following = self._target(features.compared[1])
        h, w = following.shape[-2:]
        index = grid_index(clip.draws[:, :2], h, w, self.short_term_grid_size)
        return self._pair_loss(*self._short_pairs(features.view[0], following, clip.theta, index))

    def long_term(self, features: Features, clip: Clip) -> Tensor:
        """L_long: E(I_0) against the aligned Phi(E(I_t')), mean over the distant frames, scalar."""
        losses = []
        for t in range(2, clip.frames.shape[1]):
            distant = features.compared[t]
            index = grid_index(clip.draws[:, 2:4], distant.shape[-2], distant.shape[-1], self.grid_size)
            if self.alignment == "hard":
                rows, anchors, label = self._assignments(
                    features.compared[0], features.view[t], distant, clip.theta, index
                )
                label = label + world()[0] * len(anchors)
                losses.append(self._chosen(rows, gather_ranks(anchors), label))
            else:
                target = self._target(distant)
                pairs = self._long_pairs(features.compared[0], features.view[t], target, clip.theta, index)
                losses.append(self._pair_loss(*pairs))
        return torch.stack(losses).mean()

    def collapse_reason(self, terms: dict[str, float]) -> str | None:
        variance = terms["frame_variance"]
        if variance >= self.min_frame_variance:
            return None
        return (
            f"the features of all cells of a frame became equal: frame_variance is {variance:.2e}, below "
            f"objective.min_frame_variance ({self.min_frame_variance:.0e})"
        )

    def conflicts(self, *, clip_len: int, color_space: str) -> Iterator[tuple[str, str]]:
        del color_space
        least = 3 if self.long_term_weight else 2
        if clip_len < least:
            key = "long_term_weight" if self.long_term_weight else "short_term_weight"
            yield key, f"{key}: this term needs data.clip_len of at least {least}, got {clip_len}"

    def kept_segmenter(self) -> MaskSegmenter | None:
        return None if self.segmentation is None else self.segmentation.segmenter

    def refresh(self, job: RefreshJob) -> Iterator[str]:
        return write_pseudo_masks(job, self.encoder, self.clusters)

    def use_refreshed(self, folder: Path) -> None:
        self.masks = PseudoMasks(folder)

    def _segmentation_loss(self, features: Features, clip: Clip) -> tuple[Tensor, dict[str, Tensor]]:
        if self.segmentation is None or self.masks is None:
            raise ValueError("the segmentation term needs pseudo masks: call refresh and use_refreshed first")
        stacked = torch.stack([features.main[t] for t in range(clip.frames.shape[1])], dim=1)
        labels = self.masks.labels(clip, self.segmentation.label_grid((stacked.shape[-2], stacked.shape[-1])))
        return self.segmentation.loss(stacked, clip.frames, labels, clip.draws)

    def _run_encoder(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features: Tensor = self.encoder(images)
        return features, features if self.head is None else self.head(features)

    def _long(self, query: Tensor, moved: Tensor, distant: Tensor, theta: Tensor, index: Tensor) -> Any:
        return long_term_pairs(query, moved, distant, theta, index, temperature=self.affinity_temperature)

    def _target(self, features: Tensor) -> Tensor:
        return features.detach() if self.stop_gradient == "target" else features

    def _pair_loss(self, rows: Tensor, targets: Tensor) -> Tensor:
        return pair_loss(
            rows,
            gather_ranks(targets),
            first=world()[0] * len(rows),
            loss=self.loss,
            temperature=self.temperature,
        )

    def _chosen(self, rows: Tensor, anchors: Tensor, label: Tensor) -> Tensor:
        if self.loss == "cosine":
            return 1 - (rows * anchors[label]).sum(1).mean()
        every = torch.arange(len(rows), device=rows.device)
        return anchor_cross_entropy(
            rows, every, anchors, label, temperature=self.temperature, chunk_size=CHUNK_SIZE
        )

    def _check_clip(self, clip: Clip) -> None:
        if clip.cut is None:  # frames that come from no video have no distance
            return
        gap = clip.cut.frame_ids - clip.cut.frame_ids[:, :1]
        if bool((gap[:, 1] != 1).any()) and self.short_term_weight:
            found = int(gap[gap[:, 1] != 1][0, 1])
            message = f"the short-term term needs frame 1 to follow frame 0, but it lies {found} away"
            raise UsageError("E150", message, "Set data.order=paired and data.frame_gap=1.")
        if self.long_term_weight and bool((gap[:, 2:].abs() < self.long_term_gap).any()):
            message = (
                f"the long-term term needs frames at least {self.long_term_gap} away from frame 0, but "
                f"some are {int(gap[:, 2:].abs().min())} away"
            )
            hint = f"Set data.order=paired and data.distant_gap to a range from {self.long_term_gap} up."
            raise UsageError("E150", message, hint)


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of a batch by frame of the clip, each [B, C, h, w].

    Args:
        main: of the frames, as the encoder makes them.
        compared: of the frames, as the correspondence terms compare them: projected, if there is a head.
        view: of the transformed frames, the same.
    """

    main: dict[int, Tensor]
    compared: dict[int, Tensor]
    view: dict[int, Tensor]


def _stacked(images: list[Tensor]) -> Tensor:
    return torch.cat(images).contiguous(memory_format=torch.channels_last)


def _check_weights(weights: Mapping[str, float]) -> None:
    for name, value in weights.items():
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    if not any(weights.values()):
        raise ValueError(f"{', '.join(weights)}: at least one must be positive")


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _check_keys(section: str, given: Mapping[str, Any], allowed: list[str]) -> None:
    for key in given:
        if key not in allowed:
            raise ValueError(f"{section} has no key {key!r}; it takes {', '.join(allowed)}")


def _mask_embedding_keys() -> list[str]:
    return [key for key in inspect.signature(MaskEmbedding).parameters if key not in _GIVEN_BY_CODE]
