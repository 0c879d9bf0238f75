"""The authors' code as truth: DUL's propagation of a whole video and of single steps."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vosnet.matching import Neighborhood, nearest_readout
from vosnet.propagation import Propagator

GOLDEN = os.environ.get("VOSNET_GOLDEN")
pytestmark = pytest.mark.skipif(GOLDEN is None, reason="VOSNET_GOLDEN does not name the golden values")


def golden(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(Path(GOLDEN or "") / name))


def test_a_whole_video_equals_the_authors_code_with_preset_dul() -> None:
    data = golden("peer_sequence_dev.npz")
    features = iter(torch.from_numpy(data["features"]))

    def replay(images: Tensor) -> Tensor:
        return next(features)[None]

    stride = data["first_mask"].shape[0] // data["features"].shape[2]
    propagator = Propagator.from_encoder(replay, stride, "dul", "cpu")
    frames = np.zeros((len(data["masks"]), *data["first_mask"].shape, 3), np.uint8)
    tracker = propagator.tracker()
    differing = []
    for t, frame in enumerate(frames):
        probs = tracker.step(frame, data["first_mask"] if t == 0 else None)
        differing.append((tracker.decide(probs) != data["masks"][t]).mean())
    assert np.mean(differing) <= 0.001
    close = (probs - torch.from_numpy(data["last_soft"][0])).abs().amax(0) <= 1e-4
    assert close.float().mean() >= 0.999


@pytest.mark.parametrize("step", [0, 1, 2])
def test_single_steps_equal_the_authors_code(step: int) -> None:
    data = golden("peer_knn_steps_dev.npz")
    query, memory, value, expected = (
        torch.from_numpy(data[f"{step}_{name}"]) for name in ("query", "memory", "value", "readout")
    )
    radius, k, temperature = data[f"{step}_params"]
    got = nearest_readout(
        query[0],
        memory,
        value,
        k=int(k),
        temperature=float(temperature),
        neighborhood=Neighborhood("disc", int(radius), global_frames=1),
    )
    assert ((got - expected[0]).abs().amax(0) <= 1e-4).float().mean() >= 0.999
