"""ResNet trunks in plain torch, torchvision's and MAST's; parameters carry torchvision's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

Arch = Literal["resnet18", "resnet50", "mast_resnet18", "mast_resnet18_pooled"]
Padding = Literal["zeros", "reflect"]
OutputStride = Literal[4, 8, 16, 32]
STAGES = ("layer1", "layer2", "layer3", "layer4")


def conv3x3(in_dim: int, out_dim: int, stride: int, padding: Padding) -> nn.Conv2d:
    return nn.Conv2d(in_dim, out_dim, 3, stride, 1, bias=False, padding_mode=padding)


def _projection(in_dim: int, out_dim: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_dim == out_dim:
        return None
    # oneDNN corrupts memory in the backward of a strided one over few channels (uxlfoundation/oneDNN#6035)
    kind = _SubsampledConv2d if stride > 1 and in_dim < 16 else nn.Conv2d
    return nn.Sequential(kind(in_dim, out_dim, 1, stride, bias=False), nn.BatchNorm2d(out_dim))


class _SubsampledConv2d(nn.Conv2d):
    """A strided 1x1 convolution, computed as one without stride over every `stride`-th cell."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x[..., :: self.stride[0], :: self.stride[1]], self.weight)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the first with the stride, added to the (projected) input."""

    expansion = 1

    def __init__(self, in_dim: int, dim: int, stride: int, padding: Padding) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_dim, dim, stride, padding)
        self.bn1 = nn.BatchNorm2d(dim)
        self.conv2 = conv3x3(dim, dim, 1, padding)
        self.bn2 = nn.BatchNorm2d(dim)
        self.downsample = _projection(in_dim, dim, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_dim, h, w] -> [N, dim, h / stride, w / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.bn2(self.conv2(x))
        return functional.relu(x + shortcut, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions, added to the (projected) input."""

    expansion = 4

    def __init__(self, in_dim: int, dim: int, stride: int, padding: Padding) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_dim, dim, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(dim)
        self.conv2 = conv3x3(dim, dim, stride, padding)
        self.bn2 = nn.BatchNorm2d(dim)
        self.conv3 = nn.Conv2d(dim, dim * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(dim * self.expansion)
        self.downsample = _projection(in_dim, dim * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_dim, h, w] -> [N, 4 * dim, h / stride, w / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = functional.relu(self.bn2(self.conv2(x)), inplace=True)
        x = self.bn3(self.conv3(x))
        return functional.relu(x + shortcut, inplace=True)


@dataclass(frozen=True)
class Trunk:
    """The shape of a ResNet.

    Attributes:
        block: of all stages.
        depths: blocks of layer1..layer4.
        dims: channels of layer1..layer4 inside a block; it leaves `block.expansion` times as many.
        strides: of layer1..layer4 before `stage_strides` lowers any.
        stem_pool: max-pooling by 2 after conv1, which halves too.
        out_dim: channels of a 3x3 convolution after the last stage; None: no such convolution.
    """

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    dims: tuple[int, int, int, int] = (64, 128, 256, 512)
    strides: tuple[int, int, int, int] = (1, 2, 2, 2)
    stem_pool: bool = True
    out_dim: int | None = None

    @property
    def stem_stride(self) -> int:
        """Image pixels per cell of what enters layer1."""
        return 4 if self.stem_pool else 2


TRUNKS: dict[Arch, Trunk] = {
    "resnet18": Trunk(BasicBlock),
    "resnet50": Trunk(Bottleneck, depths=(3, 4, 6, 3)),
    # Lai et al. 2020: stride 4 without max-pooling, narrower layer4, 64 channels out
    "mast_resnet18": Trunk(
        BasicBlock, dims=(64, 128, 256, 256), strides=(1, 2, 1, 1), stem_pool=False, out_dim=64
    ),
    # Ours, for CPUs: max-pooling brings layer1 to stride 4 too, a quarter of its work
    "mast_resnet18_pooled": Trunk(BasicBlock, dims=(64, 128, 256, 256), strides=(1, 1, 1, 1), out_dim=64),
}


def stage_strides(arch: Arch, output_stride: int) -> tuple[int, int, int, int]:
    """Stride of layer1..layer4 so that no feature is coarser than `output_stride` image pixels.

    Strides that would go beyond become 1, without dilation, as in DUL, CRW and VFS.
    """
    strides, total = [], TRUNKS[arch].stem_stride
    for natural in TRUNKS[arch].strides:
        stride = natural if total * natural <= output_stride else 1
        total *= stride
        strides.append(stride)
    return strides[0], strides[1], strides[2], strides[3]


def stage_dim(arch: Arch, stage: str) -> int:
    """Channels that leave `stage`."""
    trunk = TRUNKS[arch]
    return trunk.dims[STAGES.index(stage)] * trunk.block.expansion


def make_stage(arch: Arch, stage: str, stride: int, padding: Padding) -> nn.Sequential:
    """One of layer1..layer4; only its first block is strided."""
    trunk, index = TRUNKS[arch], STAGES.index(stage)
    block, dim = trunk.block, trunk.dims[index]
    in_dim = 64 if index == 0 else stage_dim(arch, STAGES[index - 1])
    blocks = [block(in_dim, dim, stride, padding)]
    blocks += [block(dim * block.expansion, dim, 1, padding) for _ in range(trunk.depths[index] - 1)]
    return nn.Sequential(*blocks)
