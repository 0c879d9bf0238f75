"""From normalized images to a grid of features: our ResNets, or any callable of known stride."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from vosnet.errors import UsageError
from vosnet.models.head import ProjectionHead
from vosnet.models.initialization import he_initialize
from vosnet.models.resnet import (
    STAGES,
    TRUNKS,
    Arch,
    OutputStride,
    Padding,
    conv3x3,
    make_stage,
    stage_dim,
    stage_strides,
)
from vosnet.transforms import COLOR_SPACES, ColorSpace

LAYERS = ("layer2", "layer3", "layer4", "head")


class Encoder(nn.Module):
    """A ResNet cut after the layer that is read; `state_dict` keys are torchvision's names.

    The networks of MAST end in a 3x3 convolution `out_conv` after the stage that is read.

    Args:
        arch: "resnet18", "resnet50", "mast_resnet18" (Lai et al. 2020; stride 4) or "mast_resnet18_pooled"
            (the same with max-pooling in the stem; cut at layer2, an eighth of the work per cell).
        layer: what `forward` returns: "layer2", "layer3", "layer4" or "head".
        output_stride: image pixels per feature cell, at most; 4, 8, 16 or 32.
        padding: "zeros", or "reflect" as in CRW trained from scratch.
        head_stage: the layer under the head; only read with layer="head".
        head_dims: hidden and output channels of the head; the default is (stage's channels, 128).
        color_space: what the images are made of; see `vosnet.transforms.encoder_input`.
        with_out_conv: whether a network of MAST ends in its convolution; False reads the stage itself.

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
        color_space: ColorSpace = "rgb",
        *,
        with_out_conv: bool = True,
    ) -> None:
        super().__init__()
        _check_choice("arch", arch, tuple(TRUNKS))
        _check_choice("color_space", color_space, COLOR_SPACES)
        _check_choice("layer", layer, LAYERS)
        _check_choice("output_stride", output_stride, get_args(OutputStride))
        _check_choice("padding", padding, get_args(Padding))
        self.arch, self.layer, self.padding, self.color_space = arch, layer, padding, color_space
        self.stage = head_stage if layer == "head" else layer
        _check_choice("head_stage", self.stage, STAGES[1:])
        strides, trunk = stage_strides(arch, output_stride), TRUNKS[arch]

        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False, padding_mode=padding)
        self.bn1 = nn.BatchNorm2d(64)
        self.stem_pool = trunk.stem_pool
        self.stages = STAGES[: STAGES.index(self.stage) + 1]
        self.output_stride = trunk.stem_stride
        for stage, stride in zip(self.stages, strides):
            self.add_module(stage, make_stage(arch, stage, stride, padding))
            self.output_stride *= stride
        self.feature_dim = stage_dim(arch, self.stage)
        self.out_conv: nn.Conv2d | None = None
        if trunk.out_dim is not None and with_out_conv:
            self.out_conv = conv3x3(self.feature_dim, trunk.out_dim, 1, padding)
            self.feature_dim = trunk.out_dim
        self.head: ProjectionHead | None = None
        if layer == "head":
            hidden_dim, out_dim = head_dims or (self.feature_dim, 128)
            self.head = ProjectionHead(self.feature_dim, hidden_dim, out_dim)
            self.feature_dim = out_dim

    def forward(self, images: Tensor) -> Tensor:
        """Features of normalized images.

        Args:
            images: [N, 3, H, W], as `vosnet.transforms.encoder_input` makes them for `color_space`.

        Returns:
            [N, feature_dim, h, w] with h = ceil(H / output_stride), not L2-normalized.
        """
        x = functional.relu(self.bn1(self.conv1(images)), inplace=True)
        if self.stem_pool:
            x = functional.max_pool2d(x, 3, 2, 1)
        for stage in self.stages:
            x = cast("nn.Module", getattr(self, stage))(x)
        if self.out_conv is not None:
            x = self.out_conv(x)
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
    color_space: ColorSpace = "rgb",
) -> Encoder:
    """An `Encoder` with He initialization drawn from `seed`; the global random state is untouched.

    The numbers of a layer do not depend on where the network is cut. A convolution that ends the network
    (MAST's) has no ReLU after it: it keeps the variance, so that the dot products of its features divided
    by the root of their channels start out as logits of a soft softmax.

    Raises:
        UsageError: an unknown arch, layer, output_stride, padding or color_space (E160).
    """
    with torch.random.fork_rng(devices=[]):  # constructors draw default weights that are replaced below
        encoder = Encoder(arch, layer, output_stride, padding, head_stage, head_dims, color_space)
    generator = torch.Generator().manual_seed(seed)
    he_initialize(encoder, generator)
    if encoder.out_conv is not None:
        nn.init.kaiming_normal_(encoder.out_conv.weight, nonlinearity="linear", generator=generator)
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
