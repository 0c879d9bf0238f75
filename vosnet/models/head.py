"""The projection head that self-supervised objectives train on."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class ProjectionHead(nn.Module):
    """1x1 convolution, batch norm, ReLU, 1x1 convolution, both with bias (DUL's `emb_q`).

    Args:
        in_dim: channels of the encoder's features.
        hidden_dim: channels between the two convolutions.
        out_dim: channels of the embedding.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.in_dim, self.hidden_dim, self.out_dim = in_dim, hidden_dim, out_dim
        self.conv1 = nn.Conv2d(in_dim, hidden_dim, 1)
        self.bn1 = nn.BatchNorm2d(hidden_dim)
        self.conv2 = nn.Conv2d(hidden_dim, out_dim, 1)

    def forward(self, features: Tensor) -> Tensor:
        """[N, in_dim, h, w] -> [N, out_dim, h, w], not normalized."""
        out: Tensor = self.conv2(functional.relu(self.bn1(self.conv1(features)), inplace=True))
        return out
