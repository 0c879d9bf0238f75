"""Inputs and truths that the tests of `knn_propagate` share."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vosnet_kernels import knn_propagate
from vosnet_kernels.knn_propagate.reference import knn_propagate_reference
from vosnet_kernels.knn_propagate.tiled import knn_propagate_tiled
from vosnet_kernels.window import Window

Inputs = tuple[Tensor, Tensor, Tensor]
Settings = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """An implementation under test and the device its inputs live on."""

    device: torch.device
    through_op: bool

    def __call__(self, query: Tensor, memory: Tensor, value: Tensor, **settings: Any) -> Tensor:
        if self.through_op:
            return knn_propagate(query, memory, value, **settings)
        return tiled(query, memory, value, **settings)


def tiled(
    query: Tensor, memory: Tensor, value: Tensor, *, k: int, temperature: float, **window: Any
) -> Tensor:
    """The tiled matmuls, with the settings of `knn_propagate`."""
    return knn_propagate_tiled(query, memory, value, k=k, temperature=temperature, window=Window(**window))


def inputs(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> Inputs:
    """Normalized features and soft masks for shape (B, T, C, h, w, M)."""
    B, T, C, h, w, M = shape
    generator = torch.Generator().manual_seed(seed)
    query = torch.nn.functional.normalize(torch.randn(B, C, h, w, generator=generator), dim=1)
    memory = torch.nn.functional.normalize(torch.randn(B, T, C, h, w, generator=generator), dim=2)
    value = torch.randn(B, T, M, h, w, generator=generator).softmax(2)
    return query.to(dtype), memory.to(dtype), value.to(dtype)


def tied_inputs(shape: tuple[int, ...], seed: int = 0) -> Inputs:
    """Features of small integers: sums are exact and most neighbors tie, so only the tie rule decides."""
    B, T, C, h, w, M = shape
    generator = torch.Generator().manual_seed(seed)
    query = torch.randint(-1, 2, (B, C, h, w), generator=generator).float()
    memory = torch.randint(-1, 2, (B, T, C, h, w), generator=generator).float()
    return query, memory, torch.rand(B, T, M, h, w, generator=generator)


def reference(tensors: Inputs, dtype: torch.dtype, settings: Settings) -> Tensor:
    """The definition, computed in `dtype`."""
    query, memory, value = (tensor.cpu().to(dtype) for tensor in tensors)
    return knn_propagate_reference(query, memory, value, **settings)


def rounded_once(tensors: Inputs, settings: Settings) -> Tensor:
    """Plain torch at its best: the definition in float32, its result in value's dtype."""
    return reference(tensors, torch.float32, settings).to(tensors[2].dtype)
