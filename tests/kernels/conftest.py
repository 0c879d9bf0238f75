"""What the tests of all kernels share: devices, poisoned memory, Triton's interpreter."""

from collections.abc import Iterator

import pytest
import torch

from tests.support.devices import DEVICES
from tests.support.interpreter import Interpreter
from tests.support.poison import poison_empty


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty and its kin return NaN instead of whatever was there before."""
    poison_empty(monkeypatch.setattr)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device at hand: the same test function runs on each."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter]:
    """A worker process whose Triton kernels run on CPU tensors."""
    pytest.importorskip("triton", reason="triton is not installed")
    with Interpreter() as running:
        yield running
