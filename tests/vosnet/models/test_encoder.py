"""The ResNet encoders: names, strides, initialization, compilation, and encoders of other people."""

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from vosnet.errors import UsageError
from vosnet.models import CallableEncoder, Encoder, ProjectionHead, build_encoder
from vosnet.models.resnet import Arch


@pytest.mark.parametrize(
    ("arch", "layer", "output_stride", "dim", "stride"),
    [
        pytest.param("resnet18", "layer2", 8, 128, 8, id="layer2"),
        pytest.param("resnet18", "layer3", 8, 256, 8, id="crw-and-vfs"),
        pytest.param("resnet18", "layer4", 8, 512, 8, id="dul"),
        pytest.param("resnet18", "layer4", 4, 512, 4, id="stride-4"),
        pytest.param("resnet18", "head", 8, 128, 8, id="head"),
        pytest.param("resnet50", "layer3", 8, 1024, 8, id="resnet50"),
        pytest.param("resnet50", "layer4", 32, 2048, 32, id="as-trained-for-classification"),
    ],
)
def test_grid_is_the_ceiling_of_size_over_stride(
    arch: str, layer: str, output_stride: int, dim: int, stride: int
) -> None:
    encoder = build_encoder(arch, layer=layer, output_stride=output_stride).eval()
    with torch.no_grad():
        features = encoder(torch.randn(1, 3, 37, 54))
    assert (encoder.feature_dim, encoder.output_stride) == (dim, stride)
    assert features.shape == (1, dim, -(-37 // stride), -(-54 // stride))
    assert features.isfinite().all()


def test_names_are_those_of_torchvision() -> None:
    names = set(build_encoder("resnet18", layer="layer4").state_dict())
    assert len(names) == 120  # torchvision's 122 without fc.weight and fc.bias
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer2.0.downsample.1.bias",
        "layer4.1.conv2.weight",
    } <= names
    names = set(build_encoder("resnet50", layer="layer4").state_dict())
    assert len(names) == 318  # 320 without fc
    assert {"layer1.0.downsample.0.weight", "layer3.5.bn3.weight"} <= names


def test_the_stride_of_a_bottleneck_lies_in_its_3x3_convolution() -> None:
    block = build_encoder("resnet50", layer="layer2").layer2[0]
    assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((1, 1), (2, 2), (1, 1))


def test_random_weights_depend_on_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    first = build_encoder(layer="layer2", seed=3).state_dict()
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(99)
    deeper = build_encoder(layer="layer4", seed=3).state_dict()
    other = build_encoder(layer="layer2", seed=4).state_dict()
    assert all(torch.equal(first[name], deeper[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_random_convolutions_have_he_variance() -> None:
    weight = build_encoder(layer="layer4").layer4[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


def test_reflect_padding_changes_only_the_border() -> None:
    zeros = build_encoder(layer="layer2", padding="zeros").eval()
    reflect = build_encoder(layer="layer2", padding="reflect").eval()
    image = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        difference = (zeros(image) - reflect(image)).abs().amax(1)[0]
    assert difference[0].max() > 1e-3
    assert difference[13:19, 13:19].max() < 1e-4


def test_gradients_reach_every_parameter() -> None:
    encoder = build_encoder(layer="layer3").train()
    head = ProjectionHead(encoder.feature_dim, 16, 8)
    head(encoder(torch.randn(2, 3, 32, 32))).square().sum().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in [*encoder.parameters(), *head.parameters()]
    )


@pytest.mark.parametrize(
    "wrong", [{"arch": "resnet19"}, {"layer": "layer5"}, {"output_stride": 6}, {"padding": "same"}]
)
def test_unknown_choices_are_named_with_the_known_ones(wrong: dict[str, object]) -> None:
    value = next(iter(wrong.values()))
    with pytest.raises(UsageError, match=rf"must be one of .* got {value!r}"):
        Encoder(**wrong)


def test_one_graph_serves_three_clip_sizes() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    encoder = build_encoder(layer="layer3").eval()
    compiled = torch.compile(encoder, fullgraph=True, dynamic=True, backend=counter)
    with torch.no_grad():
        for size in ((32, 48), (40, 72), (61, 33)):
            images = torch.randn(1, 3, *size)
            torch.testing.assert_close(compiled(images), encoder(images))
    assert counter.frame_count == 1


def test_any_callable_is_an_encoder_when_its_stride_is_stated() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 14, 14)

        def forward(self, images: Tensor) -> Tensor:
            return self.conv(images)

    encoder = CallableEncoder(Patches(), output_stride=14)
    assert encoder(torch.randn(2, 3, 30, 44)).shape == (2, 6, 2, 3)
    assert len(list(encoder.parameters())) == 2


@pytest.mark.parametrize(
    "function", [lambda x: x[..., ::4, ::4], lambda x: x.mean((2, 3))], ids=["other-stride", "no-grid"]
)
def test_an_answer_that_contradicts_the_stated_stride_is_refused(function: object) -> None:
    with pytest.raises(UsageError, match="output_stride 8 but made"):
        CallableEncoder(function, 8)(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("arch", "layer", "macs_per_cell"),
    [
        ("mast_resnet18", "layer4", 5.8e6),
        ("mast_resnet18", "layer2", 1.3e6),
        ("mast_resnet18_pooled", "layer2", 0.8e6),
    ],
)
def test_masts_networks_have_stride_4_64_channels_and_their_known_cost(
    arch: Arch, layer: str, macs_per_cell: float
) -> None:
    encoder = build_encoder(arch, layer=layer, color_space="lab").eval()
    macs = 0

    def count(module: nn.Conv2d, _: object, output: Tensor) -> None:
        nonlocal macs
        macs += output[0, 0].numel() * module.weight.numel()

    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        features = encoder(torch.randn(1, 3, 64, 48))
    assert features.shape == (1, 64, 16, 12)
    assert (encoder.output_stride, encoder.feature_dim) == (4, 64)
    assert macs / (16 * 12) == pytest.approx(macs_per_cell, rel=0.1)


def test_features_of_masts_network_start_as_logits_of_a_soft_softmax() -> None:
    encoder = build_encoder("mast_resnet18_pooled", layer="layer2", color_space="lab").train()
    with torch.no_grad():
        features = encoder(torch.randn(2, 3, 64, 64))
    assert 0.5 < features.square().mean() < 4
