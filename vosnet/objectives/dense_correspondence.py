"""Dense Unsupervised Learning for Video Segmentation (Araslanov et al., NeurIPS 2021)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vosnet.models import ProjectionHead
from vosnet.objectives.anchors import grid_index, take_cells
from vosnet.objectives.base import Objective, ObjectiveOutput
from vosnet.objectives.contrast import anchor_cross_entropy
from vosnet.objectives.gather import gather_ranks
from vosnet.objectives.settings import ObjectiveSettings, check_positive
from vosnet.runtime import current_ranks
from vosnet.transforms import Clip, nearest_index


class Targets(NamedTuple):
    """What the two losses compare, of one rank.

    Args:
        source: cell of the main view that each cell of the regularizing view shows, [B, h * w], -1 outside.
        anchors: main view, frame 0, [B * N, C].
        pseudo_label: own-clip anchor of every cell, [B, T, h * w], counted over this rank's B * N anchors.
        cross_view_source: main-view cells of the cross-view pairs, [B, M].
        cross_view: regularizing-view features of those pairs, [B * M, C].
    """

    source: Tensor
    anchors: Tensor
    pseudo_label: Tensor
    cross_view_source: Tensor
    cross_view: Tensor


@dataclass(frozen=True, kw_only=True)
class DenseCorrespondenceSettings(ObjectiveSettings):
    """Options of `DenseCorrespondence`.

    Args:
        hidden_dim: channels inside the projection head; None: the encoder's.
        embedding_dim: channels of the projection head's output.
        grid_size: anchors per clip are grid_size ** 2.
        cross_view_grid_size: cross-view pairs per clip are cross_view_grid_size ** 2.
        temperature: divides the cosine similarities.
        cross_view_weight: weight of the cross-view term (lambda).
        regularizing_norm: batch norm in the pass without gradient: "train" (batch statistics, running
            statistics follow both views; what the authors' configurations do) or "eval" (the paper's text).
        chunk_size: cells per block of the loss; changes memory and time, not the result.
    """

    hidden_dim: int | None = None
    embedding_dim: int = 128
    grid_size: int = 8
    cross_view_grid_size: int = 4
    temperature: float = 0.05
    cross_view_weight: float = 0.1
    regularizing_norm: Literal["train", "eval"] = "train"
    chunk_size: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "temperature")


class DenseCorrespondence(Objective):
    """Space-time self-training plus cross-view consistency, Eq. 3 and 4 of Araslanov et al. 2021.

    Anchors are sampled on a grid of frame 0 of every clip. The regularizing view assigns each of its cells
    to the most similar anchor of its own clip; the main view, aligned by the known transform, learns to give
    the same answer among the anchors of all clips. The cross-view term keeps corresponding cells of the two
    views of frame 0 alike. Frame 0 of the regularizing view runs with the main view, which needs gradients;
    its other frames run without ("reference-frame trick", supplement B.1).

    Nearest-neighbor warping moves whole cells, so it commutes with the softmax over anchors of a cell: rows
    of the feature map are picked, where the authors warp a map of B * N logits.

    Args:
        encoder: images to features, [N, 3, H, W] -> [N, C, h, w], with `feature_dim`.
        settings: the options.
    """

    graphs = ("_embed", "find_targets", "losses")

    def __init__(self, encoder: nn.Module, settings: DenseCorrespondenceSettings) -> None:
        super().__init__()
        feature_dim = int(encoder.feature_dim)  # type: ignore[arg-type]
        self.encoder, self.settings = encoder, settings
        self.head = ProjectionHead(feature_dim, settings.hidden_dim or feature_dim, settings.embedding_dim)

    def forward(self, clip: Clip) -> ObjectiveOutput:
        """Losses and watch values of one batch.

        Returns:
            total, and terms: `space_time` and `cross_view` (unweighted), `label_entropy` (relative to that of
            equally used anchors; a fall towards 0 is collapse), `mean_feature` (length of the mean feature of
            frame 0; 1 is collapse), `valid` (share of cells whose aligned source lies in the frame).
        """
        main, view, grid = self.embed(clip.frames, clip.view)
        with torch.autocast(main.device.type, enabled=False):
            targets = self.find_targets(main, view, clip.theta, clip.draws, grid)
            anchors, cross_view = gather_ranks(targets.anchors), gather_ranks(targets.cross_view)
            space_time, cross = self.losses(main, targets, anchors, cross_view, current_ranks().rank)
        total = space_time + self.settings.cross_view_weight * cross
        terms = {"space_time": space_time.detach(), "cross_view": cross.detach()}
        return ObjectiveOutput(total, terms | watch_terms(main.detach(), targets))

    def embed(self, frames: Tensor, view: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """L2-normalized embeddings of both views with the fewest activations kept for the backward pass.

        Args:
            frames: main view, [B, T, 3, H, W].
            view: regularizing view, [B, T, 3, H, W]; only frame 0 gets a gradient.

        Returns:
            Main view [B, T, h * w, C], regularizing view [B, T, h * w, C], and (h, w).
        """
        B, T = frames.shape[:2]
        if T < 2:
            raise ValueError(f"a clip needs an anchor frame and at least one more, got T = {T}")
        learning = torch.cat([frames.flatten(0, 1), view[:, 0]]).contiguous(memory_format=torch.channels_last)
        still = view[:, 1:].flatten(0, 1).contiguous(memory_format=torch.channels_last)
        embedded, grid = self._embed(learning)
        with torch.no_grad():
            mode = self.training
            self.train(mode and self.settings.regularizing_norm == "train")
            fixed, _ = self._embed(still)
            self.train(mode)
        main = rearrange(embedded[: B * T], "(b t) p c -> b t p c", b=B)
        others = rearrange(fixed, "(b t) p c -> b t p c", b=B)
        return main, torch.cat([embedded[B * T :, None], others], dim=1), grid

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        embedded = self.head(self.encoder(images))
        h, w = embedded.shape[-2:]
        return F.normalize(rearrange(embedded, "n c h w -> n (h w) c").float(), dim=2), (h, w)

    def find_targets(
        self, main: Tensor, view: Tensor, theta: Tensor, draws: Tensor, grid: tuple[int, int]
    ) -> Targets:
        """Sample anchors and cross-view pairs by `draws`; see `make_targets`."""
        anchor_index = grid_index(draws[:, :2], *grid, self.settings.grid_size)
        cross_view_index = grid_index(draws[:, 2:4], *grid, self.settings.cross_view_grid_size)
        return make_targets(main, view, nearest_index(theta, *grid), anchor_index, cross_view_index)

    def losses(
        self, main: Tensor, targets: Targets, anchors: Tensor, cross_view: Tensor, rank: int
    ) -> tuple[Tensor, Tensor]:
        """Space-time and cross-view loss of this rank's cells against the anchors of all ranks.

        Args:
            main: main view, [B, T, h * w, C].
            targets: of this rank.
            anchors, cross_view: those of all ranks in rank order, [ranks * B * N, C], [ranks * B * M, C].
            rank: this process.
        """
        B, T, P, C = main.shape
        first_cell = torch.arange(B * T, device=main.device).view(B, T, 1) * P
        source = torch.where(targets.source[:, None] >= 0, targets.source[:, None] + first_cell, -1)
        label = targets.pseudo_label + rank * targets.anchors.shape[0]
        compare = functools.partial(
            anchor_cross_entropy,
            main.reshape(-1, C),
            temperature=self.settings.temperature,
            chunk_size=self.settings.chunk_size,
        )
        # frame 0 holds the anchors themselves and does not count
        space_time = compare(source[:, 1:].flatten(), anchors, label[:, 1:].flatten())
        pairs = targets.cross_view_source
        pair_source = torch.where(pairs >= 0, pairs + first_cell[:, 0, :], -1).flatten()
        pair_label = torch.arange(pairs.numel(), device=main.device) + rank * pairs.numel()
        return space_time, compare(pair_source, cross_view, pair_label)


def make_targets(
    main: Tensor, view: Tensor, source: Tensor, anchor_index: Tensor, cross_view_index: Tensor
) -> Targets:
    """Anchors, pseudo labels and cross-view pairs of one batch.

    The pseudo label of a cell is the anchor of its own clip with the largest cosine similarity in the
    regularizing view, the lowest index among equals; no gradient passes through it.

    Args:
        main: main view, [B, T, P, C] with P = h * w.
        view: regularizing view, [B, T, P, C].
        source: from `nearest_index`, [B, P].
        anchor_index: cells of frame 0, [B, N].
        cross_view_index: cells of frame 0 of the regularizing view, [B, M].
    """
    B, N = anchor_index.shape
    anchors = take_cells(main[:, 0], anchor_index)
    with torch.no_grad():
        affinity = view.detach().flatten(1, 2) @ anchors.detach().transpose(1, 2)  # [B, T * P, N]
        own_label = affinity.argmax(dim=2).view(view.shape[:3])
        pseudo_label = own_label + torch.arange(B, device=main.device).view(B, 1, 1) * N
    return Targets(
        source=source,
        anchors=anchors.flatten(0, 1),
        pseudo_label=pseudo_label,
        cross_view_source=source.gather(1, cross_view_index),
        cross_view=take_cells(view[:, 0], cross_view_index).flatten(0, 1),
    )


@torch.no_grad()
def watch_terms(main: Tensor, targets: Targets) -> dict[str, Tensor]:
    """How evenly anchors are used, how alike features are, and how much of the views overlaps."""
    label = targets.pseudo_label[:, 1:].flatten()
    counts = main.new_zeros(targets.anchors.shape[0]).index_add_(
        0, label, torch.ones_like(label, dtype=main.dtype)
    )
    share = counts / counts.sum()
    entropy = -torch.xlogy(share, share).sum() / torch.log(main.new_tensor(float(len(counts))))
    return {
        "label_entropy": entropy,
        "mean_feature": main[:, 0].mean(dim=1).norm(dim=1).mean(),
        "valid": (targets.source >= 0).to(main.dtype).mean(),
    }
