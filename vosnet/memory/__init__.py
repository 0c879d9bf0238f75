"""Which frames are kept, and which of them one query reads."""

from vosnet.memory.bank import Context, MemoryBank
from vosnet.memory.context import CONTEXT_RULES, ContextRule, context_frames

__all__ = ["CONTEXT_RULES", "Context", "ContextRule", "MemoryBank", "context_frames"]
