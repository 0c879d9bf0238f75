"""Argument checks that the ops share: each message holds the rule and the values."""

import math

from torch import Tensor


def check_tensors(op: str, query: Tensor, memory: Tensor, value: Tensor) -> None:
    """Raise unless query [B, C, h, w], memory [B, T, C, h, w] and value [B, T, M, h, w] belong together.

    Args:
        op: name of the op, for messages.
        query, memory, value: as in every op of this package.

    Raises:
        ValueError: if shapes or devices do not fit, or if there is no frame or no channel.
        TypeError: if a tensor is not floating or query and memory differ in dtype.
    """
    shapes = f"got query {tuple(query.shape)}, memory {tuple(memory.shape)}, value {tuple(value.shape)}"
    if (query.dim(), memory.dim(), value.dim()) != (4, 5, 5):
        raise ValueError(
            f"{op} takes query [B, C, h, w], memory [B, T, C, h, w] and value [B, T, M, h, w], {shapes}"
        )
    b, c, h, w = query.shape
    t, m = value.shape[1:3]
    if tuple(memory.shape) != (b, t, c, h, w):
        raise ValueError(
            f"memory must have query's batch, channels and grid and value's frames [B, T, C, h, w], {shapes}"
        )
    if tuple(value.shape) != (b, t, m, h, w):
        raise ValueError(
            f"value must have query's batch and grid and memory's frames [B, T, M, h, w], {shapes}"
        )
    if min(t, c, m) < 1:
        raise ValueError(f"{op} needs at least one frame, one channel and one value channel, {shapes}")
    if not query.device == memory.device == value.device:
        raise ValueError(
            f"{op} needs all inputs on one device, got query on {query.device}, memory on {memory.device}, "
            f"value on {value.device}"
        )
    if not (query.is_floating_point() and value.is_floating_point()) or query.dtype != memory.dtype:
        raise TypeError(
            f"{op} needs query and memory in one floating dtype and value in a floating dtype, "
            f"got query {query.dtype}, memory {memory.dtype}, value {value.dtype}"
        )


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless `temperature` may divide affinities."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got temperature={temperature}")
