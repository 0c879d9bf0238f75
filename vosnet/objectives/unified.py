"""Unified Mask Embedding and Correspondence Learning (Li et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vosnet.errors import SettingError
from vosnet.models import ProjectionHead
from vosnet.models.segmenter import MaskSegmenter
from vosnet.objectives.base import Objective, ObjectiveOutput, RefreshJob
from vosnet.objectives.equivariance import Equivariance, EquivarianceSettings, Features
from vosnet.objectives.segmentation_term import SegmentationSettings, SegmentationTerm
from vosnet.objectives.settings import check_at_least
from vosnet.transforms import Clip


@dataclass(frozen=True, kw_only=True)
class UnifiedSettings(SegmentationSettings, EquivarianceSettings):
    """Options of `Unified`: those of its terms, and the projection. The defaults of that are ours.

    Args:
        embedding_dim: the two equivariance terms compare a projection of the features to so many channels,
            which is dropped after training; None: the features themselves.
        hidden_dim: channels inside that projection; None: the encoder's.
    """

    embedding_dim: int | None = None
    hidden_dim: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, self, "segmentation_weight")
        weights = ("short_term_weight", "long_term_weight", "segmentation_weight")
        if not any(getattr(self, name) for name in weights):
            raise SettingError(weights[0], f"at least one must be positive of {', '.join(weights)}")

    def conflicts(self, *, clip_len: int, color_space: str) -> Iterator[tuple[str, str]]:
        del color_space
        if self.long_term_weight and clip_len < 3:
            yield "long_term_weight", f"this term needs data.clip_len of at least 3, got {clip_len}"


class Unified(Objective):
    """short_term_weight * L_short + long_term_weight * L_long + segmentation_weight * L_seg.

    Clips are "paired", see `Equivariance`; L_seg takes the last frame as the query and those before as its
    references. A term of weight 0 is not computed, its networks are not made. With L_seg alone and
    `mask_embedding.encoder_gradient` false, the encoder stays what an earlier phase made of it, running
    statistics included, and only V and D learn.

    Args:
        encoder: images to features, [N, 3, H, W] -> [N, C, h, w], with `feature_dim` and `output_stride`.
        settings: the options.
    """

    graphs = ("encode",)

    def __init__(self, encoder: nn.Module, settings: UnifiedSettings) -> None:
        super().__init__()
        self.encoder, self.settings = encoder, settings
        self.equivariance = Equivariance(settings)
        self.segmentation: SegmentationTerm | None = None
        self.head: ProjectionHead | None = None
        if settings.embedding_dim and self.equivariance.active:
            feature_dim = int(encoder.feature_dim)  # type: ignore[arg-type]
            self.head = ProjectionHead(
                feature_dim, settings.hidden_dim or feature_dim, settings.embedding_dim
            )
        if settings.segmentation_weight:
            self.segmentation = SegmentationTerm(int(encoder.output_stride), settings)  # type: ignore[arg-type]
            self.refresh_interval = settings.refresh_interval
        if not self.trains_encoder:
            encoder.requires_grad_(False)

    @property
    def trains_encoder(self) -> bool:
        through_masks = self.segmentation is not None and self.segmentation.encoder_gradient
        return self.equivariance.active or through_masks

    def train(self, mode: bool = True) -> Unified:  # noqa: FBT001 (nn.Module's)
        """Training mode, except for an encoder that stays as it is: also its running statistics do."""
        super().train(mode)
        if not self.trains_encoder:
            self.encoder.eval()
        return self

    def compile_graphs(self, backend: str = "inductor") -> None:
        super().compile_graphs(backend)
        self.equivariance.compile_graphs(backend)

    def forward(self, clip: Clip) -> ObjectiveOutput:
        """Losses of one batch.

        Returns:
            total, and the terms of `Equivariance.loss` and `SegmentationTerm.loss`.

        Raises:
            UsageError: the clips are not paired, or their distant frames are too near.
        """
        self.equivariance.check_clip(clip)
        features = self.embed(clip)
        with torch.autocast(clip.frames.device.type, enabled=False):
            total, terms = self.equivariance.loss(features, clip)
        if self.segmentation is not None:
            stacked = torch.stack([features.main[t] for t in range(clip.frames.shape[1])], dim=1)
            loss, more = self.segmentation(stacked, clip)
            total, terms = total + self.settings.segmentation_weight * loss, terms | more
        return ObjectiveOutput(total, terms)

    def embed(self, clip: Clip) -> Features:
        """Features of the frames that the terms need, with gradient only where one of them needs it."""
        T = clip.frames.shape[1]
        frames, views = self.equivariance.needed(T)
        if self.segmentation is not None:
            frames = {t: self.segmentation.encoder_gradient or frames.get(t, False) for t in range(T)}
        found = Features({}, {}, {})
        self._embed(clip, [t for t in frames if frames[t]], [t for t in views if views[t]], found)
        with torch.no_grad():
            self._embed(clip, [t for t in frames if not frames[t]], [t for t in views if not views[t]], found)
        return found

    def _embed(self, clip: Clip, frames: list[int], views: list[int], found: Features) -> None:
        """Add the features of some frames to `found`, by one pass."""
        images = [clip.frames[:, t] for t in sorted(frames)] + [clip.view[:, t] for t in sorted(views)]
        if not images:
            return
        stacked = torch.cat(images).contiguous(memory_format=torch.channels_last)
        encoded, compared = (torch.split(made, len(clip)) for made in self.encode(stacked))
        found.main.update(zip(sorted(frames), encoded, strict=False))
        found.compared.update(zip(sorted(frames), compared, strict=False))
        found.view.update(zip(sorted(views), compared[len(frames) :], strict=True))

    def collapse_reason(self, terms: dict[str, float]) -> str | None:
        return self.equivariance.collapse_reason(terms)

    def kept_segmenter(self) -> MaskSegmenter | None:
        return None if self.segmentation is None else self.segmentation.segmenter

    def refresh(self, job: RefreshJob) -> Iterator[str]:
        assert self.segmentation is not None  # the term alone asks for it
        return self.segmentation.refresh(job, self.encoder)

    def use_refreshed(self, folder: Path) -> None:
        assert self.segmentation is not None
        self.segmentation.use_refreshed(folder)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features: Tensor = self.encoder(images)
        return features, features if self.head is None else self.head(features)
