"""From scores per object to a label map."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def most_likely(
    scores: Tensor, ids: Sequence[int], enlarge: Callable[[Tensor], Tensor], channels: int = 32
) -> Tensor:
    """The object with the highest enlarged score at each pixel; of equal ones the lowest channel wins.

    Args:
        scores: [K, h, w], channel 0 is background.
        ids: of the channels 1..K-1.
        enlarge: channels at any size to the size of the answer, [n, h, w] -> [n, H, W].
        channels: this many are enlarged at once.

    Returns:
        [H, W] uint8.
    """
    best, winner = enlarge(scores[:channels]).max(0)
    for first in range(channels, scores.shape[0], channels):
        value, index = enlarge(scores[first : first + channels]).max(0)
        better = value > best
        best, winner = torch.where(better, value, best), torch.where(better, index + first, winner)
    return torch.tensor([0, *ids], dtype=torch.uint8, device=scores.device)[winner]
