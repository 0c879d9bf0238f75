"""From normalized images to a grid of features: our ResNets, or any callable with a stated stride."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vosnet.errors import UsageError
from vosnet.models.head import ProjectionHead
from vosnet.models.resnet import BLOCKS, STAGES, Arch, Padding, make_stage, stage_dim, stage_strides

LAYERS = ("layer2", "layer3", "layer4", "head")
OUTPUT_STRIDES = (4, 8, 16, 32)


class Encoder(nn.Module):
    """A ResNet cut behind the layer that is read; `state_dict` keys are torchvision's names.

    Args:
        arch: "resnet18" or "resnet50".
        layer: what `forward` returns: "layer2", "layer3", "layer4" or "head".
        output_stride: image pixels per feature cell, at most; 4, 8, 16 or 32.
        padding: "zeros", or "reflect" as in CRW trained from scratch.
        head_stage: the layer under the head; only read with layer="head".
        head_dims: hidden and output channels of the head; the default is (stage's channels, 128).

    Attributes:
        feature_dim: channels of the features.
        output_stride: image pixels per feature cell of what `forward` returns.
    """

    def __init__(
        self,
        arch: Arch = "resnet18",
        layer: str = "layer4",
        output_stride: int = 8,
        padding: Padding = "zeros",
        head_stage: str = "layer4",
        head_dims: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        _check_choice("arch", arch, tuple(BLOCKS))
        _check_choice("layer", layer, LAYERS)
        _check_choice("output_stride", output_stride, OUTPUT_STRIDES)
        _check_choice("padding", padding, ("zeros", "reflect"))
        self.arch, self.layer, self.padding = arch, layer, padding
        self.stage = head_stage if layer == "head" else layer
        _check_choice("head_stage", self.stage, STAGES[1:])
        strides = stage_strides(output_stride)

        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False, padding_mode=padding)
        self.bn1 = nn.BatchNorm2d(64)
        self.stages = STAGES[: STAGES.index(self.stage) + 1]
        self.output_stride = 4
        for stage, stride in zip(self.stages, strides):
            self.add_module(stage, make_stage(arch, stage, stride, padding))
            self.output_stride *= stride
        self.feature_dim = stage_dim(arch, self.stage)
        self.head: ProjectionHead | None = None
        if layer == "head":
            hidden_dim, out_dim = head_dims or (self.feature_dim, 128)
            self.head = ProjectionHead(self.feature_dim, hidden_dim, out_dim)
            self.feature_dim = out_dim

    def forward(self, images: Tensor) -> Tensor:
        """Features of normalized images.

        Args:
            images: [N, 3, H, W], color channels minus mean, divided by standard deviation.

        Returns:
            [N, feature_dim, h, w] with h = ceil(H / output_stride), not L2-normalized.
        """
        x = functional.relu(self.bn1(self.conv1(images)), inplace=True)
        x = functional.max_pool2d(x, 3, 2, 1)
        for stage in self.stages:
            x = cast("nn.Module", getattr(self, stage))(x)
        return x if self.head is None else self.head(x)


def build_encoder(
    arch: Arch = "resnet18",
    *,
    layer: str = "layer4",
    output_stride: int = 8,
    seed: int = 0,
    padding: Padding = "zeros",
    head_stage: str = "layer4",
    head_dims: tuple[int, int] | None = None,
) -> Encoder:
    """An `Encoder` with He initialisation drawn from `seed`; the global random state is left alone.

    The numbers of a layer do not depend on where the network is cut.

    Raises:
        UsageError: an unknown arch, layer, output_stride or padding (E160).
    """
    with torch.random.fork_rng(devices=[]):  # constructors draw default weights that are replaced below
        encoder = Encoder(arch, layer, output_stride, padding, head_stage, head_dims)
    generator = torch.Generator().manual_seed(seed)
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return encoder


class CallableEncoder(nn.Module):
    """Any function from normalized images to features, used like an `Encoder`.

    Args:
        function: [N, 3, H, W] float -> [N, C, h, w]; an `nn.Module` is registered and moves along.
        output_stride: image pixels per feature cell; checked against every answer.
        name: what reports call it.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], output_stride: int, name: str = "") -> None:
        super().__init__()
        self.function = function
        self.output_stride = output_stride
        self.name = name or getattr(function, "__name__", type(function).__name__)

    def forward(self, images: Tensor) -> Tensor:
        """Features of normalized images, [N, C, h, w].

        Raises:
            UsageError: the grid is not ceil or floor of H / output_stride, or not [N, C, h, w] (E161).
        """
        features = self.function(images)
        height, width = images.shape[-2:]
        stride = self.output_stride
        fits = features.ndim == 4 and all(
            side // stride <= cells <= -(-side // stride)
            for side, cells in zip((height, width), features.shape[-2:])
        )
        if not fits:
            message = (
                f"encoder {self.name} says output_stride {stride} but made {list(features.shape)} "
                f"from images {list(images.shape)}"
            )
            raise UsageError("E161", message, "State the stride it really has, or resize its answer.")
        return features


def _check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise UsageError("E160", f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")
