"""Memory that nobody wrote holds NaN, so a kernel that forgets a cell cannot pass by luck."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FACTORIES = [
    *((torch, name) for name in ("empty", "empty_like", "empty_strided")),
    *((Tensor, name) for name in ("new_empty", "new_empty_strided")),
]


def poison_empty(replace: Callable[[Any, str, Any], None]) -> None:
    """Make torch.empty and its kin return NaN, by `replace(owner, name, function)`, e.g. setattr."""
    for owner, name in FACTORIES:
        replace(owner, name, _poisoned(getattr(owner, name)))


def _poisoned(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def make(*args: Any, **kwargs: Any) -> Tensor:
        tensor = factory(*args, **kwargs)
        if tensor.is_floating_point() and not tensor.is_meta and type(tensor) is Tensor:
            tensor.fill_(float("nan"))
        return tensor

    return make
