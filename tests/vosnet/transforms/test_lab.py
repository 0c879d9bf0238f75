"""CIE Lab against two other implementations, its scaling, and jitter in it."""

import cv2
import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from vosnet.transforms import encoder_input, normalize_images, rgb_to_lab, scaled_lab
from vosnet.transforms.jitter import NUM_DRAWS, jitter_lab

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
TENSOR = torch.from_numpy(IMAGE).permute(2, 0, 1)


def test_lab_is_that_of_scikit_image() -> None:
    ours = rgb_to_lab(TENSOR).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(ours, rgb2lab(IMAGE / 255), atol=0.02)  # its white point has other digits


def test_lab_is_opencvs_up_to_the_eight_bits_of_its_other_form() -> None:
    ours = rgb_to_lab(TENSOR).permute(1, 2, 0).numpy()
    exact = cv2.cvtColor((IMAGE / 255).astype(np.float32), cv2.COLOR_RGB2Lab)
    np.testing.assert_allclose(ours, exact, atol=0.3)  # OpenCV interpolates in tables
    rounded = cv2.cvtColor(IMAGE, cv2.COLOR_RGB2Lab).astype(np.float32) * (100 / 255, 1, 1) - (0, 128, 128)
    assert 0.05 < np.abs(ours - rounded).max() < 2  # the round trip through uint8 costs up to a unit


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_gray_has_no_chroma_and_white_is_full(dtype: torch.dtype) -> None:
    gray = torch.arange(0, 256, 5, dtype=torch.int32).to(dtype).expand(3, 1, -1)
    lab = rgb_to_lab(gray)
    assert lab[1:].abs().max() < 1e-3
    assert lab[0, 0, 0].abs() < 1e-4
    assert (lab[0, 0, -1] - 100).abs() < 1e-3
    assert (lab[0].diff() > 0).all()


def test_scaled_lab_spans_about_one_and_any_batch_shape_gives_the_same() -> None:
    scaled = scaled_lab(TENSOR)
    lab = rgb_to_lab(TENSOR)
    torch.testing.assert_close(scaled[0], (lab[0] - 50) / 50)
    torch.testing.assert_close(scaled[1:], lab[1:] / 127)
    torch.testing.assert_close(scaled_lab(TENSOR.float().expand(2, 3, -1, -1, -1))[1, 2], scaled)


def test_the_encoders_input_follows_its_color_space() -> None:
    assert torch.equal(encoder_input(TENSOR, "rgb"), normalize_images(TENSOR))
    assert torch.equal(encoder_input(TENSOR, "lab"), scaled_lab(TENSOR))


def test_jitter_changes_the_chosen_frames_only_and_mildly() -> None:
    frames = scaled_lab(TENSOR).expand(4, -1, -1, -1)
    draws = torch.rand(4, NUM_DRAWS, generator=torch.Generator().manual_seed(0))
    draws[:, 0] = torch.tensor([0.0, 0.29, 0.3, 0.9])
    changed = jitter_lab(frames, draws, probability=0.3, strength=0.1)
    torch.testing.assert_close(changed[2:], frames[2:])
    assert ((changed - frames).abs().amax((1, 2, 3)) > 0.01).tolist() == [True, True, False, False]
    assert (changed - frames).abs().max() < 0.5
    hue_free = draws.clone()
    hue_free[:, 4] = 0.5
    turned = jitter_lab(frames, hue_free, probability=1.0, strength=0.1)
    angle = torch.atan2(turned[:, 2], turned[:, 1]) - torch.atan2(frames[:, 2], frames[:, 1])
    assert angle.abs().max() < 1e-3  # saturation alone keeps the hue


def test_each_amount_of_the_jitter_is_a_shift_a_scale_or_a_turn() -> None:
    frames = scaled_lab(TENSOR).expand(4, -1, -1, -1)
    lightness, a, b = frames[0]
    draws = torch.full((4, NUM_DRAWS), 0.5)
    draws[range(4), range(1, NUM_DRAWS)] = 1.0  # one at its upper end, the others in the middle: no change
    brightness, contrast, saturation, hue = jitter_lab(frames, draws, probability=1.0, strength=0.5)
    mean = lightness.mean()
    torch.testing.assert_close(brightness, torch.stack([lightness + 0.5, a, b]))
    torch.testing.assert_close(contrast, torch.stack([mean + 1.5 * (lightness - mean), a, b]))
    torch.testing.assert_close(saturation, torch.stack([lightness, 1.5 * a, 1.5 * b]))
    torch.testing.assert_close(hue, torch.stack([lightness, -b, a]))  # half of a half turn
