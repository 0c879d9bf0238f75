"""Numerics of the Triton kernels without a GPU: interpreted on small maps, against the definition.

On a GPU the tests of `test_windowed_readout.py` run the compiled kernels instead.
"""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.accuracy import assert_as_accurate_as
from tests.support.interpreter import Interpreter
from vosnet_kernels import windowed_readout_with_lse
from vosnet_kernels.windowed_readout.reference import windowed_readout_reference

WORKER = "tests.kernels.windowed_readout.interpreted"
FACTORS = (2.0, 3.0, 3.0, 3.0)  # readout, then gradients
CASES = [
    pytest.param((1, 2, 40, 5, 9, 3), {"radius": 3}, torch.float32, id="ragged-tiles-and-channels"),
    pytest.param((2, 2, 16, 6, 13, 20), {"radius": 0, "outside": "zero"}, torch.float32, id="own-cell-only"),
    pytest.param((1, 1, 16, 3, 5, 1), {"radius": 24, "outside": "zero"}, torch.float32, id="wide-window"),
    pytest.param((2, 1, 4, 2, 41, 2), {"radius": 13}, torch.float32, id="batch-and-blocks-side-by-side"),
    pytest.param((1, 1, 4, 19, 2, 2), {"radius": 3}, torch.float32, id="one-row-in-the-last-block"),
    pytest.param(
        (1, 1, 4, 2, 33, 2),
        {"radius": 17, "outside": "zero"},
        torch.float32,
        id="one-column-in-the-last-block",
    ),
    pytest.param((1, 2, 48, 9, 10, 3), {"radius": 5}, torch.bfloat16, id="bfloat16"),
    pytest.param((2, 1, 8, 2, 43, 2), {"radius": 14}, torch.bfloat16, id="bfloat16-blocks-side-by-side"),
    pytest.param((1, 1, 32, 8, 9, 2), {"radius": 2, "outside": "zero"}, torch.float16, id="float16"),
    pytest.param((1, 1, 600, 3, 4, 2), {"radius": 1}, torch.bfloat16, id="channels-in-chunks"),
]


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Query, memory, value and the readout's gradient."""
    b, t, c, h, w, m = shape
    generator = torch.Generator().manual_seed(0)
    sizes = ((b, c, h, w), (b, t, c, h, w), (b, t, m, h, w), (b, m, h, w))
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


def plain(tensors: list[Tensor], dtype: torch.dtype, **rules: Any) -> list[Tensor]:
    """Readout and gradients of the definition in `dtype`."""
    *leaves, grad = (tensor.detach().to(dtype).requires_grad_() for tensor in tensors)
    readout = windowed_readout_reference(*leaves, **rules)
    return [readout.detach(), *torch.autograd.grad(readout, leaves, grad.detach())]


@pytest.mark.parametrize(("shape", "rules", "dtype"), CASES)
def test_kernels_are_as_accurate_as_plain_torch(
    shape: tuple[int, ...], rules: dict[str, Any], dtype: torch.dtype, interpreter: Interpreter
) -> None:
    tensors, rules = inputs(shape, dtype), {"temperature": shape[2] ** 0.5, **rules}
    readout, _, *gradients = interpreter.call(WORKER, "readout_with_gradients", *tensors, **rules)
    exact, baseline = plain(tensors, torch.float64, **rules), plain(tensors, dtype, **rules)
    for got, near, truth, factor in zip([readout, *gradients], baseline, exact, FACTORS):
        assert_as_accurate_as(got, near, truth, factor)


@pytest.mark.parametrize("outside", ["exclude", "zero"])
def test_kernels_and_tiled_matmuls_agree_on_the_log_sum_exp(outside: str, interpreter: Interpreter) -> None:
    tensors = inputs((1, 2, 16, 6, 9, 1), torch.float32)
    _, lse, *_ = interpreter.call(WORKER, "readout_with_gradients", *tensors, 4, 0.5, outside, [False] * 3)
    settings: dict[str, Any] = {"radius": 4, "temperature": 0.5, "outside": outside}
    torch.testing.assert_close(lse, windowed_readout_with_lse(*tensors[:3], **settings)[1])


@pytest.mark.parametrize("needed", [1, 2, 4, 5], ids=["query", "memory", "value", "query-and-value"])
def test_kernels_compute_only_the_gradients_that_are_wanted(needed: int, interpreter: Interpreter) -> None:
    tensors = inputs((1, 1, 16, 4, 9, 2), torch.float32)
    needs = [bool(needed >> i & 1) for i in range(3)]
    got = interpreter.call(WORKER, "readout_with_gradients", *tensors, 2, 4.0, needs=needs)[2:]
    everything = interpreter.call(WORKER, "readout_with_gradients", *tensors, 2, 4.0)[2:]
    for gradient, full, wanted in zip(got, everything, needs):
        assert torch.equal(gradient, full) if wanted else gradient is None


def test_kernels_read_non_contiguous_inputs(interpreter: Interpreter) -> None:
    tensors = inputs((1, 2, 16, 6, 9, 2), torch.float32)
    strided = [tensor.mT.contiguous().mT for tensor in tensors]
    got = interpreter.call(WORKER, "readout_with_gradients", *strided, 2, 4.0)
    for a, b in zip(got, interpreter.call(WORKER, "readout_with_gradients", *tensors, 2, 4.0)):
        assert torch.equal(a, b)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(*(st.integers(1, top) for top in (2, 2, 20, 9, 12, 3))),
    radius=st.integers(0, 6),
    outside=st.sampled_from(["exclude", "zero"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_f41_kernels_agree_with_the_definition_on_any_shape(
    interpreter: Interpreter, shape: tuple[int, ...], radius: int, outside: str, dtype: torch.dtype
) -> None:
    tensors = inputs(shape, dtype)
    rules: dict[str, Any] = {"radius": radius, "temperature": 2.0 * shape[2] ** 0.5, "outside": outside}
    readout, _, *gradients = interpreter.call(WORKER, "readout_with_gradients", *tensors, **rules)
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    for got, exact in zip([readout, *gradients], plain(tensors, torch.float64, **rules)):
        torch.testing.assert_close(got.double(), exact, rtol=tolerance, atol=tolerance)
