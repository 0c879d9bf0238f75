"""Memory runs out: smaller chunks first, the same result, every step logged."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.vosnet.models.test_segmenter import TINY
from tests.vosnet.propagation.helpers import make_mask, make_propagator, make_scene
from vosnet import matching
from vosnet.errors import OutOfMemoryError
from vosnet.models import MaskSegmenter
from vosnet.propagation.fallbacks import MIN_WORKSPACE_BYTES, Fallbacks
from vosnet.propagation.tracker import Tracker
from vosnet.runtime import is_out_of_memory

MASKS = {
    0: make_mask({i + 1: (0, 9 * i, 48, 9 * i + 8) for i in range(8)}),
    3: make_mask({20: (0, 0, 9, 72)}),
}


def run(tracker: Tracker) -> list[torch.Tensor]:
    return [tracker.step(frame, MASKS.get(t)) for t, frame in enumerate(make_scene(6))]


def fail_unless(
    monkeypatch: pytest.MonkeyPatch, fits: Callable[[torch.Tensor], bool], error: Exception
) -> None:
    """The kernel runs out of memory unless `fits(value)`."""
    real = matching.knn_propagate

    def fake(query: torch.Tensor, memory: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        if not fits(value):
            raise error
        return real(query, memory, value, **options)

    monkeypatch.setattr(matching, "knn_propagate", fake)


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), id="cuda"),
        pytest.param(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), id="cpu"),
        pytest.param(MemoryError(), id="python"),
    ],
)
def test_f34_a_smaller_workspace_gives_the_same_result(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    expected = run(make_propagator().tracker())
    fail_unless(monkeypatch, lambda value: matching.workspace_bytes() <= 2**25, error)
    tracker = make_propagator().tracker()
    with caplog.at_level(logging.WARNING):
        got = run(tracker)
    assert tracker.fallbacks.taken == ["kernel workspace 32 MiB"]
    assert "going on with kernel workspace 32 MiB" in caplog.text
    for a, b in zip(got, expected):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_f34_fewer_objects_at_once_give_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(make_propagator().tracker())
    fail_unless(monkeypatch, lambda value: value.shape[2] <= 2, torch.OutOfMemoryError("out of memory"))
    tracker = make_propagator().tracker()
    got = run(tracker)
    assert tracker.fallbacks.taken[-1] == "2 objects at once"
    assert tracker.chunks.workspace >= MIN_WORKSPACE_BYTES
    for a, b in zip(got, expected):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_f34_the_cpu_comes_after_smaller_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(make_propagator().tracker())
    tracker = make_propagator().tracker()
    moved: list[str] = []
    real = Tracker.to

    def to(self: Tracker, device: torch.device) -> None:
        moved.append(str(device))
        real(self, device)

    monkeypatch.setattr(Tracker, "to", to)
    fail_unless(monkeypatch, lambda value: bool(moved), torch.OutOfMemoryError("CUDA out of memory"))
    # there is no GPU to leave here: the tracker is told that it is on one until it moves
    tracker.extractor.device = FakeCuda()
    got = run(tracker)
    assert moved == ["cpu"]
    assert tracker.fallbacks.taken[-1] == "moved to the CPU"
    assert "1 objects at once" in tracker.fallbacks.taken
    for a, b in zip(got, expected):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


class FakeCuda(str):
    """Tensors sent here stay on the CPU, but `type` says cuda."""

    __slots__ = ()
    type = "cuda"

    def __new__(cls) -> "FakeCuda":
        return super().__new__(cls, "cpu")


def test_f34_results_change_only_when_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_unless(monkeypatch, lambda value: value.shape[1] <= 3, torch.OutOfMemoryError("out of memory"))
    with pytest.raises(OutOfMemoryError, match=r"E501 memory ran out after kernel workspace .*allow_degrade"):
        run(make_propagator().tracker())
    tracker = make_propagator(allow_degrade=True, k=3).tracker()
    run(tracker)
    assert tracker.fallbacks.taken[-1] == "2 recent frames instead of 20 (results change)"
    assert all("objects" in s or "workspace" in s for s in tracker.fallbacks.taken[:5])


def test_f34_the_encoder_running_out_ends_in_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    propagator = make_propagator()

    def fail(images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(propagator.extractor, "_run", fail)
    with pytest.raises(OutOfMemoryError, match="E501 .*smaller short_side"):
        list(propagator.propagate(make_scene(2), {0: MASKS[0]}))


class RunsOut(TorchDispatchMode):
    """Counts the operations that take memory; the one with number `at` finds none, once."""

    def __init__(self, at: int = -1) -> None:
        super().__init__()
        self.at, self.count = at, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if not name.endswith("_"):  # the others write where there is memory already
            self.count += 1
            if self.count - 1 == self.at:
                raise torch.OutOfMemoryError(f"CUDA out of memory in {name}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("step", [0, 3], ids=["first", "new-object"])
@pytest.mark.parametrize("preset", ["dul", "mast", "crw_decoded"])
def test_f34_a_step_that_runs_out_anywhere_is_repeated_as_if_nothing_had_happened(
    preset: str, step: int
) -> None:
    torch.manual_seed(0)
    options = {"segmenter": MaskSegmenter(**TINY)} if preset == "crw_decoded" else {}
    few = {0: make_mask({1: (8, 8, 32, 32)}), 3: make_mask({7: (10, 34, 29, 60), 2: (32, 0, 48, 30)})}

    def probs(at: int) -> tuple[list[torch.Tensor], int]:
        tracker, found = make_propagator(preset, radius=3, **options).tracker(), []
        for t, frame in enumerate(make_scene(7)):
            mode = RunsOut(at if t == step else -1)
            with mode:
                found.append(tracker.step(frame, few.get(t)))
            if t == step:
                count = mode.count
                assert len(tracker.fallbacks.taken) == (at >= 0)
        return found, count

    expected, count = probs(-1)
    for at in range(0, count, max(1, count // 7)):
        for got, wanted in zip(probs(at)[0], expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)


def test_f34_running_out_while_deciding_gives_the_same_mask() -> None:
    tracker, frame = make_propagator().tracker(), make_scene(1)[0]
    probs = tracker.step(frame, MASKS[0])
    expected = tracker.decide(probs)
    with RunsOut(3):
        assert np.array_equal(tracker.decide(probs), expected)
    assert len(tracker.fallbacks.taken) == 1


def test_other_errors_pass_through_at_once() -> None:
    fallbacks = Fallbacks([lambda: "something smaller"])
    with pytest.raises(RuntimeError, match="shape mismatch"):
        fallbacks.run(lambda: (_ for _ in ()).throw(RuntimeError("shape mismatch")))
    assert not fallbacks.taken


def test_what_counts_as_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(np._core._exceptions._ArrayMemoryError((2, 2), np.dtype(float)))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(RuntimeError("expected scalar type Half"))
