"""Correspondence by equivariance: the short-term and the long-term term of Li et al. (CVPR 2023).

    short-term    E(Phi(I_t)) ~ Phi(E(I_{t+1}))
    long-term     E(I_t)      ~ A^T Phi(E(I_{t'})),   |t - t'| >= 5

Phi scales, mirrors and crops: a similarity transform, see `vosnet.transforms.similarity`. The paper leaves
open what "~" is, how the affinity A copies, and what prevents collapse; the choices are options here.

`alignment` is how A copies. "hard": each cell of Phi(I_t') belongs to the one cell of I_t, among some
anchors, that it is most like, and Phi(E(I_t')) there learns to find that anchor among those of all videos;
many cells may share one. That is the self-training of DUL (Araslanov et al. 2021) for a pair of frames:
assignments are constants, features of both frames learn, whatever `stop_gradient` says. "soft": the cells of
I_t get a mean of Phi(E(I_t')), and each must find its own mean among those of the others; neighbors that show
the same thing must then be told apart, which hurts the longer it trains.

`loss` is what "~" means. "infonce" asks each cell to be more like its own partner than like the partners of
other cells, of its own frame and of other videos. Features that are equal everywhere, within a video or along
the frame, leave the loss at or near log(number of partners), its value for guessing: they are no minimum.
Features that encode the place in the frame alone do not help either, because Phi moves the cells. "cosine" is
one minus the cosine of partners, the formula as it is written. Constant features are its exact minimum, also
with a constant right side. It is provided as a baseline, and for use with the segmentation term, which
constant features cannot solve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vosnet.errors import UsageError
from vosnet.objectives.anchors import grid_index
from vosnet.objectives.base import compile_methods
from vosnet.objectives.contrast import anchor_cross_entropy
from vosnet.objectives.gather import gather_ranks
from vosnet.objectives.pairs import (
    PairLoss,
    feature_variance,
    frame_variance,
    long_term_assignments,
    long_term_pairs,
    pair_loss,
    short_term_pairs,
)
from vosnet.objectives.settings import ObjectiveSettings, check_at_least, check_positive
from vosnet.runtime import current_ranks
from vosnet.transforms import Clip

CHUNK_SIZE = 2048  # cells per block of the long-term loss; changes memory and time, not the result


@dataclass(frozen=True, kw_only=True)
class EquivarianceSettings(ObjectiveSettings):
    """Options of the two terms. The paper gives the equations and the gap of 5 frames, the rest is ours.

    Args:
        short_term_weight: of L_short; a term of weight 0 is not computed.
        long_term_weight: of L_long.
        loss: what "~" means: "infonce" or "cosine".
        temperature: divides the cosines of "infonce".
        alignment: how the long-term affinity copies: "hard" or "soft".
        affinity_temperature: divides the cosines of the soft affinity.
        grid_size: the long-term term's cells of I_t are grid_size ** 2, on a lattice shifted at random.
        short_term_grid_size: the same of the short-term term; cells nearer to each other than Phi enlarges
            look alike and must not be told apart.
        stop_gradient: "target": right sides are constants: Phi(E(.)) of L_short, and that of L_long under
            soft alignment; their frames run without gradient, unless the segmentation term needs it. "none":
            both sides learn. Hard alignment has no constant but the assignment.
        long_term_gap: smallest distance of the distant frames from frame 0; clips that do not keep it are
            refused.
        min_frame_variance: training stops when the features' variance within frames falls below it; see
            `frame_variance`. Collapse shows there first: batch norm keeps the frames apart for long.
    """

    short_term_weight: float = 1.0
    long_term_weight: float = 1.0
    loss: PairLoss = "infonce"
    temperature: float = 0.1
    alignment: Literal["hard", "soft"] = "hard"
    affinity_temperature: float = 0.05
    grid_size: int = 8
    short_term_grid_size: int = 4
    stop_gradient: Literal["target", "none"] = "target"
    long_term_gap: int = 5
    min_frame_variance: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, self, "short_term_weight", "long_term_weight")
        check_positive(self, "temperature", "affinity_temperature")


@dataclass(frozen=True)
class Features:
    """Features of a batch by frame of the clip, each [B, C, h, w].

    Args:
        main: of the frames, as the encoder makes them.
        compared: of the frames, as the terms compare them: projected, if there is a head.
        view: of the transformed frames, the same.
    """

    main: dict[int, Tensor]
    compared: dict[int, Tensor]
    view: dict[int, Tensor]


class Equivariance:
    """short_term_weight * L_short + long_term_weight * L_long of features that the owner computes.

    Clips are "paired": frame 0, its successor, then frames at least `long_term_gap` away (`data.order`).
    L_short compares frames 0 and 1, L_long frame 0 with each distant one.
    """

    def __init__(self, settings: EquivarianceSettings) -> None:
        self.settings = settings
        self.short_pairs, self.long_pairs = short_term_pairs, long_term_pairs
        self.assignments = long_term_assignments

    @property
    def active(self) -> bool:
        """Whether any term has a weight."""
        return self.settings.short_term_weight > 0 or self.settings.long_term_weight > 0

    def compile_graphs(self, backend: str) -> None:
        """Compile what runs between the encoder and the losses."""
        compile_methods(self, ("short_pairs", "long_pairs", "assignments"), backend)

    def needed(self, clip_len: int) -> tuple[dict[int, bool], dict[int, bool]]:
        """Frames, and transformed frames, whose features are compared, each with whether they learn."""
        hard, both = self.settings.alignment == "hard", self.settings.stop_gradient == "none"
        frames: dict[int, bool] = {}
        views: dict[int, bool] = {}
        if self.settings.short_term_weight:
            frames[1], views[0] = both, True
        if self.settings.long_term_weight:
            distant = range(2, clip_len)
            frames |= {0: True} | dict.fromkeys(distant, both or hard)
            views |= dict.fromkeys(distant, both or not hard)
        return frames, views

    def loss(self, features: Features, clip: Clip) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and detached terms.

        Returns:
            Scalar, and `short_term` and `long_term` (unweighted, if their weight is not 0),
            `feature_variance`, and `frame_variance` (the same within single frames).
        """
        total = clip.frames.new_zeros((), dtype=torch.float32)
        terms: dict[str, Tensor] = {}
        if self.settings.short_term_weight:
            loss = self.short_term(features, clip)
            total, terms["short_term"] = total + self.settings.short_term_weight * loss, loss.detach()
        if self.settings.long_term_weight:
            loss = self.long_term(features, clip)
            total, terms["long_term"] = total + self.settings.long_term_weight * loss, loss.detach()
        seen = torch.cat([*features.compared.values(), *features.view.values()])
        terms["feature_variance"] = feature_variance(seen)
        terms["frame_variance"] = frame_variance(seen)
        return total, terms

    def short_term(self, features: Features, clip: Clip) -> Tensor:
        """L_short: E(Phi(I_0)) against Phi(E(I_1)), scalar."""
        following = self._target(features.compared[1])
        h, w = following.shape[-2:]
        index = grid_index(clip.draws[:, :2], h, w, self.settings.short_term_grid_size)
        return self._pair_loss(*self.short_pairs(features.view[0], following, clip.theta, index))

    def long_term(self, features: Features, clip: Clip) -> Tensor:
        """L_long: E(I_0) against the aligned Phi(E(I_t')), mean over the distant frames, scalar."""
        query, losses = features.compared[0], []
        h, w = query.shape[-2:]
        index = grid_index(clip.draws[:, 2:4], h, w, self.settings.grid_size)
        for t in range(2, clip.frames.shape[1]):
            moved, distant = features.view[t], features.compared[t]
            if self.settings.alignment == "hard":
                assigned = self.assignments(query, moved, distant, clip.theta, index)
                losses.append(self._assignment_loss(*assigned))
            else:
                temperature = self.settings.affinity_temperature
                sides = query, moved, self._target(distant), clip.theta, index
                losses.append(self._pair_loss(*self.long_pairs(*sides, temperature=temperature)))
        return torch.stack(losses).mean()

    def collapse_reason(self, terms: dict[str, float]) -> str | None:
        """Why the features have collapsed, or None; see `Objective.collapse_reason`."""
        variance, least = terms["frame_variance"], self.settings.min_frame_variance
        if variance >= least:
            return None
        return (
            f"the features of all cells of a frame became equal: frame_variance is {variance:.2e}, below "
            f"objective.min_frame_variance ({least:.0e})"
        )

    def check_clip(self, clip: Clip) -> None:
        """Check that the frames lie as far apart as the terms assume.

        Raises:
            UsageError: the clips are not paired, or their distant frames are too near (E150).
        """
        if clip.cut is None:  # frames that come from no video have no distance
            return
        gap, least = clip.cut.frame_ids - clip.cut.frame_ids[:, :1], self.settings.long_term_gap
        if self.settings.short_term_weight and bool((gap[:, 1] != 1).any()):
            found = int(gap[gap[:, 1] != 1][0, 1])
            message = f"the short-term term needs frame 1 to follow frame 0, but it lies {found} away"
            raise UsageError("E150", message, "Set data.order=paired and data.frame_gap=1.")
        if self.settings.long_term_weight and bool((gap[:, 2:].abs() < least).any()):
            raise UsageError(
                "E150",
                f"the long-term term needs frames at least {least} away from frame 0, but some are "
                f"{int(gap[:, 2:].abs().min())} away",
                f"Set data.order=paired and data.distant_gap to a range from {least} up.",
            )

    def _target(self, features: Tensor) -> Tensor:
        return features.detach() if self.settings.stop_gradient == "target" else features

    def _pair_loss(self, rows: Tensor, targets: Tensor) -> Tensor:
        own, first = self.settings, current_ranks().rank * len(rows)
        return pair_loss(rows, gather_ranks(targets), first=first, loss=own.loss, temperature=own.temperature)

    def _assignment_loss(self, rows: Tensor, anchors: Tensor, label: Tensor) -> Tensor:
        """Of rows and the anchors of all ranks; `label` counts over this rank's anchors."""
        label = label + current_ranks().rank * len(anchors)
        anchors = gather_ranks(anchors)
        if self.settings.loss == "cosine":
            return 1 - (rows * anchors[label]).sum(1).mean()
        every = torch.arange(len(rows), device=rows.device)
        temperature = self.settings.temperature
        return anchor_cross_entropy(
            rows, every, anchors, label, temperature=temperature, chunk_size=CHUNK_SIZE
        )
