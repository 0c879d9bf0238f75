"""Any objective and mask-embedded segmentation beside it: the plug-in of Li et al. 2023 (table 4f)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vosnet.errors import SettingError
from vosnet.models.segmenter import MaskSegmenter
from vosnet.objectives.base import Objective, ObjectiveOutput, RefreshJob
from vosnet.objectives.segmentation_term import SegmentationSettings, SegmentationTerm
from vosnet.objectives.settings import ObjectiveSettings
from vosnet.transforms import Clip


@dataclass(frozen=True, kw_only=True)
class PlusSegmentationSettings(SegmentationSettings):
    """Options of `PlusSegmentation`: those of the term, and the other objective.

    Args:
        base: settings of the other objective; in a recipe, its section with its name.
    """

    base: ObjectiveSettings

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.base, SegmentationSettings):
            raise SettingError("base", "this objective has a segmentation term of its own")
        if not self.segmentation_weight > 0:
            raise SettingError(
                "segmentation_weight",
                f"must be positive, got {self.segmentation_weight}; without the term, use the base objective "
                "by itself",
            )

    def conflicts(self, *, clip_len: int, color_space: str) -> Iterator[tuple[str, str]]:
        for key, message in self.base.conflicts(clip_len=clip_len, color_space=color_space):
            yield f"base.{key}", message


class PlusSegmentation(Objective):
    """base + segmentation_weight * L_seg, with pseudo masks of the encoder as it is.

    The segmentation term sees the clip's frames as they are, in a pass of its own through the encoder: what
    the base objective does to its input (missing colors, patches) stays its own matter. Its affinity should
    be the one that masks are propagated with: `mask_embedding.normalize` and `.temperature`.

    Args:
        base: the other objective; its encoder has an `output_stride`.
        settings: the options of the term.
    """

    graphs = ("encode",)

    def __init__(self, base: Objective, settings: PlusSegmentationSettings) -> None:
        super().__init__()
        self.base, self.segmentation_weight = base, settings.segmentation_weight
        self.segmentation = SegmentationTerm(int(base.encoder.output_stride), settings)  # type: ignore[arg-type]
        self.refresh_interval = settings.refresh_interval

    @property
    def encoder(self) -> nn.Module:  # type: ignore[override]
        """The base objective's: it is in the state once."""
        return self.base.encoder

    def compile_graphs(self, backend: str = "inductor") -> None:
        self.base.compile_graphs(backend)
        super().compile_graphs(backend)

    def forward(self, clip: Clip) -> ObjectiveOutput:
        """Both losses of one batch.

        Returns:
            total, and the terms of the base objective and of `SegmentationTerm.loss`, unweighted.
        """
        output: ObjectiveOutput = self.base(clip)
        loss, terms = self.segmentation(self._features(clip.frames), clip)
        return ObjectiveOutput(output.total + self.segmentation_weight * loss, {**output.terms, **terms})

    def after_step(self) -> None:
        self.base.after_step()

    def collapse_reason(self, terms: dict[str, float]) -> str | None:
        return self.base.collapse_reason(terms)

    def kept_segmenter(self) -> MaskSegmenter | None:
        return self.segmentation.segmenter

    def refresh(self, job: RefreshJob) -> Iterator[str]:
        return self.segmentation.refresh(job, self.encoder)

    def use_refreshed(self, folder: Path) -> None:
        self.segmentation.use_refreshed(folder)

    def _features(self, frames: Tensor) -> Tensor:
        """Of the frames that the term reads, with gradient only where it is used, [B, T, C, h, w]."""
        images = frames.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(self.segmentation.encoder_gradient and torch.is_grad_enabled()):
            features = self.encode(images)
        return features.view(*frames.shape[:2], *features.shape[1:])

    def encode(self, images: Tensor) -> Tensor:
        features: Tensor = self.encoder(images)
        return features
