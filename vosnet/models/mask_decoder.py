"""The mask decoder D: target-specific features of the query become the object's mask."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vosnet.models.initialization import he_initialize
from vosnet.models.mask_encoder import MaskFeatures
from vosnet.models.resnet import BasicBlock


class MaskDecoder(nn.Module):
    """D([V_q, V-bar_q]) of Li et al. 2023: one logit per cell and object.

    The paper does not state its layers; these are ours: a residual block on the feature grid, and another
    one at a quarter of the image.

    Args:
        in_dim: channels of V_q and of V-bar_q.
        middle_dim, fine_dim: channels of the frame-mask encoder's layer2 and layer1.
        hidden_dim: channels of the first block; the second has half of them.
        skips: add layer2 and layer1 of the frame-mask encoder's pass over the query.
        upsample: logits at a quarter of the image instead of on the feature grid.
    """

    def __init__(
        self,
        in_dim: int,
        middle_dim: int,
        fine_dim: int,
        *,
        hidden_dim: int = 128,
        skips: bool = True,
        upsample: bool = True,
    ) -> None:
        super().__init__()
        self.block = BasicBlock(2 * in_dim, hidden_dim, 1, "zeros")
        self.middle = nn.Conv2d(middle_dim, hidden_dim, 1) if skips else None
        self.fine_block: BasicBlock | None = None
        self.fine: nn.Conv2d | None = None
        out_dim = hidden_dim
        if upsample:
            out_dim = max(1, hidden_dim // 2)
            self.fine = nn.Conv2d(fine_dim, hidden_dim, 1) if skips else None
            self.fine_block = BasicBlock(hidden_dim, out_dim, 1, "zeros")
        self.logit = nn.Conv2d(out_dim, 1, 3, 1, 1)
        he_initialize(self)
        nn.init.normal_(self.logit.weight, std=0.01)  # first answers are undecided

    def forward(self, support: Tensor, own: MaskFeatures) -> Tensor:
        """Logits of the object.

        Args:
            support: V_q, features read out of the reference frames, [N, D, h, w].
            own: V-bar_q, features of the query with its coarse mask.

        Returns:
            [N, h', w']: the grid of `own.fine` with `upsample`, otherwise of `own.features`.
        """
        x = self.block(torch.cat([support, own.features], dim=1))
        if self.middle is not None:
            x = x + _resized(self.middle(own.middle), x)
        if self.fine_block is not None:
            x = _resized(x, own.fine)
            x = self.fine_block(x if self.fine is None else x + self.fine(own.fine))
        logits: Tensor = self.logit(functional.relu(x))[:, 0]
        return logits


def _resized(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return functional.interpolate(x, like.shape[-2:], mode="bilinear")
