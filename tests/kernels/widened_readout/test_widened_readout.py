"""The widened readout against its definition, on every device at hand."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.accuracy import max_error
from vosnet_kernels import widened_readout, windowed_readout, workspace_limit
from vosnet_kernels.widened_readout import tiled
from vosnet_kernels.widened_readout.reference import expected_positions, widened_readout_reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")

CASES = [
    pytest.param((1, 3, 16, 19, 22, 3), 4, (1, 2, 3), id="near-and-far"),
    pytest.param((2, 2, 5, 8, 16, 2), 3, (2, 4), id="batch-of-far-frames"),
    pytest.param((1, 2, 8, 3, 25, 1), 12, (4, 1), id="window-wider-than-frame"),
    pytest.param((1, 1, 8, 9, 10, 2), 0, (2,), id="own-cell-only"),
    pytest.param((3, 2, 4, 1, 1, 2), 2, (3, 1), id="one-cell-frames"),
    pytest.param((1, 3, 8, 17, 9, 33), 2, (1, 4, 1), id="near-frames-apart"),
]


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Features whose logits spread over some units, so that the softmax is neither flat nor a maximum."""
    b, t, c, h, w, m = shape
    generator = torch.Generator().manual_seed(0)
    sizes = (b, c, h, w), (b, t, c, h, w), (b, t, m, h, w)
    query, memory, value = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
    return query, memory, value


def exact(tensors: tuple[Tensor, ...], **settings: Any) -> Tensor:
    return widened_readout_reference(*(tensor.cpu().double() for tensor in tensors), **settings)


@pytest.mark.parametrize("outside", ["exclude", "zero"])
@pytest.mark.parametrize(("shape", "radius", "dilations"), CASES)
def test_it_is_the_definition(
    shape: tuple[int, ...], radius: int, dilations: tuple[int, ...], outside: str, device: torch.device
) -> None:
    tensors = inputs(shape)
    settings: dict[str, Any] = {
        "radius": radius,
        "dilations": dilations,
        "temperature": shape[2] ** 0.5,
        "outside": outside,
    }
    truth = exact(tensors, **settings)
    moved = tuple(tensor.to(device) for tensor in tensors)
    # float32 misses a position by about 1e-6 cells, and with it a value of size 1 by as much
    assert max_error(widened_readout(*moved, **settings), truth) < 2e-5
    finer = tuple(tensor.double() for tensor in moved)
    assert max_error(widened_readout(*finer, **settings), truth) < 1e-12


def test_near_frames_alone_are_the_windowed_readout() -> None:
    tensors = inputs((1, 2, 8, 9, 11, 2))
    got = widened_readout(*tensors, radius=3, dilations=[1, 1], temperature=2.0)
    assert torch.equal(got, windowed_readout(*tensors, radius=3, temperature=2.0))


def test_half_precision_features_keep_their_dtype_and_are_summed_in_float32(device: torch.device) -> None:
    tensors = tuple(tensor.to(device) for tensor in inputs((1, 2, 16, 12, 14, 3), torch.bfloat16))
    settings: dict[str, Any] = {"radius": 3, "dilations": [2, 1], "temperature": 4.0}
    got = widened_readout(*tensors, **settings)
    assert got.dtype == torch.bfloat16
    assert max_error(got, exact(tensors, **settings)) < 2**-7  # one rounding of values of size 1 to 2


def test_expected_positions_between_cells_are_those_of_the_definition() -> None:
    query, memory, _ = inputs((2, 1, 8, 13, 18, 1), torch.float64)
    got = tiled.expected_positions(query, memory[:, 0], 3, 3, 2.0)
    for one, frame, found in zip(query, memory[:, 0], got, strict=True):
        torch.testing.assert_close(found, expected_positions(one, frame, 3, 3, 2.0), rtol=0, atol=1e-12)


def test_a_far_frame_is_searched_beyond_the_plain_window() -> None:
    generator = torch.Generator().manual_seed(3)
    smooth = torch.nn.functional.interpolate(
        torch.randn(1, 16, 10, 14, generator=generator), (40, 56), mode="bilinear"
    )[0]
    memory = 6 * torch.nn.functional.normalize(smooth, dim=0)
    query = memory.roll((9, -8), (1, 2))  # farther than the radius of 4 cells
    value = torch.arange(56.0).expand(1, 40, 56)
    settings: dict[str, Any] = {"radius": 4, "temperature": 0.5}
    tensors = query[None], memory[None, None], value[None, None]
    inner = (0, 0, slice(16, 24), slice(20, 32))
    wanted = value[0, 16:24, 20:32] + 8
    far = widened_readout(*tensors, dilations=[3], **settings)[inner]
    near = widened_readout(*tensors, dilations=[1], **settings)[inner]
    assert (far - wanted).abs().mean() < 0.5
    assert (near - wanted).abs().mean() > 3


def test_the_workspace_changes_memory_and_not_the_result() -> None:
    tensors = inputs((1, 2, 16, 30, 40, 3))
    settings: dict[str, Any] = {"radius": 5, "dilations": [2, 4], "temperature": 4.0}
    whole = widened_readout(*tensors, **settings)
    with workspace_limit(2**16):
        torch.testing.assert_close(widened_readout(*tensors, **settings), whole, rtol=0, atol=1e-6)


def test_equal_calls_give_equal_bits() -> None:
    tensors = inputs((1, 2, 16, 20, 30, 3))
    settings: dict[str, Any] = {"radius": 4, "dilations": [3, 1]}
    assert torch.equal(widened_readout(*tensors, **settings), widened_readout(*tensors, **settings))


@pytest.mark.parametrize("dilations", [[1], [1, 1, 1], [0, 1], [2, -1]])
def test_dilations_that_do_not_fit_are_refused(dilations: list[int]) -> None:
    with pytest.raises(ValueError, match=r"dilations must hold one number .* for 2 frames"):
        widened_readout(*inputs((1, 2, 4, 5, 6, 1)), radius=1, dilations=dilations)


def test_other_arguments_are_checked_as_for_the_windowed_readout() -> None:
    with pytest.raises(ValueError, match="outside must be one of"):
        widened_readout(*inputs((1, 1, 4, 5, 6, 1)), radius=1, dilations=[2], outside="wrap")


def test_errors_name_the_op_that_was_called() -> None:
    query, memory, value = inputs((1, 2, 4, 5, 6, 1))
    for wrong in ((query[0], memory, value), (query, memory[0], value), (query, memory, value[0])):
        with pytest.raises(ValueError, match="^widened_readout takes query"):
            widened_readout(*wrong, radius=1, dilations=[1, 2])
    with pytest.raises(TypeError, match="^widened_readout needs"):
        widened_readout(query, memory.half(), value, radius=1, dilations=[1, 2])
