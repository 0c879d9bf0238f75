"""Out-of-memory fallbacks, in order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from vosnet.errors import OutOfMemoryError
from vosnet.matching import Chunks
from vosnet.runtime import is_out_of_memory

logger = logging.getLogger(__name__)
T = TypeVar("T")
Fallback = Callable[[], "str | None"]
MIN_WORKSPACE_BYTES = 2**20


class Fallbacks:
    """Repeats work that runs out of memory, after one fallback more each time.

    Args:
        fallbacks: each makes something smaller and says what, or returns None when it has nothing left.

    Attributes:
        taken: what the fallbacks said so far.
    """

    def __init__(self, fallbacks: Sequence[Fallback]) -> None:
        self._fallbacks = list(fallbacks)
        self.taken: list[str] = []

    def run(self, work: Callable[[], T]) -> T:
        """The result of `work`, which must change nothing before it succeeds.

        Raises:
            OutOfMemoryError: it does not fit after the last fallback either (E501).
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
            # outside of the handler: the traceback holds on to the tensors of the failed attempt
            self._take_next(reason)

    def _take_next(self, reason: str) -> None:
        taken = next((said for fallback in self._fallbacks if (said := fallback()) is not None), None)
        if taken is None:
            tried = f" after {'; '.join(self.taken)}" if self.taken else ""
            hint = "Use a smaller short_side, fewer num_recent frames, or allow_degrade."
            raise OutOfMemoryError("E501", f"memory ran out{tried}: {reason}", hint)
        self.taken.append(taken)
        logger.warning("out of memory (%s): going on with %s", reason, taken)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def smaller_workspace(chunks: Chunks) -> str | None:
    """A quarter of the kernels' temporary memory."""
    if chunks.workspace // 4 < MIN_WORKSPACE_BYTES:
        return None
    chunks.workspace_bytes = chunks.workspace // 4
    return f"kernel workspace {chunks.workspace_bytes / 2**20:.0f} MiB"


def fewer_channels(chunks: Chunks) -> str | None:
    """A quarter of the objects at once."""
    if chunks.channels == 1:
        return None
    chunks.channels = max(1, chunks.channels // 4)
    return f"{chunks.channels} objects at once"
