"""Time and memory of the segmentation term's step: weights in blocks against weights as a tensor.

    python -m pytest tests/benchmarks/test_mask_embedding.py --benchmark-only -q

Crops of 256 pixels as in the papers, four frames, two objects. Measured on one busy core of an AMD EPYC
(Zen 4, no GPU), peak of the whole process with one clip: 777 MB against 783 MB at stride 8, 1388 MB against
1793 MB at stride 4. At stride 8 the networks' activations fill memory, at stride 4 the weights count.
"""

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.support.machine import peak_extra_bytes
from vosnet.objectives import segmentation_term
from vosnet.objectives.segmentation_term import SegmentationSettings, SegmentationTerm

CROP, FRAMES, CHANNELS = 256, 4, 256


def materialised_readout(query: Tensor, memory: Tensor, value: Tensor, *, temperature: float) -> Tensor:
    """The equation as it stands: A is a tensor [B, T * h * w, h * w]."""
    cells = memory.transpose(1, 2).flatten(2)
    weights = (cells.transpose(1, 2) @ query.flatten(2) / temperature).softmax(1)
    return (value.transpose(1, 2).flatten(2) @ weights).view(value.shape[0], *value.shape[2:])


WAYS = {"blocked": segmentation_term.dense_readout, "materialised": materialised_readout}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stride", [8, 4])
def test_a_step(benchmark: Any, way: str, stride: int, device: torch.device) -> None:
    side = CROP // stride
    torch.manual_seed(0)
    term = SegmentationTerm(stride, SegmentationSettings()).to(device)
    features = torch.randn(1, FRAMES, CHANNELS, side, side, device=device, requires_grad=True)
    frames = torch.randn(1, FRAMES, 3, CROP, CROP, device=device)
    labels = torch.randint(0, 5, (1, FRAMES, side, side), device=device)
    draws = torch.rand(1, 4, device=device)

    def step() -> float:
        term.loss(features, frames, labels, draws)[0].backward()
        return float(features.grad.sum())  # type: ignore[union-attr]

    with mock.patch.object(segmentation_term, "dense_readout", WAYS[way]):
        benchmark.pedantic(step, rounds=1, warmup_rounds=1)
        benchmark.extra_info["peak_bytes"] = peak_extra_bytes(step, device)
