"""The U-Net: any size, as many classes as asked for, the same weights for the same seed."""

import pytest
import torch

from vosnet.errors import UsageError
from vosnet.models.unet import build_unet


@pytest.mark.parametrize(("height", "width"), [(64, 64), (45, 83)], ids=["even", "odd-sizes"])
def test_logits_have_the_images_size(height: int, width: int) -> None:
    unet = build_unet(6, decoder_dims=(16, 8, 8, 8)).eval()
    assert unet(torch.randn(2, 3, height, width)).shape == (2, 6, height, width)


def test_weights_depend_on_the_seed_alone_and_the_global_state_is_left() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (build_unet(3, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["layer3.0.conv1.weight"], other["layer3.0.conv1.weight"])


def test_every_resolution_reaches_the_answer() -> None:
    unet = build_unet(2)
    unet(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert not [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()]


def test_one_class_is_refused() -> None:
    with pytest.raises(UsageError, match="2 classes"):
        build_unet(1)
