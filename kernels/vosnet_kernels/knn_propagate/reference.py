"""k nearest neighbors in a space-time window: the plain definition."""

import torch
from torch import Tensor


def knn_propagate_reference(
    query: Tensor,
    memory: Tensor,
    value: Tensor,
    *,
    k: int,
    temperature: float,
    radius: int,
    shape: str = "square",
    global_frames: int = 0,
) -> Tensor:
    """`knn_propagate` as its definition; arguments and result as there.

    The label propagation of Jabri et al. 2020 and Araslanov et al. 2021. Equal memory frames are not merged:
    each copy is a neighbor of its own. Arithmetic is done in the dtype of the features.
    """
    B, T, _, h, w = memory.shape
    affinity = torch.einsum("bcq,btcm->bqtm", query.flatten(2), memory.flatten(3))  # [B, hw, T, hw]
    allowed = candidates(h, w, radius, shape, device=query.device)[:, None].repeat(1, T, 1)  # [hw, T, hw]
    allowed[:, :global_frames] = True
    affinity = affinity.masked_fill(~allowed, -torch.inf).flatten(2)  # [B, hw, T * hw]

    nearest = affinity.sort(dim=2, descending=True, stable=True)  # stable: ties keep the (frame, y, x) order
    weights = torch.softmax(nearest.values[..., :k] / temperature, dim=2)  # -inf, not a candidate: weight 0
    cells = nearest.indices[..., :k]
    labels = value.transpose(2, 1).flatten(2).to(weights.dtype)  # [B, M, T * hw]
    M, Q, n = value.shape[2], *cells.shape[1:]
    copied = labels[:, :, None].expand(B, M, Q, -1).gather(3, cells[:, None].expand(B, M, Q, n))
    readout: Tensor = torch.einsum("bqk,bmqk->bmq", weights, copied)
    return readout.view(B, M, h, w).to(value.dtype)


def candidates(h: int, w: int, radius: int, shape: str, device: torch.device | None = None) -> Tensor:
    """Which memory cells of one frame each query cell may choose, bool [h * w (query), h * w (memory)]."""
    y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    dy, dx = (axis.flatten()[None, :] - axis.flatten()[:, None] for axis in (y, x))
    if shape == "disc":
        return dy**2 + dx**2 < radius**2
    return (dy.abs() <= radius) & (dx.abs() <= radius)
