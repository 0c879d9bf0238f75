"""The contract of `widened_readout`: argument checks, and how near and far frames share one softmax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from vosnet_kernels.checks import check_tensors
from vosnet_kernels.widened_readout.tiled import far_readout
from vosnet_kernels.window import Attention
from vosnet_kernels.windowed_readout.op import windowed_readout_with_lse


@torch.no_grad()
def widened_readout(
    query: Tensor,
    memory: Tensor,
    value: Tensor,
    *,
    radius: int,
    dilations: Sequence[int],
    temperature: float = 1.0,
    outside: str = "exclude",
) -> Tensor:
    """Copy values from memory, weighted by one softmax over a window in every frame; inference only.

    Near frames (dilation 1) are read in the window around each query cell, as in `windowed_readout`. In a far
    frame (dilation d > 1) a window d times as wide, of cells d apart, is searched first; the expected
    position under the softmax of its logits is where the query cell's dense window lies, between cells. All
    windows of all frames share one softmax, merged by their log-sum-exps. No tensor of the affinities' size
    is ever stored.

    Args:
        query: features of the frame being explained, [B, C, h, w].
        memory: features of the frames to copy from, [B, T, C, h, w], query's dtype.
        value: what is copied, [B, T, M, h, w], any floating dtype.
        radius: window half-side in cells, inclusive.
        dilations: one per memory frame, at least 1.
        temperature: divides the affinities of both searches, positive.
        outside: how positions beyond the frame's outermost cells count: "exclude" gives them no weight;
            "zero" gives them the logit and value of a frame padded with zeros. The first search excludes them
            always. Differs: MAST's first search keeps them, which pulls expected positions out of the frame.

    Returns:
        Readout, [B, M, h, w], in value's dtype.

    Raises:
        ValueError: if shapes, devices or settings do not fit; the message holds the rule and the values.
        TypeError: if a tensor is not floating or query and memory differ in dtype.
    """
    attention = Attention(radius, temperature, outside)
    check_tensors("widened_readout", query, memory, value)
    attention.check()
    if len(dilations) != memory.shape[1] or min(dilations) < 1:
        raise ValueError(
            f"dilations must hold one number of at least 1 per memory frame, got {list(dilations)} "
            f"for {memory.shape[1]} frames"
        )
    parts = []
    near = [t for t, dilation in enumerate(dilations) if dilation == 1]
    if near:
        frames = slice(near[0], near[-1] + 1) if near[-1] - near[0] + 1 == len(near) else near
        readout, lse = windowed_readout_with_lse(
            query, memory[:, frames], value[:, frames], **asdict(attention)
        )
        parts.append((readout.to(lse.dtype), lse))
    for t, dilation in enumerate(dilations):
        if dilation > 1:
            parts.append(far_readout(query, memory[:, t], value[:, t], dilation, attention))
    return _merged(parts).to(value.dtype)


def _merged(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """One softmax over all parts: each part's readout is weighted by its share of the exponentials."""
    if len(parts) == 1:
        return parts[0][0]
    shares = torch.stack([lse for _, lse in parts]).softmax(0)  # [parts, B, h, w]
    merged = torch.zeros_like(parts[0][0])
    for (readout, _), share in zip(parts, shares, strict=True):
        merged.addcmul_(readout, share[:, None])
    return merged
