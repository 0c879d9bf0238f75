"""The two sides that the equivariance terms of Li et al. (CVPR 2023) compare, and how alike they are.

Names below: `query` E(I_t), `moved` E(Phi(I_t')), `distant` E(I_t'), each [B, C, h, w]; `theta` Phi, output
to input, [B, 2, 3]; `index` the cells that are compared, flat, [B, N]. Both sides are unit vectors.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vosnet.matching import dense_readout
from vosnet.objectives.anchors import take_cells
from vosnet.transforms import warp_images

PairLoss = Literal["infonce", "cosine"]


def moved_features(features: Tensor, theta: Tensor) -> Tensor:
    """Phi of feature maps, [B, C, h, w]: bilinear, the border cell repeated outside the frame."""
    return warp_images(features[:, None], theta)[:, 0]


def short_term_pairs(moved: Tensor, following: Tensor, theta: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """E(Phi(I_t)) and Phi(E(I_{t+1})) at some cells of Phi's output, [B * N, C] each.

    Args:
        moved: E(Phi(I_t)).
        following: E(I_{t+1}).
        theta, index: see above.
    """
    target = moved_features(F.normalize(following.float(), dim=1), theta)
    return _cells(moved, index), _cells(target, index)


def long_term_pairs(
    query: Tensor, moved: Tensor, distant: Tensor, theta: Tensor, index: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """E(I_t) and the aligned A^T Phi(E(I_t')) at some cells of I_t, [B * N, C] each.

    The affinity A from Phi(t') to t is read as its subscript says: softmax over the cells of the transformed
    frame of <E(Phi(I_t')), E(I_t)>, cosines divided by `temperature`; its columns sum to 1. The features that
    it copies are Phi(E(I_t')). So a cell finds its partner in the moved frame, and must get from there what
    the frame's own features, moved, say: correspondence and equivariance are asked for at once. Cells whose
    partner Phi crops away find the next best.
    """
    query, moved = (F.normalize(x.float(), dim=1) for x in (query, moved))
    value = moved_features(F.normalize(distant.float(), dim=1), theta)
    aligned = dense_readout(query, moved[:, None], value[:, None], temperature=temperature)
    return _cells(query, index), _cells(aligned, index)


def long_term_assignments(
    query: Tensor, moved: Tensor, distant: Tensor, theta: Tensor, index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The two sides of the long-term term under a hard affinity.

    Each cell of the transformed frame belongs to the anchor, a cell of I_t, whose feature is most like
    E(Phi(I_t')) there; its features Phi(E(I_t')) shall be those of that anchor. Read as a matrix, the choice
    is A_{Phi(t')}^t with one 1 per transformed cell. This is the space-time self-training of Araslanov et
    al. 2021 (DUL) for a pair of frames. The choice is constant; rows and anchors both learn.

    Returns:
        Phi(E(I_t')) at every cell, [B * h * w, C]; the anchors, [B * N, C]; each row's anchor, [B * h * w].
    """
    B, N = index.shape
    anchors = _cells(query, index)
    with torch.no_grad():
        cells = rearrange(F.normalize(moved.float(), dim=1), "b c h w -> b (h w) c")
        affinity = cells @ anchors.view(B, N, -1).transpose(1, 2)
        label = affinity.argmax(2) + torch.arange(B, device=index.device)[:, None] * N
    rows = moved_features(F.normalize(distant.float(), dim=1), theta)
    return rearrange(F.normalize(rows, dim=1), "b c h w -> (b h w) c"), anchors, label.flatten()


def pair_loss(rows: Tensor, targets: Tensor, *, first: int, loss: PairLoss, temperature: float) -> Tensor:
    """How far rows are from their own targets, scalar.

    Args:
        rows: unit vectors, [R, C].
        targets: unit vectors, [S, C]: the rows' own stand at `first` to `first + R`, the others are those of
            other ranks.
        first: this rank's place.
        loss: "infonce": cross-entropy of finding the own target among all; "cosine": one minus the cosine of
            the own target.
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
    return _variance(rearrange(features, "n c h w -> 1 c (n h w)"))


def frame_variance(features: Tensor) -> Tensor:
    """The same within each frame, averaged over the frames."""
    return _variance(features.flatten(2))


def _variance(cells: Tensor) -> Tensor:
    """[G, C, cells] -> the variance of each group, averaged."""
    unit = F.normalize(cells.detach().float(), dim=1)
    return (unit.square().sum(1).mean(1) - unit.mean(2).square().sum(1)).mean()


def _cells(features: Tensor, index: Tensor) -> Tensor:
    rows = take_cells(rearrange(features, "b c h w -> b (h w) c"), index)
    return F.normalize(rows.float(), dim=2).flatten(0, 1)
