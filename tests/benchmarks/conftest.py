"""Benchmarks say on what they ran, and know the plain way's time of the same run."""

from typing import Any

import pytest
import torch

from tests.support.devices import DEVICES
from tests.support.machine import describe


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Device, driver and versions go into the JSON."""
    machine_info.update(describe())


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device at hand."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def plain_runs() -> dict[str, Any]:
    """What the dense way measured and answered in this session, by case."""
    return {}
