"""Any objective and mask-embedded segmentation beside it: the plug-in of Li et al. 2023 (table 4f)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vosnet.errors import UsageError
from vosnet.models.segmenter import MaskSegmenter
from vosnet.objectives.base import Objective, ObjectiveOutput, RefreshJob
from vosnet.objectives.mask_embedding import MaskEmbedding
from vosnet.objectives.pseudo_masks import (
    ClusterSettings,
    PseudoMasks,
    refresh_interval,
    write_pseudo_masks,
)
from vosnet.transforms import Clip


class PlusSegmentation(Objective):
    """base + segmentation_weight * L_seg, with pseudo masks of the encoder as it is.

    The segmentation term sees the clip's frames as they are, in a pass of its own through the encoder: what
    the base objective does to its input (missing colors, patches) stays its own matter. Its affinity should
    be the one that masks are propagated with: `mask_embedding.normalize` and `.temperature`.

    Args:
        encoder: images to features, [N, 3, H, W] -> [N, C, h, w], with `output_stride`.
        base: name and keyword arguments of the other objective.
        segmentation_weight: of L_seg; ours, the paper states none.
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
        base: dict[str, Any],
        segmentation_weight: float = 1.0,
        clustering: dict[str, Any] | None = None,
        mask_embedding: dict[str, Any] | None = None,
        refresh_epochs: float | None = None,
        refresh_steps: int | None = None,
        refresh_minutes: float | None = None,
    ) -> None:
        super().__init__()
        if not segmentation_weight > 0:
            raise ValueError(
                f"segmentation_weight must be positive, got {segmentation_weight}; without the term, use "
                "the base objective by itself"
            )
        self.segmentation_weight = segmentation_weight
        self.base = _build_base(base, encoder)
        self.refresh_interval = refresh_interval(refresh_epochs, refresh_steps, refresh_minutes)
        try:
            self.clusters = ClusterSettings(**(clustering or {}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"clustering: {error}") from error
        stride, count = int(encoder.output_stride), self.clusters.num_clusters  # type: ignore[arg-type]
        try:
            self.segmentation = MaskEmbedding(stride, num_clusters=count, **(mask_embedding or {}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"mask_embedding: {error}") from error
        self.masks: PseudoMasks | None = None
        self._encode = self._run_encoder

    @property
    def encoder(self) -> nn.Module:  # type: ignore[override]
        """The base objective's: it is in the state once."""
        return self.base.encoder

    def compile_graphs(self, backend: str = "inductor") -> None:
        self.base.compile_graphs(backend)
        self._encode = torch.compile(self._run_encoder, fullgraph=True, dynamic=False, backend=backend)

    def forward(self, clip: Clip) -> ObjectiveOutput:
        """Both losses of one batch.

        Returns:
            total, and the terms of the base objective and of `MaskEmbedding.loss`, unweighted.
        """
        if self.masks is None:
            raise ValueError("the segmentation term needs pseudo masks: call refresh and use_refreshed first")
        output: ObjectiveOutput = self.base(clip)
        features = self._features(clip.frames)
        grid = self.segmentation.label_grid((features.shape[-2], features.shape[-1]))
        labels = self.masks.labels(clip, grid)
        loss, terms = self.segmentation.loss(features, clip.frames, labels, clip.draws)
        total = output.total + self.segmentation_weight * loss
        return ObjectiveOutput(total, {**output.terms, **terms})

    def conflicts(self, *, clip_len: int, color_space: str) -> Iterator[tuple[str, str]]:
        if clip_len < 2:
            yield "base", f"base: the segmentation term needs data.clip_len of at least 2, got {clip_len}"
        for key, message in self.base.conflicts(clip_len=clip_len, color_space=color_space):
            yield "base", f"base.{message}" if message.startswith(key) else f"base: {message}"

    def after_step(self) -> None:
        self.base.after_step()

    def collapse_reason(self, terms: dict[str, float]) -> str | None:
        return self.base.collapse_reason(terms)

    def kept_segmenter(self) -> MaskSegmenter | None:
        return self.segmentation.segmenter

    def refresh(self, job: RefreshJob) -> Iterator[str]:
        return write_pseudo_masks(job, self.encoder, self.clusters)

    def use_refreshed(self, folder: Path) -> None:
        self.masks = PseudoMasks(folder)

    def _features(self, frames: Tensor) -> Tensor:
        """Of the frames that the term reads, with gradient only where it is used, [B, T, C, h, w]."""
        images = frames.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(self.segmentation.encoder_gradient and torch.is_grad_enabled()):
            features = self._encode(images)
        return features.view(*frames.shape[:2], *features.shape[1:])

    def _run_encoder(self, images: Tensor) -> Tensor:
        features: Tensor = self.encoder(images)
        return features


def _build_base(base: dict[str, Any], encoder: nn.Module) -> Objective:
    from vosnet.objectives.table import build_objective  # the table lists this class too

    arguments = dict(base)
    name = str(arguments.pop("name", None))
    if name in {"plus_segmentation", "unified"}:
        raise ValueError(f"base: {name} has a segmentation term of its own")
    try:
        built = build_objective(name, encoder, **arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"base: {error}") from error
    except UsageError as error:
        raise ValueError(f"base: {error.message}. {error.hint}") from error
    if built.refresh_interval is not None:
        raise ValueError(f"base: {name} makes files of its own at intervals")
    return built
