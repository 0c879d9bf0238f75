"""Non-finite losses and gradients: skip the step, and stop when they keep coming."""

from __future__ import annotations

import collections
import hashlib
import math
from pathlib import Path

import torch

from vosnet import files
from vosnet.errors import DivergedError
from vosnet.training.step import StepResult
from vosnet.transforms import Crops

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
        return self._too_many_in_a_row or sum(self._recent) > MAX_SHARE * WINDOW

    @property
    def _too_many_in_a_row(self) -> bool:
        return self.in_a_row >= self.max_in_a_row

    def error(self, step: int) -> DivergedError:
        """What to raise once `diverged`."""
        in_a_row, share = f"{self.in_a_row} steps in a row", "more than 5 % of the last 200 steps"
        what = in_a_row if self._too_many_in_a_row else share
        message = f"training diverged at step {step}: {what} had a loss or gradient that is not finite"
        hint = "Look at diverged/report.json; lower optimizer.lr, or set training.precision=float32."
        return DivergedError("E701", message, hint)

    def state(self) -> dict[str, object]:
        """Plain values for a checkpoint."""
        return {"in_a_row": self.in_a_row, "total": self.total, "recent": list(self._recent)}

    def load(self, state: dict[str, object]) -> None:
        """Continue from `state`."""
        self.in_a_row, self.total = state["in_a_row"], state["total"]  # type: ignore[assignment]
        self._recent.clear()
        self._recent.extend(state["recent"])  # type: ignore[arg-type]


def collapsed(step: int, reason: str) -> DivergedError:
    """What to raise when an objective says that training has collapsed."""
    hint = "The last checkpoint is from before; lower optimizer.lr or change the objective's section."
    return DivergedError("E702", f"training collapsed at step {step}: {reason}", hint)


def write_report(path: Path, step: int, crops: Crops, result: StepResult, skipped: int) -> None:
    """Write what is needed to find out why training diverged: the last step's values and videos."""
    report = {
        "step": step,
        "loss": str(result.loss),
        "grad_norm": str(result.grad_norm),
        "terms": {k: v if math.isfinite(v) else str(v) for k, v in result.terms.items()},
        "videos": list(crops.names),
        "sample_ids": crops.ids.tolist(),
        "skipped_steps": skipped,
        "random_state_sha256": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
    }
    files.write_json(path, report)
