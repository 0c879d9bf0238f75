"""The GPU kernels' numbers, on CPU tensors: Triton's interpreter runs the same code."""

import pytest
import torch
from torch import Tensor

from tests.kernels.knn_propagate.cases import Inputs, Settings, inputs, reference, rounded_once, tied_inputs
from tests.support.accuracy import assert_as_accurate_as
from tests.support.interpreter import Interpreter

WORKER = "tests.kernels.knn_propagate.interpreted"
CASES = [
    # 9 x 18 cells: two tiles each way, the second ones ragged.
    pytest.param((1, 2, 16, 9, 18, 2), {"k": 5, "radius": 3, "global_frames": 1}, torch.float32, id="global"),
    pytest.param((1, 2, 72, 9, 18, 3), {"k": 5, "radius": 3, "shape": "disc"}, torch.float32, id="disc"),
    pytest.param((1, 2, 64, 9, 18, 2), {"k": 4, "radius": 2}, torch.bfloat16, id="bfloat16"),
    pytest.param((1, 2, 100, 3, 18, 2), {"k": 4, "radius": 2}, torch.float16, id="channels-in-steps"),
    pytest.param((2, 2, 8, 9, 5, 3), {"k": 5, "radius": 3, "global_frames": 1}, torch.float32, id="batch"),
    pytest.param(
        (3, 2, 16, 3, 5, 2), {"k": 4, "radius": 2, "shape": "disc"}, torch.bfloat16, id="batch-disc"
    ),
    pytest.param((2, 1, 5, 4, 7, 1), {"k": 32, "radius": 1}, torch.float32, id="fewer-candidates-than-k"),
    pytest.param((1, 3, 4, 3, 5, 32), {"k": 1, "radius": 9}, torch.float64, id="nearest-of-a-narrow-frame"),
    pytest.param((1, 64, 8, 2, 17, 2), {"k": 3, "radius": 1}, torch.float16, id="many-frames"),
]


def interpreted(interpreter: Interpreter, tensors: Inputs, settings: Settings) -> Tensor:
    settings = {"temperature": 0.07, **settings}
    readout: Tensor = interpreter.call(WORKER, "propagate", *tensors, **settings)
    return readout


@pytest.mark.parametrize(("shape", "settings", "dtype"), CASES)
def test_f41_gpu_kernels_are_as_exact_as_float32_allows(
    shape: tuple[int, ...], settings: Settings, dtype: torch.dtype, interpreter: Interpreter
) -> None:
    tensors = inputs(shape, dtype=dtype)
    got = interpreted(interpreter, tensors, settings)
    assert got.dtype == dtype
    settings = {"temperature": 0.07, **settings}
    baseline, exact = rounded_once(tensors, settings), reference(tensors, torch.float64, settings)
    if dtype == torch.float64:
        got, baseline = got.float(), baseline.float()
    assert_as_accurate_as(got, baseline, exact)


def test_of_equal_neighbors_the_lowest_frame_row_and_column_wins(interpreter: Interpreter) -> None:
    tensors = tied_inputs((1, 3, 3, 9, 17, 4))
    settings: Settings = {"k": 4, "temperature": 1.0, "radius": 3, "global_frames": 1}
    got = interpreted(interpreter, tensors, settings)
    torch.testing.assert_close(got.double(), reference(tensors, torch.float64, settings), rtol=0, atol=1e-6)


def test_f41_strides_do_not_matter(interpreter: Interpreter) -> None:
    query, memory, value = inputs((1, 2, 16, 5, 6, 3))
    strided = (query.mT, memory.movedim(2, -1).contiguous().movedim(-1, 2).mT, value.expand(1, 2, 3, 5, 6).mT)
    settings: Settings = {"k": 4, "radius": 2}
    got = interpreted(interpreter, strided, settings)
    torch.testing.assert_close(got.mT, interpreted(interpreter, (query, memory, value), settings))


def test_a_smaller_workspace_gives_the_same_readout(interpreter: Interpreter) -> None:
    tensors = inputs((2, 2, 8, 17, 5, 2))  # three tiles
    settings: Settings = {"k": 3, "radius": 2, "global_frames": 1}
    whole = interpreted(interpreter, tensors, settings)
    for limit_bytes in (1, 30_000):  # a tile at a time, and two
        part = interpreted(interpreter, tensors, {**settings, "limit_bytes": limit_bytes})
        assert torch.equal(part, whole)
