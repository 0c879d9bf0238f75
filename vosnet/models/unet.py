"""A U-Net on ResNet-18: the per-video appearance model of online adaptation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vosnet.errors import UsageError
from vosnet.models.initialization import he_initialize
from vosnet.models.resnet import STAGES, make_stage, stage_dim, stage_strides

DECODER_DIMS = (128, 64, 48, 32)  # at strides 16, 8, 4, 2; ours: a third of the encoder's arithmetic


class UNet(nn.Module):
    """Per-pixel class logits from images of any size.

    ResNet-18 halves the image five times; the decoder goes back up to half the image's size, each step
    doubling the grid, joining the encoder's features of that grid, and one 3x3 convolution. The logits are
    doubled once more by interpolation (appendix A of Zhu et al. 2020 says "a standard U-Net with ResNet-18
    as the backbone encoder"; the decoder's widths are ours).

    Args:
        num_classes: output channels, objects + 1.
        decoder_dims: channels of the decoder at strides 16, 8, 4 and 2.
        bn_momentum: of the running statistics; ours, for short training from scratch.

    Raises:
        UsageError: fewer than two classes or other than four widths (E175).
    """

    def __init__(
        self, num_classes: int, decoder_dims: Sequence[int] = DECODER_DIMS, bn_momentum: float = 0.1
    ) -> None:
        super().__init__()
        if num_classes < 2 or len(decoder_dims) != 4 or min(decoder_dims) < 1:
            message = f"a U-Net needs 2 classes and 4 widths, got {num_classes} and {tuple(decoder_dims)}"
            raise UsageError("E175", message)
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        for stage, stride in zip(STAGES, stage_strides("resnet18", 32)):
            self.add_module(stage, make_stage("resnet18", stage, stride, "zeros"))
        skip_dims = [*(stage_dim("resnet18", stage) for stage in STAGES[-2::-1]), 64]  # strides 16, 8, 4, 2
        in_dims = [stage_dim("resnet18", STAGES[-1]), *decoder_dims[:-1]]
        self.up = nn.ModuleList(_Up(*dims) for dims in zip(in_dims, skip_dims, decoder_dims))
        self.classify = nn.Conv2d(decoder_dims[-1], num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = bn_momentum

    def forward(self, images: Tensor) -> Tensor:
        """Logits of normalized images.

        Args:
            images: [N, 3, H, W], color channels minus mean, divided by standard deviation.

        Returns:
            [N, num_classes, H, W].
        """
        x = functional.relu(self.bn1(self.conv1(images)), inplace=True)
        skips = [x]
        x = functional.max_pool2d(x, 3, 2, 1)
        for stage in STAGES:
            x = cast("nn.Module", getattr(self, stage))(x)
            skips.append(x)
        x = skips.pop()
        for up, skip in zip(self.up, reversed(skips)):
            x = up(x, skip)
        logits: Tensor = self.classify(x)
        return functional.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)


class _Up(nn.Module):
    """The coarser features at the finer grid, joined with the encoder's there, through one convolution."""

    def __init__(self, in_dim: int, skip_dim: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim + skip_dim, dim, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """[N, in_dim, h, w] and [N, skip_dim, H, W] -> [N, dim, H, W]."""
        x = functional.interpolate(x, skip.shape[-2:], mode="nearest-exact")
        return functional.relu(self.bn(self.conv(torch.cat([x, skip], 1))), inplace=True)


def build_unet(
    num_classes: int,
    *,
    seed: int = 0,
    decoder_dims: Sequence[int] = DECODER_DIMS,
    bn_momentum: float = 0.1,
) -> UNet:
    """A `UNet` with He initialization drawn from `seed`; the global random state is untouched."""
    with torch.random.fork_rng(devices=[]):  # constructors draw default weights that are replaced below
        unet = UNet(num_classes, decoder_dims, bn_momentum)
    he_initialize(unet, torch.Generator().manual_seed(seed))
    return unet
