"""Clips from stills: smooth, exact, and never beyond the picture."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vosnet.transforms.homography import corner_path, place_path, warp_still


def path(seed: int, T: int = 5, strength: float = 0.15) -> torch.Tensor:
    return corner_path(torch.Generator().manual_seed(seed), T, strength)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(40, 400),
    width=st.integers(40, 400),
    side=st.integers(20, 400),
    strength=st.floats(0, 0.4),
)
def test_the_path_stays_inside_the_picture(
    seed: int, height: int, width: int, side: int, strength: float
) -> None:
    place = torch.rand(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    corners = place_path(path(seed, strength=strength), side, (height, width), place)
    assert corners.amin() >= -1e-6
    assert corners[..., 0].amax() <= width - 1 + 1e-6
    assert corners[..., 1].amax() <= height - 1 + 1e-6


def test_motion_is_smooth_and_grows_with_its_strength() -> None:
    long = path(3, T=41)
    steps = long.diff(dim=0).norm(dim=2)
    assert steps.max() < 0.05
    assert long.diff(n=2, dim=0).norm(dim=2).max() < 0.005
    assert torch.allclose(path(3, strength=0.0), path(3, strength=0.0)[:1].expand(5, -1, -1))
    assert (path(3, strength=0.3) - path(3, strength=0.3)[:1]).abs().max() > 0.1


def test_pixels_are_read_at_their_exact_place() -> None:
    """A picture whose red and green are x and y shows where every pixel came from."""
    H, W, crop = 100, 140, 64
    y, x = np.mgrid[:H, :W]
    frame = np.stack([x, y, 0 * x], axis=2).astype(np.uint8)
    corners = place_path(path(5), crop, (H, W), torch.tensor([0.5, 0.5], dtype=torch.float64))
    seen = warp_still(frame, corners, crop).double()
    for t in range(5):
        top_left, top_right, bottom_right, bottom_left = corners[t]
        for corner, pixel in (
            (top_left, seen[t, 0, 0]),
            (top_right, seen[t, 0, -1]),
            (bottom_right, seen[t, -1, -1]),
            (bottom_left, seen[t, -1, 0]),
        ):
            assert (pixel[:2] - corner).abs().max() < 1.8  # half a pixel from the corner, and rounding
    # Straight lines stay straight: a homography and nothing else.
    row = seen[2, 32, :, :2]
    ends = row[-1] - row[0]
    off = (row - row[0]) @ torch.tensor([-ends[1], ends[0]], dtype=torch.float64) / ends.norm()
    assert off.abs().max() < 1.0


def test_no_border_shows_and_large_pictures_are_smoothed() -> None:
    white = np.full((90, 120, 3), 255, np.uint8)
    place = torch.zeros(2, dtype=torch.float64)
    for seed in range(5):
        corners = place_path(path(seed, strength=0.3), 200, (90, 120), place)
        assert warp_still(white, corners, 48).min() == 255
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    still = place_path(path(0, strength=0.0), 390, (400, 400), place)
    assert warp_still(noise, still, 40).float().std() < 0.3 * noise.std()


def test_the_center_follows_a_parabola_with_three_control_points() -> None:
    numbers = torch.rand((3, 12), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    control = 0.2 * (2 * numbers - 1)
    center = control[:, 2:4] + control[:, 4:].view(3, 4, 2).mean(dim=1) / 4  # shift, and the corners' own
    start, middle, end = corner_path(torch.Generator().manual_seed(7), 3, 0.2).mean(dim=1)
    torch.testing.assert_close(start, center[0])
    torch.testing.assert_close(middle, (center[0] + 2 * center[1] + center[2]) / 4)
    torch.testing.assert_close(end, center[2])


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_numbers_give_the_same_path(seed: int) -> None:
    assert torch.equal(path(seed), path(seed))
    assert not torch.equal(path(seed), path(seed + 1))
