"""Memory that nobody wrote holds NaN here, so a kernel that forgets a cell cannot pass by luck."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tests.support.interpreter import Interpreter

NAN_FACTORIES = ("empty", "empty_like", "empty_strided")
NAN_METHODS = ("new_empty", "new_empty_strided")


def poisoned(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def make(*args: object, **kwargs: object) -> Tensor:
        tensor = factory(*args, **kwargs)
        if tensor.is_floating_point() and not tensor.is_meta and type(tensor) is Tensor:
            tensor.fill_(float("nan"))
        return tensor

    return make


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty and its kin return NaN instead of whatever was there before."""
    for name in NAN_FACTORIES:
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    for name in NAN_METHODS:
        monkeypatch.setattr(Tensor, name, poisoned(getattr(Tensor, name)))


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
            ],
        ),
    ]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device at hand: the same test function runs on each."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter]:
    """A worker process whose Triton kernels run on CPU tensors."""
    pytest.importorskip("triton", reason="triton is not installed")
    with Interpreter() as running:
        yield running
