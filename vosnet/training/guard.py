"""Non-finite losses and gradients: skip the step, and stop when they keep coming."""

from __future__ import annotations

import collections

import torch
from torch import Tensor, nn

WINDOW = 200
MAX_SHARE = 0.05


class DivergenceGuard:
    """Counts skipped steps; `diverged` after too many in a row or more than 5 % of the last 200.

    Args:
        max_in_a_row: how many skipped steps in succession end the run.
    """

    def __init__(self, max_in_a_row: int) -> None:
        self.max_in_a_row = max_in_a_row
        self.in_a_row = 0
        self.total = 0
        self._recent: collections.deque[bool] = collections.deque(maxlen=WINDOW)

    def note(self, bad: bool) -> None:  # noqa: FBT001 - one fact about one step
        """Record one step."""
        self.in_a_row = self.in_a_row + 1 if bad else 0
        self.total += bad
        self._recent.append(bad)

    @property
    def diverged(self) -> bool:
        """Whether the run should end."""
        return self.in_a_row >= self.max_in_a_row or sum(self._recent) > MAX_SHARE * WINDOW

    def state(self) -> dict[str, object]:
        """Plain values for a checkpoint."""
        return {"in_a_row": self.in_a_row, "total": self.total, "recent": list(self._recent)}

    def load(self, state: dict[str, object]) -> None:
        """Continue from `state`."""
        self.in_a_row, self.total = state["in_a_row"], state["total"]  # type: ignore[assignment]
        self._recent.clear()
        self._recent.extend(state["recent"])  # type: ignore[arg-type]


class BufferSnapshot:
    """Copies of a module's buffers, so that a skipped step leaves no NaN in running statistics."""

    def __init__(self, module: nn.Module) -> None:
        self._buffers = [buffer for buffer in module.buffers() if buffer.numel()]
        self._copies = [torch.empty_like(buffer) for buffer in self._buffers]

    @torch.no_grad()
    def take(self) -> None:
        """Remember the buffers as they are now."""
        for copy, buffer in zip(self._copies, self._buffers, strict=True):
            copy.copy_(buffer)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the remembered values back."""
        for copy, buffer in zip(self._copies, self._buffers, strict=True):
            buffer.copy_(copy)


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """L2 norm over all gradients, a scalar tensor; NaN or infinite when any gradient is."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)
