"""Limit on the temporary memory of one call of an op."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

DEFAULT_WORKSPACE_BYTES = 128 * 2**20
_limit: ContextVar[int] = ContextVar("vosnet_kernels_workspace_bytes", default=DEFAULT_WORKSPACE_BYTES)


def workspace_bytes() -> int:
    """Bytes of temporary memory that an op may take beside its inputs and its result.

    The default is a constant, not a share of free memory: equal calls are split equally everywhere. It is a
    target: an op uses its smallest chunk even if that is larger.
    """
    return _limit.get()


@contextmanager
def workspace_limit(limit_bytes: int) -> Iterator[None]:
    """Within the context, ops split their work into chunks of about `limit_bytes`: slower, same results.

    The limit holds for the current thread (more exactly: the current `contextvars` context).

    Args:
        limit_bytes: temporary memory of one op call, bytes, at least 1.

    Raises:
        ValueError: if `limit_bytes` is not positive.
    """
    if limit_bytes < 1:
        raise ValueError(f"the workspace limit must be at least 1 byte, got {limit_bytes}")
    token = _limit.set(int(limit_bytes))
    try:
        yield
    finally:
        _limit.reset(token)
