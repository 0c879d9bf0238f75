"""What is tried, in order, when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from vosnet.errors import OutOfMemoryError
from vosnet.runtime import is_out_of_memory

logger = logging.getLogger(__name__)
T = TypeVar("T")
Rung = Callable[[], "str | None"]


class Ladder:
    """Runs work again with smaller settings until it fits.

    Args:
        rungs: each makes something smaller and says what, or returns None when it has nothing left.
    """

    def __init__(self, rungs: Sequence[Rung]) -> None:
        self._rungs = list(rungs)
        self.steps: list[str] = []

    def run(self, work: Callable[[], T]) -> T:
        """The result of `work`, which must change nothing before it succeeds.

        Raises:
            OutOfMemoryError: it does not fit on the last rung either (E501).
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
            # outside of the handler: the traceback holds on to the tensors of the failed attempt
            self._step_down(reason)

    def _step_down(self, reason: str) -> None:
        for rung in self._rungs:
            step = rung()
            if step is not None:
                self.steps.append(step)
                logger.warning("out of memory (%s): going on with %s", reason, step)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                return
        tried = f" after {'; '.join(self.steps)}" if self.steps else ""
        hint = "Use a smaller short_side, fewer num_recent frames, or allow_degrade."
        raise OutOfMemoryError("E501", f"memory ran out{tried}: {reason}", hint)
