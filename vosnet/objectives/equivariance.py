"""Correspondence by equivariance: the short-term and the long-term term of Li et al. (CVPR 2023).

    short-term    E(Phi(I_t)) ~ Phi(E(I_{t+1}))
    long-term     E(I_t)      ~ A^T Phi(E(I_{t'})),   |t - t'| >= 5

Phi scales, mirrors and crops: a similarity transform, see `vosnet.transforms.similarity`. The paper leaves
open what "~" is, how the affinity A copies, and what prevents collapse; here these are chosen.

A is "hard" or "soft". Hard, each cell of Phi(I_t') belongs to the one cell of I_t, among some anchors, that
it is most alike, and Phi(E(I_t')) there learns to find that anchor among those of all videos; many cells may
share one. Soft, the cells of I_t get a mean of Phi(E(I_t')), and each must find its own mean among those of
the others: neighbours that show the same thing must be told apart, which hurts the longer it trains (mean
J&F on six DAVIS sequences, 100 clips, both terms: 64.6 after 216 steps, 63.3 after 1,404; hard: 69.9 after
549).

"infonce" asks each cell to be more like its own partner than like the partners of other cells, of its
own frame and of other videos. Features that are equal everywhere, within a video or along the frame, leave
the loss at or near log(number of partners), its value for guessing: they are no minimum. Features that code
the place in the frame alone do not help either, because Phi moves the cells.

"cosine" is one minus the cosine of partners: the formula as it is written. Constant features are its exact
minimum, and holding the right side constant does not keep training from it: on generated video
`frame_variance` fell from 0.56 to 0.14 in 80 steps, where "infonce" kept 0.57. It is here to be compared
with, and beside the segmentation term, which constant features cannot solve.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vosnet.matching import dense_readout
from vosnet.objectives.anchors import take_cells
from vosnet.transforms import warp_images

PairLoss = Literal["infonce", "cosine"]
Alignment = Literal["hard", "soft"]


def moved_features(features: Tensor, theta: Tensor) -> Tensor:
    """Phi of feature maps: bilinear, differentiable, the border cell repeated outside the frame.

    Args:
        features: [B, C, h, w].
        theta: output to input, [B, 2, 3].

    Returns:
        [B, C, h, w].
    """
    return warp_images(features[:, None], theta)[:, 0]


def short_term_pairs(moved: Tensor, following: Tensor, theta: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The two sides of the short-term term at some cells.

    Args:
        moved: E(Phi(I_t)), [B, C, h, w].
        following: E(I_{t+1}), [B, C, h, w].
        theta: Phi, [B, 2, 3].
        index: which cells of Phi's output are compared, [B, N].

    Returns:
        Unit vectors [B * N, C] of E(Phi(I_t)) and of Phi(E(I_{t+1})).
    """
    target = moved_features(F.normalize(following.float(), dim=1), theta)
    return _cells(moved, index), _cells(target, index)


def long_term_pairs(
    query: Tensor, moved: Tensor, distant: Tensor, theta: Tensor, index: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """The two sides of the long-term term at some cells.

    The affinity A from Phi(t') to t is read as its subscript says: softmax over the cells of the transformed
    frame of <E(Phi(I_t')), E(I_t)>, cosines divided by a temperature; its columns sum to 1. The features that
    it copies are Phi(E(I_t')). So a cell finds its partner in the moved frame, and must get from there what
    the frame's own features, moved, say: correspondence and equivariance are asked for at once. Cells whose
    partner Phi crops away find the next best.

    Args:
        query: E(I_t), [B, C, h, w].
        moved: E(Phi(I_t')), [B, C, h, w].
        distant: E(I_t'), [B, C, h, w].
        theta: Phi, [B, 2, 3].
        index: which cells of I_t are compared, [B, N].
        temperature: of the affinity.

    Returns:
        Unit vectors [B * N, C] of E(I_t) and of the aligned Phi(E(I_t')).
    """
    query, moved = (F.normalize(x.float(), dim=1) for x in (query, moved))
    value = moved_features(F.normalize(distant.float(), dim=1), theta)
    aligned = dense_readout(query, moved[:, None], value[:, None], temperature=temperature)
    return _cells(query, index), _cells(aligned, index)


def long_term_assignments(
    query: Tensor, moved: Tensor, distant: Tensor, theta: Tensor, index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The two sides of the long-term term under a hard affinity.

    Each cell of the transformed frame belongs to the anchor, a cell of I_t, that E(Phi(I_t')) finds most
    alike; its features Phi(E(I_t')) shall be those of that anchor. No gradient passes through the choice.
    Read as a matrix, the choice is A_{Phi(t')}^t with one 1 per transformed cell. It is also the space-time
    self-training of Araslanov et al. 2021 for one pair of frames.

    Args:
        query: E(I_t), [B, C, h, w].
        moved: E(Phi(I_t')), [B, C, h, w].
        distant: E(I_t'), [B, C, h, w].
        theta: Phi, [B, 2, 3].
        index: the anchors, cells of I_t, [B, N].

    Returns:
        Unit vectors of Phi(E(I_t')), [B * h * w, C], of the anchors, [B * N, C], and each row's anchor,
        [B * h * w].
    """
    B, N = index.shape
    anchors = _cells(query, index)
    with torch.no_grad():
        cells = F.normalize(moved.float(), dim=1).flatten(2).transpose(1, 2)
        affinity = cells @ anchors.view(B, N, -1).transpose(1, 2)
        label = affinity.argmax(2) + torch.arange(B, device=index.device)[:, None] * N
    rows = moved_features(F.normalize(distant.float(), dim=1), theta)
    rows = F.normalize(rows, dim=1).flatten(2).transpose(1, 2)
    return rows.flatten(0, 1), anchors, label.flatten()


def pair_loss(
    rows: Tensor,
    targets: Tensor,
    *,
    first: int,
    loss: PairLoss,
    temperature: float,
) -> Tensor:
    """How far rows are from their targets, scalar.

    Args:
        rows: unit vectors, [R, C].
        targets: unit vectors, [S, C]: the rows' own stand at `first` to `first + R`, the others are those of
            other ranks.
        first: this rank's place.
        loss: "infonce": cross-entropy of finding the own target among all; "cosine": one minus the
            cosine of the own target.
        temperature: divides the cosines; only for "infonce".
    """
    if loss == "cosine":
        return 1 - (rows * targets[first : first + len(rows)]).sum(1).mean()
    label = torch.arange(first, first + len(rows), device=rows.device)
    return F.cross_entropy(rows @ targets.t() / temperature, label)


def feature_variance(features: Tensor) -> Tensor:
    """Mean squared distance of unit features from their mean, over all cells: 0 is collapse, 1 the most.

    Features of length zero count as equal. [N, C, h, w] -> scalar without gradient.
    """
    return _variance(features.transpose(0, 1).flatten(1)[None])


def frame_variance(features: Tensor) -> Tensor:
    """The same within each frame, averaged over the frames."""
    return _variance(features.flatten(2))


def _variance(cells: Tensor) -> Tensor:
    """[G, C, cells] -> the variance of each group, averaged."""
    unit = F.normalize(cells.detach().float(), dim=1)
    return (unit.square().sum(1).mean(1) - unit.mean(2).square().sum(1)).mean()


def _cells(features: Tensor, index: Tensor) -> Tensor:
    rows = take_cells(features.flatten(2).transpose(1, 2), index)
    return F.normalize(rows.float(), dim=2).flatten(0, 1)
