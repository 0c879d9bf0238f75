"""Shapes nobody thought of: whatever the sizes and settings, the definition is what counts."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.knn_propagate.cases import Settings, inputs, reference, tied_inputs, tiled
from vosnet_kernels import workspace_limit

shapes = st.tuples(
    st.integers(1, 2),  # B
    st.integers(1, 5),  # T
    st.integers(1, 20),  # C
    st.integers(1, 20),  # h
    st.integers(1, 20),  # w
    st.integers(1, 4),  # M
)


@st.composite
def calls(draw: st.DrawFn) -> tuple[tuple[int, ...], Settings]:
    shape = draw(shapes)
    disc = draw(st.booleans())
    return shape, {
        "k": draw(st.integers(1, 12)),
        "temperature": draw(st.floats(0.02, 2.0)),
        "radius": draw(st.integers(1 if disc else 0, 12)),
        "shape": "disc" if disc else "square",
        "global_frames": draw(st.integers(0, shape[1])),
    }


@settings(max_examples=12, deadline=None, derandomize=True)
@given(calls(), st.integers(0, 100), st.sampled_from([1, 10_000, 10**8]))
def test_f41_any_call_agrees_with_the_definition(
    call: tuple[tuple[int, ...], Settings], seed: int, limit_bytes: int
) -> None:
    shape, settings_ = call
    tensors = inputs(shape, seed)
    with workspace_limit(limit_bytes):
        got = tiled(*tensors, **settings_)
    torch.testing.assert_close(got, reference(tensors, torch.float32, settings_), rtol=0, atol=3e-5)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(calls(), st.integers(0, 100))
def test_f41_ties_agree_with_the_definition(call: tuple[tuple[int, ...], Settings], seed: int) -> None:
    shape, settings_ = call
    tensors = tied_inputs(shape, seed)
    got = tiled(*tensors, **settings_)
    torch.testing.assert_close(got, reference(tensors, torch.float32, settings_), rtol=0, atol=1e-5)
