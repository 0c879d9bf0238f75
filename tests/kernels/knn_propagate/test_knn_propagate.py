"""The k-nearest-neighbour read-out against its definition, on every device at hand."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.accuracy import assert_as_accurate_as
from vosnet_kernels import knn_propagate, workspace_limit
from vosnet_kernels.knn_propagate.reference import knn_propagate_reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")

Inputs = tuple[Tensor, Tensor, Tensor]
CASES = [
    pytest.param((1, 3, 8, 9, 11, 2), {"k": 5, "radius": 3}, id="ragged-tiles"),
    pytest.param((2, 4, 16, 17, 20, 3), {"k": 10, "radius": 4, "shape": "disc"}, id="disc"),
    pytest.param((1, 3, 16, 17, 20, 3), {"k": 10, "radius": 2, "global_frames": 1}, id="global-frame"),
    pytest.param((1, 2, 4, 3, 2, 1), {"k": 30, "radius": 1}, id="fewer-candidates-than-k"),
    pytest.param((1, 2, 4, 6, 5, 1), {"k": 3, "radius": 0}, id="own-cell-only"),
    pytest.param((1, 2, 4, 6, 25, 2), {"k": 3, "radius": 40}, id="window-wider-than-frame"),
    pytest.param((0, 2, 4, 6, 5, 2), {"k": 3, "radius": 1}, id="empty-batch"),
    pytest.param((1, 2, 4, 0, 5, 2), {"k": 3, "radius": 1}, id="empty-frame"),
]


def inputs(shape: tuple[int, ...], seed: int = 0) -> Inputs:
    """Normalized features and soft masks, float32."""
    B, T, C, h, w, M = shape
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(B, C, h, w, generator=generator)
    memory = torch.randn(B, T, C, h, w, generator=generator)
    value = torch.randn(B, T, M, h, w, generator=generator).softmax(2)
    return torch.nn.functional.normalize(query, dim=1), torch.nn.functional.normalize(memory, dim=2), value


def reference(tensors: Inputs, dtype: torch.dtype, settings: dict[str, Any]) -> Tensor:
    return knn_propagate_reference(*(tensor.cpu().to(dtype) for tensor in tensors), **settings)


@pytest.mark.parametrize(("shape", "settings"), CASES)
def test_readout_is_as_exact_as_float32_allows(
    shape: tuple[int, ...], settings: dict[str, Any], device: torch.device
) -> None:
    tensors = inputs(shape)
    settings = {"temperature": 0.07, **settings}
    got = knn_propagate(*(tensor.to(device) for tensor in tensors), **settings)
    exact = reference(tensors, torch.float64, settings)
    assert_as_accurate_as(got, reference(tensors, torch.float32, settings), exact)


@pytest.mark.parametrize("limit_bytes", [1, 20_000, 10**9])
def test_a_smaller_workspace_gives_the_same_readout(limit_bytes: int, device: torch.device) -> None:
    tensors = [tensor.to(device) for tensor in inputs((1, 6, 16, 19, 21, 3))]
    settings: dict[str, Any] = {"k": 7, "temperature": 0.07, "radius": 4, "global_frames": 2}
    with workspace_limit(limit_bytes):
        got = knn_propagate(*tensors, **settings)
    torch.testing.assert_close(got, knn_propagate(*tensors, **settings), rtol=0, atol=1e-6)
