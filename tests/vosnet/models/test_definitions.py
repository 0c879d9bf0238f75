"""The networks against plain definitions: He et al. 2016, Ronneberger et al. 2015, He et al. 2015."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vosnet.models import Encoder, MaskSegmenter, build_encoder
from vosnet.models.initialization import he_initialize
from vosnet.models.unet import build_unet

State = dict[str, Tensor]
# arch -> blocks per stage, 3x3 convolutions per block, strides of the stages, max-pooling in the stem
PLAIN = {
    "resnet18": ((2, 2, 2, 2), 2, (1, 2, 2, 2), True),
    "resnet50": ((3, 4, 6, 3), 3, (1, 2, 2, 2), True),
    "mast_resnet18": ((2, 2, 2, 2), 2, (1, 2, 1, 1), False),
    "mast_resnet18_pooled": ((2, 2, 2, 2), 2, (1, 1, 1, 1), True),
}


def convolved(x: Tensor, state: State, name: str, stride: int = 1, mode: str = "constant") -> Tensor:
    weight = state[f"{name}.weight"]
    side = weight.shape[-1] // 2
    padded = F.pad(x, (side,) * 4, mode=mode) if side else x
    return F.conv2d(padded, weight, state.get(f"{name}.bias"), stride)


def normalized(x: Tensor, state: State, name: str) -> Tensor:
    parts = (
        state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    mean, variance, weight, bias = parts
    return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def block(x: Tensor, state: State, name: str, convolutions: int, stride: int, mode: str) -> Tensor:
    """A residual block; of three convolutions (a bottleneck) the middle one is strided."""
    shortcut = x
    if f"{name}.downsample.0.weight" in state:
        shortcut = convolved(x, state, f"{name}.downsample.0", stride)
        shortcut = normalized(shortcut, state, f"{name}.downsample.1")
    for i in range(1, convolutions + 1):
        strided = i == (1 if convolutions == 2 else 2)
        x = convolved(x, state, f"{name}.conv{i}", stride if strided else 1, mode)
        x = normalized(x, state, f"{name}.bn{i}")
        x = x + shortcut if i == convolutions else x
        x = x.clamp(min=0)
    return x


def plain_resnet(
    x: Tensor, state: State, arch: str, last: int, limit: int, mode: str = "constant"
) -> list[Tensor]:
    """The stem's output and that of layer1 to layer`last`; a stride that would pass `limit` becomes 1."""
    depths, convolutions, strides, pooled = PLAIN[arch]
    x = normalized(convolved(x, state, "conv1", 2, mode), state, "bn1").clamp(min=0)
    grids = [x]
    x, total = (F.max_pool2d(x, 3, 2, 1), 4) if pooled else (x, 2)
    for stage in range(1, last + 1):
        stride = strides[stage - 1] if total * strides[stage - 1] <= limit else 1
        total *= stride
        for i in range(depths[stage - 1]):
            x = block(x, state, f"layer{stage}.{i}", convolutions, stride if i == 0 else 1, mode)
        grids.append(x)
    return grids


def stirred(network: nn.Module) -> State:
    """The state of `network` after its normalization layers got statistics of their own."""
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert isinstance(tensor, Tensor)
                tensor.data = torch.rand(tensor.shape, generator=generator) + 0.5
    return dict(network.state_dict())


@pytest.mark.parametrize(
    ("arch", "last", "limit", "padding"),
    [
        ("resnet18", 4, 8, "zeros"),
        ("resnet18", 4, 32, "reflect"),
        ("resnet18", 3, 4, "zeros"),
        ("resnet50", 3, 8, "reflect"),
        ("resnet50", 4, 16, "zeros"),
        ("mast_resnet18", 4, 4, "zeros"),
        ("mast_resnet18_pooled", 2, 4, "zeros"),
    ],
)
def test_an_encoder_is_the_plain_resnet(arch: str, last: int, limit: int, padding: str) -> None:
    encoder = build_encoder(
        arch,  # type: ignore[arg-type]
        layer=f"layer{last}", output_stride=limit, padding=padding, seed=1,  # type: ignore[arg-type]
    ).eval()  # fmt: skip
    state = stirred(encoder)
    images = torch.randn(2, 3, 70, 90)
    mode = "reflect" if padding == "reflect" else "constant"
    expected = plain_resnet(images, state, arch, last, limit, mode)[-1]
    if "out_conv.weight" in state:
        expected = convolved(expected, state, "out_conv")
    with torch.no_grad():
        got = encoder(images)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_the_head_is_a_perceptron_of_one_hidden_layer_per_cell() -> None:
    encoder = Encoder(layer="head", head_stage="layer2", head_dims=(24, 16)).eval()
    state = stirred(encoder)
    images = torch.randn(2, 3, 40, 40)
    x = plain_resnet(images, state, "resnet18", 2, 8)[-1]
    x = normalized(convolved(x, state, "head.conv1"), state, "head.bn1").clamp(min=0)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), convolved(x, state, "head.conv2"), rtol=1e-3, atol=1e-3)


