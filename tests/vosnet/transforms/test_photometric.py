"""Color jitter: each column of the draws does what it says."""

import pytest
import torch
from torch import Tensor

from vosnet.transforms.photometric import ColorJitter, jitter_colors

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
LUMA = torch.tensor([0.299, 0.587, 0.114])


def draws(**columns: float) -> Tensor:
    names = ["brightness", "contrast", "saturation", "hue", "apply", "gray"]
    row = [columns.get(name, 0.5 if i < 5 else 0.999) for i, name in enumerate(names)]
    return torch.tensor([row, row])


def luma(images: Tensor) -> Tensor:
    return torch.einsum("nchw,c->nhw", images, LUMA)


def test_the_middle_of_every_range_changes_nothing() -> None:
    jitter = ColorJitter(0.4, 0.4, 0.4, 0.2)
    torch.testing.assert_close(jitter_colors(IMAGES, draws(), jitter), IMAGES)


@pytest.mark.parametrize("strength", [0.2, 0.4])
def test_brightness_scales(strength: float) -> None:
    got = jitter_colors(IMAGES, draws(brightness=0.0), ColorJitter(brightness=strength))
    torch.testing.assert_close(got, IMAGES * (1 - strength))


def test_contrast_shrinks_towards_the_mean_luma() -> None:
    got = jitter_colors(IMAGES, draws(contrast=0.0), ColorJitter(contrast=0.5))
    mean = luma(IMAGES).mean((1, 2))[:, None, None, None]
    torch.testing.assert_close(got, (IMAGES + mean) / 2)


def test_contrast_is_about_the_mean_of_the_brightened_image() -> None:
    got = jitter_colors(IMAGES, draws(brightness=0.0, contrast=0.0), ColorJitter(0.4, 0.5))
    mean = 0.6 * luma(IMAGES).mean((1, 2))[:, None, None, None]
    torch.testing.assert_close(got, (0.6 * IMAGES + mean) / 2)


def test_gray_has_equal_channels_and_the_same_luma() -> None:
    got = jitter_colors(IMAGES, draws(gray=0.0), ColorJitter(gray_probability=0.1))
    torch.testing.assert_close(got, luma(IMAGES)[:, None].expand(-1, 3, -1, -1))


def test_hue_keeps_luma_and_a_third_of_the_circle_turns_red_to_another_color() -> None:
    got = jitter_colors(IMAGES, draws(hue=0.75), ColorJitter(hue=0.1))
    torch.testing.assert_close(luma(got), luma(IMAGES), atol=2e-3, rtol=0)
    red = torch.tensor([0.6, 0.4, 0.4])[None, :, None, None].expand(2, 3, 4, 4)
    turned = jitter_colors(red, draws(hue=1.0), ColorJitter(hue=1 / 3))
    assert turned[0, :, 0, 0].argmax() != 0


def test_probability_zero_leaves_images_alone() -> None:
    jitter = ColorJitter(0.4, 0.4, 0.4, 0.2, probability=0.0)
    extreme = draws(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    torch.testing.assert_close(jitter_colors(IMAGES, extreme, jitter), IMAGES)
