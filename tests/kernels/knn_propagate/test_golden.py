"""One step of the authors' own label propagation, every implementation against their readouts."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels.knn_propagate.cases import Inputs, Run, Settings
from tests.support.interpreter import Interpreter
from vosnet_kernels.knn_propagate.reference import knn_propagate_reference

GOLDEN = os.environ.get("VOSNET_GOLDEN")
pytestmark = pytest.mark.skipif(GOLDEN is None, reason="set VOSNET_GOLDEN to the folder of golden values")
STEPS = range(3)


def golden_step(step: int) -> tuple[Inputs, Settings, Tensor]:
    with np.load(Path(str(GOLDEN)) / "peer_knn_steps_dev.npz") as file:
        arrays: dict[str, Any] = {
            name: torch.from_numpy(file[f"{step}_{name}"]) for name in ("query", "memory", "value", "readout")
        }
        radius, k, temperature = file[f"{step}_params"]
    settings: Settings = {
        "k": int(k),
        "temperature": float(temperature),
        "radius": int(radius),
        "shape": "disc",
        "global_frames": 1,
    }
    return (arrays["query"], arrays["memory"][None], arrays["value"][None]), settings, arrays["readout"]


@pytest.mark.parametrize("step", STEPS)
def test_the_definition_agrees_with_the_authors(step: int) -> None:
    tensors, settings, readout = golden_step(step)
    got = knn_propagate_reference(*tensors, **settings)
    torch.testing.assert_close(got, readout, rtol=0, atol=1e-5)


@pytest.mark.parametrize("step", STEPS)
def test_every_implementation_agrees_with_the_authors(step: int, run: Run) -> None:
    tensors, settings, readout = golden_step(step)
    got = run(*(tensor.to(run.device) for tensor in tensors), **settings)
    torch.testing.assert_close(got.cpu(), readout, rtol=0, atol=1e-5)


def test_the_gpu_kernels_agree_with_the_authors(interpreter: Interpreter) -> None:
    tensors, settings, readout = golden_step(1)  # the smallest
    got = interpreter.call("tests.kernels.knn_propagate.interpreted", "propagate", *tensors, **settings)
    torch.testing.assert_close(got, readout, rtol=0, atol=1e-5)
