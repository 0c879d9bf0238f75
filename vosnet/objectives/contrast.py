"""Cross-entropy of many cells against many anchors, without holding all logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def anchor_cross_entropy(
    feature: Tensor,
    index: Tensor,
    anchors: Tensor,
    label: Tensor,
    *,
    temperature: float,
    chunk_size: int,
) -> Tensor:
    """Mean over rows of -log softmax(<row, anchors> / temperature)[label].

    Differentiable in `feature` and `anchors`. Rows are gathered, multiplied and reduced `chunk_size` at a
    time, and the backward pass recomputes each chunk: memory holds one [chunk_size, A] block instead of the
    [R, A] logits, their softmax and its gradient.

    Args:
        feature: cells that rows are copied from, [S, C] float32.
        index: source cell of each row, [R] int64; -1 is a row of zeros (every logit is 0).
        anchors: [A, C] float32.
        label: which anchor each row belongs to, [R] int64.
        temperature: divides the dot products.
        chunk_size: rows at a time.

    Returns:
        Scalar float32.
    """
    arguments = (feature, index, anchors, label, temperature, chunk_size)
    loss: Tensor = _AnchorCrossEntropy.apply(*arguments)  # type: ignore[no-untyped-call]
    return loss


class _AnchorCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        feature: Tensor,
        index: Tensor,
        anchors: Tensor,
        label: Tensor,
        temperature: float,
        chunk_size: int,
    ) -> Tensor:
        total = feature.new_zeros(())
        normalizers = []
        for start in range(0, index.shape[0], chunk_size):
            rows = _rows(feature, index[start : start + chunk_size])
            logits = (rows @ anchors.t()).div_(temperature)
            normalizer = logits.logsumexp(dim=1)
            picked = logits.gather(1, label[start : start + chunk_size, None])[:, 0]
            total = total + (normalizer - picked).sum()
            normalizers.append(normalizer)
        ctx.save_for_backward(feature, index, anchors, label, torch.cat(normalizers))
        ctx.temperature, ctx.chunk_size = temperature, chunk_size
        return total / index.shape[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, None, None, None]:
        feature, index, anchors, label, normalizer = ctx.saved_tensors
        factor = grads[0] / (ctx.temperature * index.shape[0])
        grad_feature = torch.zeros_like(feature)
        grad_anchors = torch.zeros_like(anchors)
        for start in range(0, index.shape[0], ctx.chunk_size):
            part = slice(start, start + ctx.chunk_size)
            rows = _rows(feature, index[part])
            logits = (rows @ anchors.t()).div_(ctx.temperature)
            grad_logits = logits.sub_(normalizer[part, None]).exp_()
            grad_logits.scatter_add_(
                1, label[part, None], grad_logits.new_full((1, 1), -1.0).expand(len(rows), 1)
            )
            grad_logits.mul_(factor)
            grad_anchors.addmm_(grad_logits.t(), rows)
            valid = (index[part] >= 0)[:, None].to(feature.dtype)
            grad_feature.index_add_(0, index[part].clamp(min=0), (grad_logits @ anchors).mul_(valid))
        return grad_feature, None, grad_anchors, None, None, None


def _rows(feature: Tensor, index: Tensor) -> Tensor:
    rows = feature.index_select(0, index.clamp(min=0))
    return rows * (index >= 0)[:, None].to(feature.dtype)
