"""The frame-mask encoder V: a frame and the mask of one object in it become target-specific features."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vosnet.errors import SettingError
from vosnet.models.initialization import he_initialize
from vosnet.models.resnet import TRUNKS, BasicBlock, Bottleneck, stage_strides

MaskArch = Literal["resnet18", "resnet50"]


class MaskFeatures(NamedTuple):
    """Output of the frame-mask encoder for one object in each frame.

    Args:
        features: target-specific features on the visual encoder's grid, [N, D, h, w].
        middle: layer2, [N, C2, ., .] at 1/8 of the image, or on the feature grid where that is finer.
        fine: layer1, [N, C1, ceil(H / 4), ceil(W / 4)].
    """

    features: Tensor
    middle: Tensor
    fine: Tensor


class MaskEncoder(nn.Module):
    """V([frame, mask]) of Li et al. 2023: a ResNet to layer3 whose first convolution sees four channels.

    It starts from random weights: those of an ImageNet classifier would bring in human labels. The paper does
    not state the widths; the defaults are ours.

    Args:
        arch: "resnet18" or "resnet50".
        output_stride: image pixels per feature cell, 4, 8 or 16; the visual encoder's.
        width: channels of layer1; layer2 and layer3 have two and four times as many.
        depth: residual blocks per stage; None is the architecture's number.
        out_dim: channels of the features (D' in the paper).

    Attributes:
        middle_dim, fine_dim: channels of the skips.
    """

    def __init__(
        self,
        *,
        arch: MaskArch = "resnet18",
        output_stride: int = 8,
        width: int = 64,
        depth: int | None = None,
        out_dim: int = 128,
    ) -> None:
        super().__init__()
        if output_stride not in (4, 8, 16):
            raise SettingError("output_stride", f"must be 4, 8 or 16, got {output_stride}")
        trunk = TRUNKS[arch]
        self.out_dim = out_dim
        self.conv1 = nn.Conv2d(4, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        block, strides = trunk.block, stage_strides(arch, output_stride)
        depths = trunk.depths if depth is None else (depth,) * 4
        self.fine_dim, self.middle_dim = (width * factor * block.expansion for factor in (1, 2))
        last_dim = 4 * width * block.expansion
        self.layer1 = _stage(block, width, width, depths[0], strides[0])
        self.layer2 = _stage(block, self.fine_dim, 2 * width, depths[1], strides[1])
        self.layer3 = _stage(block, self.middle_dim, 4 * width, depths[2], strides[2])
        self.out_conv = nn.Conv2d(last_dim, out_dim, 1)
        he_initialize(self)

    def forward(self, images: Tensor, masks: Tensor) -> MaskFeatures:
        """Features of one object per image.

        Args:
            images: as the visual encoder takes them, [N, 3, H, W].
            masks: probabilities of the object, [N, H', W'], resized to the images bilinearly.
        """
        masks = masks[:, None].to(images.dtype)
        if masks.shape[-2:] != images.shape[-2:]:
            masks = functional.interpolate(masks, images.shape[-2:], mode="bilinear")
        # about as spread as the normalized images: -1 outside of the object, 1 inside
        x = torch.cat([images, 2 * masks - 1], dim=1)
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        fine = self.layer1(functional.max_pool2d(x, 3, 2, 1))
        middle = self.layer2(fine)
        return MaskFeatures(self.out_conv(self.layer3(middle)), middle, fine)


def _stage(
    block: type[BasicBlock] | type[Bottleneck], in_dim: int, dim: int, depth: int, stride: int
) -> nn.Sequential:
    rest = (block(dim * block.expansion, dim, 1, "zeros") for _ in range(depth - 1))
    return nn.Sequential(block(in_dim, dim, stride, "zeros"), *rest)