def test_the_u_net_joins_every_grid_on_its_way_back() -> None:
    unet = build_unet(4, seed=2, decoder_dims=(12, 10, 8, 6)).eval()
    state = stirred(unet)
    images = torch.randn(2, 3, 70, 90)
    grids = plain_resnet(images, state, "resnet18", 4, 32)
    x = grids.pop()
    for i, skip in enumerate(reversed(grids)):
        x = F.interpolate(x, skip.shape[-2:], mode="nearest-exact")
        x = convolved(torch.cat([x, skip], 1), state, f"up.{i}.conv")
        x = normalized(x, state, f"up.{i}.bn").clamp(min=0)
    logits = F.interpolate(convolved(x, state, "classify"), (70, 90), mode="bilinear")
    with torch.no_grad():
        torch.testing.assert_close(unet(images), logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max()))


def test_the_u_nets_statistics_follow_at_the_asked_pace() -> None:
    unet = build_unet(2, bn_momentum=0.3).train()
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        mean = unet.conv1(images).mean((0, 2, 3))
        unet(images)
    torch.testing.assert_close(unet.bn1.running_mean, 0.3 * mean, rtol=1e-4, atol=1e-5)
    assert {m.momentum for m in unet.modules() if isinstance(m, nn.BatchNorm2d)} == {0.3}


def assert_he(weight: Tensor, deviation: float) -> None:
    count = weight.numel()
    assert weight.std().item() == pytest.approx(deviation, rel=5 / math.sqrt(2 * count))
    assert weight.mean().abs().item() < 5 * deviation / math.sqrt(count)
    inside = (weight.abs() < deviation).float().mean().item()
    assert inside == pytest.approx(0.6827, abs=2.5 / math.sqrt(count))  # normal, not uniform


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "encoder": build_encoder("resnet18", layer="head", head_dims=(64, 16), seed=1),
        "bottlenecks": build_encoder("resnet50", layer="layer2", seed=1),
        "u-net": build_unet(3, seed=1),
        "mask encoder": MaskSegmenter().mask_encoder,
    }


@pytest.mark.parametrize("name", ["encoder", "bottlenecks", "u-net", "mask encoder"])
def test_convolutions_start_as_he_et_al_and_their_biases_at_zero(name: str) -> None:
    """Normal with variance 2 / fan out: kernel area times output channels."""
    for part, module in networks()[name].named_modules():
        if isinstance(module, nn.Conv2d):
            if module.weight.numel() > 500:
                area = module.kernel_size[0] * module.kernel_size[1]
                assert_he(module.weight.detach(), math.sqrt(2 / (area * module.out_channels)))
            assert module.bias is None or not module.bias.any(), part
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()


def test_the_last_convolution_of_mast_keeps_the_variance() -> None:
    """No ReLU follows it: variance 1 / fan in."""
    weight = build_encoder("mast_resnet18", output_stride=4, color_space="lab").out_conv.weight
    assert weight.shape == (64, 256, 3, 3)
    assert_he(weight.detach(), math.sqrt(1 / (9 * 256)))


def test_initialization_draws_from_the_given_generator_alone() -> None:
    first, second = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
    state = torch.random.get_rng_state()
    he_initialize(first, torch.Generator().manual_seed(1))
    he_initialize(second, torch.Generator().manual_seed(1))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(state, torch.random.get_rng_state())
    he_initialize(second)
    assert not torch.equal(first.weight, second.weight)
    assert not torch.equal(state, torch.random.get_rng_state())
