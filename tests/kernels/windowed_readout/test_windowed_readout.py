"""The windowed readout and its gradients against their definition, on every device at hand."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.accuracy import assert_as_accurate_as
from vosnet_kernels import windowed_readout, windowed_readout_with_lse, workspace_limit
from vosnet_kernels.windowed_readout.reference import windowed_readout_reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")

Inputs = tuple[Tensor, Tensor, Tensor]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CASES = [
    pytest.param((1, 2, 16, 19, 22, 3), 4, id="ragged-tiles"),
    pytest.param((2, 3, 5, 8, 16, 2), 3, id="batch-and-odd-channels"),
    pytest.param((1, 1, 8, 3, 25, 1), 24, id="window-wider-than-frame"),
    pytest.param((1, 2, 8, 9, 10, 2), 0, id="own-cell-only"),
    pytest.param((40, 1, 4, 1, 1, 2), 2, id="one-cell-frames"),
    pytest.param((1, 1, 64, 33, 17, 32), 12, id="many-values"),
]


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Inputs:
    """Features whose logits spread over some units, so that the softmax is neither flat nor a maximum."""
    b, t, c, h, w, m = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(dtype)

    return draw(b, c, h, w), draw(b, t, c, h, w), draw(b, t, m, h, w)


def with_gradients(function: Any, tensors: Inputs, dtype: torch.dtype, **settings: Any) -> list[Tensor]:
    """Readout and the three gradients, for a fixed gradient of the readout."""
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
    readout = function(*leaves, **settings)
    generator = torch.Generator().manual_seed(1)
    seed = torch.randn(readout.shape, generator=generator).to(readout)
    return [readout.detach(), *torch.autograd.grad(readout, leaves, seed)]


def assert_accurate(got: list[Tensor], tensors: Inputs, **settings: Any) -> None:
    """Readout at most 2x, gradients at most 3x farther from the truth than plain torch in the same dtype."""
    tensors = tuple(tensor.cpu() for tensor in tensors)
    exact = with_gradients(windowed_readout_reference, tensors, torch.float64, **settings)
    plain = with_gradients(windowed_readout_reference, tensors, tensors[0].dtype, **settings)
    for result, baseline, truth, factor in zip(got, plain, exact, (2.0, 3.0, 3.0, 3.0)):
        assert_as_accurate_as(result, baseline, truth, factor)


@pytest.mark.parametrize("outside", ["exclude", "zero"])
@pytest.mark.parametrize(("shape", "radius"), CASES)
def test_readout_and_gradients_are_as_exact_as_float32_allows(
    shape: tuple[int, ...], radius: int, outside: str, device: torch.device
) -> None:
    tensors = inputs(shape)
    settings = {"radius": radius, "temperature": shape[2] ** 0.5, "outside": outside}
    moved = tuple(tensor.to(device) for tensor in tensors)
    assert_accurate(with_gradients(windowed_readout, moved, torch.float32, **settings), tensors, **settings)


@pytest.mark.parametrize("channels", [32, 96])
@pytest.mark.parametrize("dtype", DTYPES)
def test_half_precision_inputs_are_summed_in_float32(
    dtype: torch.dtype, channels: int, device: torch.device
) -> None:
    tensors = inputs((1, 2, channels, 13, 18, 3), dtype)
    settings: dict[str, Any] = {"radius": 5, "temperature": channels**0.5}
    moved = tuple(tensor.to(device) for tensor in tensors)
    assert_accurate(with_gradients(windowed_readout, moved, dtype, **settings), tensors, **settings)


def test_values_may_be_finer_than_features(device: torch.device) -> None:
    query, memory, value = (tensor.to(device) for tensor in inputs((1, 2, 16, 9, 9, 3)))
    got = windowed_readout(query.bfloat16(), memory.bfloat16(), value, radius=2)
    assert got.dtype == torch.float32
    rounded = windowed_readout(query.bfloat16().float(), memory.bfloat16().float(), value, radius=2)
    torch.testing.assert_close(got, rounded, rtol=1e-2 if device.type == "cuda" else 1e-5, atol=1e-3)


@pytest.mark.parametrize("shape", [(0, 1, 4, 5, 5, 2), (1, 1, 4, 0, 5, 2)], ids=["no-batch", "no-rows"])
def test_empty_inputs_give_empty_outputs(shape: tuple[int, ...], device: torch.device) -> None:
    tensors = tuple(tensor.to(device) for tensor in inputs(shape))
    b, _, _, h, w, m = shape
    readout, *gradients = with_gradients(windowed_readout, tensors, torch.float32, radius=1, outside="zero")
    assert readout.shape == (b, m, h, w)
    assert [gradient.shape for gradient in gradients] == [tensor.shape for tensor in tensors]


@pytest.mark.parametrize("outside", ["exclude", "zero"])
def test_definition_passes_gradcheck(outside: str) -> None:
    leaves = [tensor.double().requires_grad_() for tensor in inputs((1, 2, 3, 4, 3, 2))]
    assert torch.autograd.gradcheck(
        lambda *args: windowed_readout_reference(*args, radius=1, temperature=0.7, outside=outside), leaves
    )


@pytest.mark.parametrize("outside", ["exclude", "zero"])
def test_op_passes_gradcheck_through_both_of_its_outputs(outside: str) -> None:
    leaves = [tensor.double().requires_grad_() for tensor in inputs((1, 2, 3, 4, 9, 2))]
    assert torch.autograd.gradcheck(
        lambda *args: windowed_readout_with_lse(*args, radius=2, temperature=0.7, outside=outside), leaves
    )


def test_non_contiguous_inputs_read_the_same(device: torch.device) -> None:
    tensors = tuple(tensor.to(device) for tensor in inputs((2, 2, 16, 10, 12, 3)))
    settings: dict[str, Any] = {"radius": 3, "temperature": 4.0}
    transposed = tuple(tensor.mT.contiguous().mT for tensor in tensors)
    for plain, strided in zip(
        with_gradients(windowed_readout, tensors, torch.float32, **settings),
        with_gradients(windowed_readout, transposed, torch.float32, **settings),
    ):
        assert torch.equal(plain, strided)


def test_expanded_and_sliced_inputs_read_the_same(device: torch.device) -> None:
    query, memory, value = (tensor.to(device) for tensor in inputs((1, 4, 16, 10, 12, 3)))
    query, memory = query.expand(2, -1, -1, -1), memory[:, ::2].expand(2, -1, -1, -1, -1)
    value = value[:, ::2, 1:].expand(2, -1, -1, -1, -1)
    got = windowed_readout(query, memory, value, radius=3, temperature=4.0)
    copies = (query.contiguous(), memory.contiguous(), value.contiguous())
    assert torch.equal(got, windowed_readout(*copies, radius=3, temperature=4.0))


def test_gradients_repeat_bit_by_bit(device: torch.device) -> None:
    tensors = tuple(tensor.to(device) for tensor in inputs((1, 2, 64, 24, 24, 3)))
    settings: dict[str, Any] = {"radius": 12, "temperature": 8.0}
    first = with_gradients(windowed_readout, tensors, torch.float32, **settings)
    for again in (with_gradients(windowed_readout, tensors, torch.float32, **settings) for _ in range(3)):
        assert all(torch.equal(a, b) for a, b in zip(first, again))


@pytest.mark.parametrize("needed", range(1, 8))
def test_gradients_do_not_depend_on_which_others_are_wanted(needed: int, device: torch.device) -> None:
    tensors = tuple(tensor.to(device) for tensor in inputs((1, 2, 16, 9, 11, 3)))
    wanted = [bool(needed >> i & 1) for i in range(3)]
    everything = with_gradients(windowed_readout, tensors, torch.float32, radius=3, temperature=4.0)
    leaves = [tensor.clone().requires_grad_(flag) for tensor, flag in zip(tensors, wanted)]
    readout = windowed_readout(*leaves, radius=3, temperature=4.0)
    seed = torch.randn(readout.shape, generator=torch.Generator().manual_seed(1)).to(readout)
    readout.backward(seed)
    for leaf, flag, full in zip(leaves, wanted, everything[1:]):
        assert torch.equal(leaf.grad, full) if flag else leaf.grad is None


@pytest.mark.parametrize("limit_bytes", [1, 200_000, 10**9])
def test_a_smaller_workspace_gives_the_same_readout(limit_bytes: int, device: torch.device) -> None:
    tensors = tuple(tensor.to(device) for tensor in inputs((1, 2, 16, 49, 17, 3)))
    settings: dict[str, Any] = {"radius": 4, "temperature": 4.0}
    with workspace_limit(limit_bytes):
        got = with_gradients(windowed_readout, tensors, torch.float32, **settings)
    for small, large in zip(got, with_gradients(windowed_readout, tensors, torch.float32, **settings)):
        torch.testing.assert_close(small, large, rtol=0, atol=1e-5)


def test_autocast_does_not_round_the_logits(device: torch.device) -> None:
    tensors = tuple(tensor.to(device) for tensor in inputs((1, 1, 16, 9, 9, 2)))
    plain = with_gradients(windowed_readout, tensors, torch.float32, radius=2)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        cast = with_gradients(windowed_readout, tensors, torch.float32, radius=2)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast))


def test_fast_matmul_settings_do_not_round_the_logits(device: torch.device) -> None:
    tensors = tuple(tensor.to(device) for tensor in inputs((1, 1, 64, 17, 17, 2)))
    plain = with_gradients(windowed_readout, tensors, torch.float32, radius=4)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        fast = with_gradients(windowed_readout, tensors, torch.float32, radius=4)
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(torch.equal(a, b) for a, b in zip(plain, fast))
