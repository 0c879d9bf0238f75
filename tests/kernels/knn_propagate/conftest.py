"""The implementations that the same tests run on."""

import pytest
import torch

from tests.kernels.knn_propagate.cases import Run

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(
    params=[
        pytest.param(("cpu", False), id="tiled"),
        pytest.param(("cpu", True), id="op"),
        pytest.param(("cuda", False), id="tiled-cuda", marks=[pytest.mark.gpu, NO_GPU]),
        pytest.param(("cuda", True), id="op-cuda", marks=[pytest.mark.gpu, NO_GPU]),
    ]
)
def run(request: pytest.FixtureRequest) -> Run:
    """The tiled matmuls, and whatever the op chooses on each device at hand."""
    device, through_op = request.param
    return Run(torch.device(device), through_op)
