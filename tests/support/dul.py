"""DUL's losses in plain torch, a toy encoder, and a meter of tensor memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vosnet.objectives import DenseCorrespondence, build_objective
from vosnet.objectives.dense_correspondence import make_targets
from vosnet.transforms import nearest_index


class ToyEncoder(nn.Module):
    """Stride 8 with a batch norm, small enough for a test."""

    feature_dim, output_stride = 12, 8

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 8, stride=8)
        self.norm = nn.BatchNorm2d(12)

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(images)))


def toy_objective(**kwargs: Any) -> DenseCorrespondence:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "grid_size": 4,
        "cross_view_grid_size": 2,
        "embedding_dim": 8,
        "chunk_size": 37,
    }
    built = build_objective("dense_correspondence", ToyEncoder(), **(options | kwargs))
    assert isinstance(built, DenseCorrespondence)
    return built


def cells(feature: Tensor) -> Tensor:
    """[B, T, C, h, w] -> [B, T, h * w, C]."""
    return feature.flatten(3).transpose(2, 3)


def picked_losses(
    main: Tensor, view: Tensor, theta: Tensor, anchor: Tensor, cross: Tensor, **kwargs: Any
) -> tuple[Tensor, Tensor, Any]:
    """Our way: rows of the feature map."""
    objective = toy_objective(**kwargs)
    targets = make_targets(cells(main), cells(view), nearest_index(theta, *main.shape[-2:]), anchor, cross)
    space_time, cross_view = objective.losses(cells(main), targets, targets.anchors, targets.cross_view, 0)
    return space_time, cross_view, targets


def materialized_losses(
    main: Tensor, view: Tensor, theta: Tensor, anchor: Tensor, cross: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The paper's way, written down plainly: the map of B * N logits is warped."""
    B, T, _, h, w = main.shape
    N = anchor.shape[1]

    def take(feature: Tensor, index: Tensor) -> Tensor:
        return torch.stack([feature[b].flatten(1)[:, index[b]].t() for b in range(B)]).flatten(0, 1)

    def warp(maps: Tensor) -> Tensor:
        grid = F.affine_grid(theta.to(maps), [B, 1, h, w], align_corners=False)
        return F.grid_sample(maps, grid, mode="nearest", align_corners=False)

    anchors = take(main[:, 0], anchor)
    logits = torch.einsum("btchw,nc->btnhw", main, anchors) / temperature
    aligned = torch.stack([warp(logits[:, t]) for t in range(T)], dim=1)
    with torch.no_grad():
        affinity = torch.einsum("btchw,nc->btnhw", view, anchors)
        own = torch.arange(B * N) // N == torch.arange(B)[:, None]
        label = affinity.masked_fill(~own[:, None, :, None, None], -torch.inf).argmax(dim=2)
    space_time = F.cross_entropy(aligned[:, 1:].flatten(0, 1), label[:, 1:].flatten(0, 1))
    rows, columns = take(warp(main[:, 0]), cross), take(view[:, 0], cross)
    return space_time, F.cross_entropy(rows @ columns.t() / temperature, torch.arange(len(rows)))


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of live tensor storages that operations create, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, key, storage.nbytes())

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def peak_bytes(losses: Callable[..., Any], *arguments: Any, **options: Any) -> int:
    """Peak of the memory that one forward and backward pass of both losses takes."""
    with PeakBytes() as meter:
        sum(losses(*arguments, **options)[:2]).backward()
    return meter.peak
