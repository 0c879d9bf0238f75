"""Similarity transforms: conventions, inverse, nearest cells, and the views made with them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vosnet.transforms import (
    invert_similarity,
    nearest_index,
    random_similarity,
    similarity_theta,
    warp_images,
    warp_nearest,
)


def theta_of(scale: float = 1.0, x: float = 0.0, y: float = 0.0, *, flip: bool = False) -> Tensor:
    values = [torch.tensor([value]) for value in (scale, x, y)]
    return similarity_theta(*values, torch.tensor([flip]))


def test_theta_maps_output_points_to_input_points_and_the_flip_multiplies_the_shift() -> None:
    corner = torch.tensor([1.0, -1.0, 1.0])
    assert (theta_of(0.5, 0.25, -0.5) @ corner).tolist() == [[0.75, -1.0]]
    assert (theta_of(0.5, 0.25, -0.5, flip=True) @ corner).tolist() == [[-0.75, -1.0]]


def test_a_flip_mirrors_and_a_half_zoom_shows_the_middle() -> None:
    image = torch.arange(64.0).view(1, 1, 1, 8, 8).expand(1, 1, 3, 8, 8)
    torch.testing.assert_close(warp_images(image, theta_of(flip=True)), image.flip(-1))
    middle = warp_images(image, theta_of(0.5))
    assert middle.min() >= image[..., 2, 2].min() - 5
    torch.testing.assert_close(middle.mean(), image.mean())


def test_the_inverse_undoes_a_transform() -> None:
    theta = torch.stack([random_similarity(torch.Generator().manual_seed(i)) for i in range(20)])
    points = torch.rand(20, 2, 1) * 2 - 1
    one = torch.ones(20, 1, 1)
    there = theta @ torch.cat([points, one], dim=1)
    back = invert_similarity(theta) @ torch.cat([there, one], dim=1)
    torch.testing.assert_close(back, points, rtol=0, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 12), st.floats(0.2, 1.6))
def test_picking_cells_equals_grid_sample_nearest(seed: int, h: int, w: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.rand(1, generator=generator) - 0.5 for _ in range(2))
    theta = similarity_theta(torch.tensor([scale]), x, y, torch.tensor([bool(seed % 2)]))
    feature = torch.randn(1, 2, 3, h, w, generator=generator)
    grid = F.affine_grid(theta, [1, 1, h, w], align_corners=False)
    expected = torch.stack(
        [F.grid_sample(feature[:, t], grid, mode="nearest", align_corners=False) for t in range(2)], dim=1
    )
    assert torch.equal(warp_nearest(feature, nearest_index(theta, h, w)), expected)


def test_random_views_never_look_outside_the_frame_and_cover_the_zoom_range() -> None:
    thetas = torch.stack([random_similarity(torch.Generator().manual_seed(i)) for i in range(400)])
    scale, shift = thetas[:, 1, 1], thetas[:, :, 2].abs().amax(1)
    assert float((scale + shift).max()) <= 1 + 1e-6
    assert 0.5 <= float(scale.min()) < 0.52
    assert 0.98 < float(scale.max()) <= 1
    assert 120 < int((thetas[:, 0, 0] < 0).sum()) < 280


def test_the_visible_part_lies_anywhere_in_the_frame() -> None:
    thetas = torch.stack([random_similarity(torch.Generator().manual_seed(i)) for i in range(400)])
    room = 1 - thetas[:, 1, 1]
    x, y = thetas[:, 0, 2] * thetas[:, 0, 0].sign() / room, thetas[:, 1, 2] / room  # uniform in [-1, 1]
    for place in (x, y):
        assert (float(place.min()), float(place.max())) == pytest.approx((-1, 1), abs=0.05)
        assert abs(float(place.mean())) < 0.12
    assert abs(float(torch.corrcoef(torch.stack([x, y]))[0, 1])) < 0.2


def test_a_view_needs_four_random_numbers_whatever_its_options() -> None:
    a, b = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    random_similarity(a, zoom=(1.0, 1.0), flip_probability=0)
    random_similarity(b)
    assert torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=b))


@pytest.mark.parametrize("zoom", [(0.5, 1.5), (0.0, 1.0), (0.9, 0.5)])
def test_a_zoom_out_of_range_is_refused(zoom: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="zoom"):
        random_similarity(torch.Generator(), zoom=zoom)
