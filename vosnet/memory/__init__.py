"""Which frames are kept, and which of them one query reads."""

from vosnet.memory.bank import MemoryBank
from vosnet.memory.context import (
    CONTEXT_RULES,
    REFERENCES,
    Context,
    ContextRule,
    Reading,
    References,
    context_frames,
    spaced_frames,
)
from vosnet.memory.spaced import SpacedBank

__all__ = [
    "CONTEXT_RULES",
    "REFERENCES",
    "Context",
    "ContextRule",
    "MemoryBank",
    "Reading",
    "References",
    "SpacedBank",
    "context_frames",
    "spaced_frames",
]
