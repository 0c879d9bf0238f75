"""What the windowed readout means: properties that hold whatever the implementation."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vosnet_kernels import windowed_readout
from vosnet_kernels.windowed_readout.reference import windowed_readout_reference

H, W = 11, 14


def distinct_features() -> Tensor:
    """Every cell its own direction, [1, H * W, H, W]."""
    return torch.eye(H * W).reshape(1, H * W, H, W)


def test_still_scene_matches_itself() -> None:
    features, value = distinct_features(), torch.rand(1, 1, 3, H, W)
    readout = windowed_readout(features, features[:, None], value, radius=4, temperature=0.01)
    torch.testing.assert_close(readout, value[:, 0])


def test_readout_follows_motion_within_the_window_only() -> None:
    features, value = distinct_features(), torch.rand(1, 1, 2, H, W)
    moved = torch.roll(features, (2, -3), dims=(2, 3))
    inner = (slice(None), slice(None), slice(5, H - 5), slice(5, W - 5))
    near = windowed_readout(moved, features[:, None], value, radius=3, temperature=0.01)
    torch.testing.assert_close(near[inner], torch.roll(value[:, 0], (2, -3), dims=(2, 3))[inner])
    far = windowed_readout(moved, features[:, None], value, radius=2, temperature=0.01)
    mean = torch.nn.functional.avg_pool2d(
        value[:, 0], 5, 1, 2
    )  # nothing matches: every cell of the window counts the same
    torch.testing.assert_close(far[inner], mean[inner])


def test_zero_radius_averages_the_same_cell_over_frames() -> None:
    query, memory = torch.zeros(1, 4, H, W), torch.randn(1, 3, 4, H, W)
    value = torch.rand(1, 3, 2, H, W)
    torch.testing.assert_close(windowed_readout(query, memory, value, radius=0), value.mean(1))


def test_zero_radius_copies_the_value() -> None:
    query, memory, value = torch.randn(1, 4, H, W), torch.randn(1, 1, 4, H, W), torch.rand(1, 1, 2, H, W)
    torch.testing.assert_close(windowed_readout(query, memory, value, radius=0), value[:, 0])


def test_cells_beyond_the_frame_get_no_weight_when_excluded() -> None:
    query, memory, value = torch.randn(1, 8, 5, 6), torch.randn(1, 2, 8, 5, 6), torch.ones(1, 2, 1, 5, 6)
    readout = windowed_readout(query, memory, value, radius=3, outside="exclude")
    torch.testing.assert_close(readout, torch.ones(1, 1, 5, 6))


def test_cells_beyond_the_frame_keep_logit_and_value_zero_when_asked() -> None:
    query, memory, value = torch.zeros(1, 8, 5, 6), torch.randn(1, 2, 8, 5, 6), torch.ones(1, 2, 1, 5, 6)
    readout = windowed_readout(query, memory, value, radius=1, outside="zero")
    torch.testing.assert_close(readout[0, 0, 0, 0].item(), 4 / 9)
    torch.testing.assert_close(readout[0, 0, 0, 3].item(), 6 / 9)
    torch.testing.assert_close(readout[0, 0, 2, 3].item(), 1.0)


def test_rules_for_the_outside_agree_where_no_window_leaves_the_frame() -> None:
    tensors = torch.randn(1, 8, 12, 12), torch.randn(1, 1, 8, 12, 12), torch.rand(1, 1, 2, 12, 12)
    exclude, zero = (windowed_readout(*tensors, radius=3, outside=rule) for rule in ("exclude", "zero"))
    assert torch.equal(exclude[..., 3:-3, 3:-3], zero[..., 3:-3, 3:-3])
    assert not torch.equal(exclude, zero)


@pytest.mark.parametrize("outside", ["exclude", "zero"])
def test_extreme_logits_stay_finite(outside: str) -> None:
    query, memory = torch.randn(1, 8, 9, 9) * 100, torch.randn(1, 2, 8, 9, 9) * 100
    memory[:, 0] = -query  # one frame with very low, one with very high logits
    leaves = [query.requires_grad_(), memory.requires_grad_(), torch.rand(1, 2, 2, 9, 9).requires_grad_()]
    readout = windowed_readout(*leaves, radius=2, temperature=0.05, outside=outside)
    readout.sum().backward()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in (readout, *(leaf.grad for leaf in leaves)))


def test_temperature_zero_limit_takes_the_best_match() -> None:
    generator = torch.Generator().manual_seed(3)
    query, memory = (
        torch.randn(1, 8, 6, 6, generator=generator),
        torch.randn(1, 1, 8, 6, 6, generator=generator),
    )
    value = torch.rand(1, 1, 1, 6, 6, generator=generator)
    affinity = torch.einsum("bcn,bcm->bnm", query.flatten(2), memory[:, 0].flatten(2))
    best = value.flatten()[affinity.argmax(dim=2)].view(1, 1, 6, 6)
    got = windowed_readout(query, memory, value, radius=5, temperature=1e-4)
    torch.testing.assert_close(got, best)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, top) for top in (2, 3, 9, 18, 18, 4))),
    radius=st.integers(0, 10),
    outside=st.sampled_from(["exclude", "zero"]),
)
def test_any_shape_agrees_with_the_definition(shape: tuple[int, ...], radius: int, outside: str) -> None:
    b, t, c, h, w, m = shape
    generator = torch.Generator().manual_seed(sum(shape))
    tensors = [
        torch.randn(sizes, generator=generator, dtype=torch.float64).requires_grad_()
        for sizes in ((b, c, h, w), (b, t, c, h, w), (b, t, m, h, w))
    ]
    rules: dict[str, Any] = {"radius": radius, "temperature": 1.7, "outside": outside}
    got, exact = windowed_readout(*tensors, **rules), windowed_readout_reference(*tensors, **rules)
    torch.testing.assert_close(got, exact)
    torch.testing.assert_close(
        torch.autograd.grad(got.square().sum(), tensors), torch.autograd.grad(exact.square().sum(), tensors)
    )
