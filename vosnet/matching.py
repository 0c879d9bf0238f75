"""From features to readouts: normalization, temperature, chunks, and the kernel calls.

Functions of one frame, without gradient: `query` are its features, [C, h, w]; `memory` those of its context,
[T, C, h, w]; `value` is what is copied, [T, M, h, w] with any M; they return the readout, [M, h, w].

Functions of batches, differentiable in all three (`dense_readout`, `*_attention`): the same with a leading B;
they return [B, M, h, w] float32. `temperature` divides the dot products, before the softmax.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from vosnet_kernels import (
    knn_propagate,
    widened_readout,
    windowed_readout,
    workspace_bytes,
    workspace_limit,
)

MAX_CHANNELS = 32  # value channels per call; the kernels keep their readout in registers
NEAREST_MAX_CHANNELS = 256  # here the search costs far more than the readout, and every call repeats it


@dataclass
class Chunks:
    """Chunk sizes: trade speed for memory; results do not change.

    Attributes:
        workspace_bytes: temporary memory of one kernel call; None is the kernels' default.
        channels: value channels per kernel call and per resize; at its default `nearest_readout` takes
            `NEAREST_MAX_CHANNELS`.
    """

    workspace_bytes: int | None = None
    channels: int = MAX_CHANNELS

    @property
    def workspace(self) -> int:
        """Bytes in force."""
        return workspace_bytes() if self.workspace_bytes is None else self.workspace_bytes

    def limit(self) -> AbstractContextManager[None]:
        """Within it, kernel calls keep to the workspace."""
        if self.workspace_bytes is None:
            return contextlib.nullcontext()
        return workspace_limit(self.workspace_bytes)


@dataclass(frozen=True)
class Neighborhood:
    """Which memory cells a query cell is compared with.

    Attributes:
        shape: "square": |dy|, |dx| <= radius; "disc": dy^2 + dx^2 < radius^2.
        radius: cells.
        global_frames: this many frames at the start of memory are searched over the whole frame.
    """

    shape: str
    radius: int
    global_frames: int = 0


def normalize_features(features: Tensor) -> Tensor:
    """L2-normalized over channels, so that dot products are cosines; [..., C, h, w]."""
    return functional.normalize(features, dim=-3)


def nearest_readout(
    query: Tensor,
    memory: Tensor,
    value: Tensor,
    *,
    k: int,
    temperature: float,
    neighborhood: Neighborhood,
    chunks: Chunks | None = None,
) -> Tensor:
    """Softmax over the k most similar memory cells of each query cell, applied to their values.

    Args:
        query, memory: normalized features.
        value: what is copied.
        k: neighbors per query cell, over all frames together.
        temperature: divides the cosines before the softmax over those k.
        neighborhood: which cells are candidates.
        chunks: chunk sizes.
    """
    call = functools.partial(
        knn_propagate,
        k=k,
        temperature=temperature,
        radius=neighborhood.radius,
        shape=neighborhood.shape,
        global_frames=neighborhood.global_frames,
    )
    return _in_chunks(call, query, memory, value, chunks, NEAREST_MAX_CHANNELS)


def window_readout(
    query: Tensor,
    memory: Tensor,
    value: Tensor,
    *,
    temperature: float,
    radius: int,
    dilations: Sequence[int],
    outside: str = "exclude",
    chunks: Chunks | None = None,
) -> Tensor:
    """Softmax over every cell of each query cell's windows, applied to their values.

    Args:
        query, memory, value, temperature: see above.
        radius: half-side of the windows, cells.
        dilations: one per frame of memory; where it is more than 1, a window that much wider is searched
            first and says where the window lies. See `widened_readout`.
        outside: what becomes of cells beyond the frame; see `widened_readout`.
        chunks: chunk sizes.
    """
    call = functools.partial(
        widened_readout, radius=radius, dilations=dilations, temperature=temperature, outside=outside
    )
    return _in_chunks(call, query, memory, value, chunks, MAX_CHANNELS)


def window_attention(
    query: Tensor, memory: Tensor, value: Tensor, *, radius: int, temperature: float, outside: str
) -> Tensor:
    """`window_readout` of batches, without wider windows."""
    return windowed_readout(query, memory, value, radius=radius, temperature=temperature, outside=outside)


def dense_readout(query: Tensor, memory: Tensor, value: Tensor, *, temperature: float) -> Tensor:
    """Softmax over every cell of every memory frame, applied to their values.

    The [T * h * w, h * w] weights are never held: `scaled_dot_product_attention` works through them in
    blocks, forward and backward. Its blocked CPU implementation wants values as wide as features, or it
    falls back to one that holds them; so the narrower ones are padded with zeros, which changes no result.
    """
    M, h = value.shape[2:4]
    width = -(-max(query.shape[1], M) // 8) * 8
    with torch.autocast(query.device.type, enabled=False):
        rows = _rows(query[:, None], width), _rows(memory, width), _rows(value, width)
        out = functional.scaled_dot_product_attention(*rows, scale=1 / temperature)
    return rearrange(out[:, 0, :, :M], "b (h w) m -> b m h w", h=h)


def nearest_attention(query: Tensor, memory: Tensor, value: Tensor, *, k: int, temperature: float) -> Tensor:
    """`dense_readout` with the k most similar memory cells only: `nearest_readout` with a gradient.

    No neighborhood: every cell of every frame is a candidate. Scores are held for a few query cells at a
    time, and only their k best are kept for the backward pass.

    Args:
        query, memory, value, temperature: see above. The choice of neighbors is not differentiable.
        k: neighbors per query cell, over all frames together; all of them where there are fewer.
    """
    B, h = len(value), value.shape[3]
    with torch.autocast(query.device.type, enabled=False):
        queries = rearrange(query.float(), "b c h w -> b (h w) c")
        keys = rearrange(memory.float(), "b t c h w -> b c (t h w)")
        labels = rearrange(value.float(), "b t m h w -> b (t h w) m")
        sample = torch.arange(B, device=query.device)[:, None, None]
        rows = []
        for part in torch.split(queries, max(1, workspace_bytes() // (4 * B * keys.shape[2])), dim=1):
            scores, cells = (part @ keys).topk(min(k, keys.shape[2]), dim=2)
            weights = torch.softmax(scores / temperature, dim=2)
            rows.append((weights[:, :, None] @ labels[sample, cells])[:, :, 0])
    return rearrange(torch.cat(rows, dim=1), "b (h w) m -> b m h w", h=h)


def _in_chunks(
    call: Callable[[Tensor, Tensor, Tensor], Tensor],
    query: Tensor,
    memory: Tensor,
    value: Tensor,
    chunks: Chunks | None,
    most: int,
) -> Tensor:
    """The readout of one frame by a kernel that takes batches, some value channels at a time."""
    chunks = chunks or Chunks()
    size = most if chunks.channels == MAX_CHANNELS else chunks.channels
    with chunks.limit():
        parts = [
            call(query[None], memory[None], part[None].contiguous())[0]
            for part in torch.split(value, size, dim=1)
        ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rows(frames: Tensor, width: int) -> Tensor:
    """Cells of all frames as one head's tokens, padded: [B, T, C, h, w] -> [B, 1, T * h * w, width]."""
    tokens = rearrange(frames.float(), "b t c h w -> b (t h w) c")
    # padding by nothing copies nothing, and blocked attention wants a token's numbers side by side
    return functional.pad(tokens, (0, width - tokens.shape[2]))[:, None].contiguous()
