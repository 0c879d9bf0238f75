"""The native k-nearest-neighbor search: every instruction path against the definition, and its manners."""

import ctypes
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies
from torch import Tensor

from tests.support.accuracy import assert_as_accurate_as
from vosnet_kernels import knn_propagate, workspace_limit
from vosnet_kernels.backends import cpu_backend
from vosnet_kernels.knn_propagate import native
from vosnet_kernels.knn_propagate.native import Counters, Kernel
from vosnet_kernels.knn_propagate.reference import knn_propagate_reference
from vosnet_kernels.native.build import COMPILER_VARIABLE, BuildError
from vosnet_kernels.native.capability import PATHS, can_run, can_use_native
from vosnet_kernels.window import Window

pytestmark = pytest.mark.usefixtures("poisoned_memory")

Inputs = tuple[Tensor, Tensor, Tensor]
CASES = [
    pytest.param((1, 3, 32, 9, 11, 3), {"k": 10, "radius": 3}, id="ragged-patches"),
    pytest.param(
        (2, 2, 24, 8, 8, 2), {"k": 5, "radius": 12, "global_frames": 1}, id="window-wider-than-frame"
    ),
    pytest.param(
        (1, 4, 64, 13, 17, 4), {"k": 10, "radius": 5, "shape": "disc", "global_frames": 1}, id="disc"
    ),
    pytest.param((1, 2, 24, 12, 12, 2), {"k": 5, "radius": 16, "shape": "disc"}, id="disc-around-the-frame"),
    pytest.param((1, 1, 5, 3, 2, 1), {"k": 10, "radius": 0}, id="own-cell-only"),
    pytest.param((1, 3, 7, 5, 6, 2), {"k": 200, "radius": 2}, id="fewer-candidates-than-k"),
    pytest.param((1, 3, 100, 20, 23, 32), {"k": 32, "radius": 6, "global_frames": 2}, id="many-values"),
    pytest.param((1, 2, 256, 18, 30, 3), {"k": 10, "radius": 12}, id="real-channels"),
    pytest.param((1, 2, 300, 1, 40, 3), {"k": 3, "radius": 24, "shape": "disc"}, id="one-row"),
    pytest.param((1, 2, 16, 6, 5, 1), {"k": 4, "radius": 10**9}, id="endless-radius"),
]


def inputs(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> Inputs:
    """Normalized features, and soft masks."""
    B, T, C, h, w, M = shape
    generator = torch.Generator().manual_seed(seed)
    query = torch.nn.functional.normalize(torch.randn(B, C, h, w, generator=generator), dim=1)
    memory = torch.nn.functional.normalize(torch.randn(B, T, C, h, w, generator=generator), dim=2)
    value = torch.randn(B, T, M, h, w, generator=generator).softmax(2)
    return query.to(dtype), memory.to(dtype), value


def reference(tensors: Inputs, dtype: torch.dtype, options: dict[str, Any]) -> Tensor:
    return knn_propagate_reference(*(tensor.to(dtype) for tensor in tensors), **options)


def searched(
    kernel: Kernel,
    tensors: Inputs,
    *,
    radius: int,
    shape: str = "square",
    global_frames: int = 0,
    **options: Any,
) -> tuple[Tensor, Counters] | None:
    return kernel.search(*tensors, window=Window(radius, shape, global_frames), **options)


def search(kernel: Kernel, tensors: Inputs, **options: Any) -> Tensor:
    found = searched(kernel, tensors, **options)
    assert found is not None
    return found[0]


def assert_right(kernel: Kernel, tensors: Inputs, **options: Any) -> None:
    exact = reference(tensors, torch.float64, options)
    assert_as_accurate_as(
        search(kernel, tensors, **options), reference(tensors, torch.float32, options), exact
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("shape", "options"), CASES)
def test_readout_is_as_exact_as_float32_allows(
    kernel: Kernel, shape: tuple[int, ...], options: dict[str, Any], dtype: torch.dtype
) -> None:
    assert_right(kernel, inputs(shape, dtype=dtype), temperature=0.07, **options)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=strategies.tuples(
        strategies.integers(1, 2),
        strategies.integers(1, 4),
        strategies.integers(1, 70),
        strategies.integers(1, 14),
        strategies.integers(1, 14),
        strategies.integers(1, 4),
    ),
    k=strategies.integers(1, 32),
    radius=strategies.integers(1, 16),
    disc=strategies.booleans(),
    global_frames=strategies.integers(0, 4),
    scale=strategies.sampled_from([1.0, 1e-3, 30.0]),
    strided=strategies.booleans(),
)
def test_f41_no_shape_gives_a_wrong_answer(
    kernel: Kernel,
    shape: tuple[int, ...],
    k: int,
    radius: int,
    disc: bool,
    global_frames: int,
    scale: float,
    strided: bool,
) -> None:
    query, memory, value = inputs(shape, seed=sum(shape))
    query = query * scale
    if strided:
        query = query.transpose(2, 3).contiguous().transpose(2, 3)
        memory = torch.cat([memory, torch.full_like(memory, torch.nan)], dim=4)[..., : shape[4]]
        value = value.transpose(1, 2).contiguous().transpose(1, 2)
    options = {
        "k": k,
        "temperature": 0.07 * scale,
        "radius": radius,
        "shape": "disc" if disc else "square",
        "global_frames": min(global_frames, shape[1]),
    }
    assert_right(kernel, (query, memory, value), **options)


def test_equal_cells_are_taken_in_the_order_of_frame_and_place(kernel: Kernel) -> None:
    query, memory, _ = inputs((1, 4, 40, 9, 10, 1))
    memory[:] = memory[:, :1]  # every frame is the same frame
    query = query[..., :1, :1].expand(-1, -1, 9, 10)
    memory[0, :, :, 2:7] = memory[0, :1, :, 2:3]  # and some rows are the same row
    cells = torch.arange(4 * 90, dtype=torch.float32).view(1, 4, 1, 9, 10)
    value = torch.zeros(1, 4, 360, 9, 10).scatter_(2, cells.long(), 1.0)  # says which cells were copied
    options: dict[str, Any] = {"k": 6, "temperature": 0.07, "radius": 4}
    exact = reference((query, memory, value), torch.float64, options)
    torch.testing.assert_close(
        search(kernel, (query, memory, value), **options).double(), exact, rtol=0, atol=1e-5
    )


def test_neighbors_closer_than_half_precision_are_told_apart(kernel: Kernel) -> None:
    query, _, value = inputs((1, 3, 64, 12, 12, 4))
    generator = torch.Generator().manual_seed(1)
    # every memory cell is the query's mean direction plus 1e-4: bfloat16 cannot rank them, float32 can
    direction = query.mean((2, 3), keepdim=True)[:, None]
    memory = direction + 1e-4 * torch.randn(1, 3, 64, 12, 12, generator=generator)
    found = searched(kernel, (query, memory, value), k=5, temperature=1e-4, radius=5)
    assert found is not None
    options: dict[str, Any] = {"k": 5, "temperature": 1e-4, "radius": 5}
    exact = reference((query, memory, value), torch.float64, options)
    baseline = reference((query, memory, value), torch.float32, options)
    assert_as_accurate_as(found[0], baseline, exact)


@pytest.mark.parametrize("rounded", ["key", "query"])
def test_the_best_cell_is_found_where_half_precision_ranks_it_last(kernel: Kernel, rounded: str) -> None:
    # between 1 and 2 bfloat16 has steps of 1 / 128: 1.0038 is rounded down to 1, 1.0040 up to 1.0078
    down, up = torch.full((32,), 1.0038), torch.full((32,), 1.0040)
    if rounded == "key":  # the best: 64 * 1.0038, others: 64 * 1.0020; rounded: 64 and 64 * 1.0039
        query, best, other = torch.ones(64), torch.cat([down, down]), torch.cat([torch.ones(32), up])
    else:  # the best: 32 * 1.0038, others: 32 * 1.0001; rounded: 32 and 32 * 1.0039
        query, best = torch.cat([down, up]), torch.cat([torch.ones(32), torch.zeros(32)])
        other = torch.cat([torch.zeros(32), torch.full((32,), 255 / 256)])
    memory = other.view(1, 1, 64, 1, 1).repeat(1, 3, 1, 9, 9)
    memory[0, 0, :, 4, 4] = best
    value = torch.zeros(1, 3, 1, 9, 9)
    value[0, 0, 0, 4, 4] = 1
    tensors = query.view(1, 64, 1, 1).expand(1, 64, 9, 9), memory, value
    assert torch.equal(search(kernel, tensors, k=1, temperature=1.0, radius=9), torch.ones(1, 1, 9, 9))


def test_dropping_hopeless_patches_early_changes_nothing(kernel: Kernel) -> None:
    shape = (1, 4, 256, 16, 24, 3)
    query, memory, value = inputs(shape)
    memory = 0.9 * query[:, None].roll((1, 2), (3, 4)) + 0.1 * memory  # a scene that moves a little
    options: dict[str, Any] = {"k": 4, "temperature": 0.07, "radius": 8}
    early, full = (
        searched(kernel, (query, memory, value), **options, prune=prune) for prune in (True, False)
    )
    assert early is not None
    assert full is not None
    assert full[1].completed == full[1].pairs == early[1].pairs
    assert early[1].completed < full[1].completed
    torch.testing.assert_close(early[0], full[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_does_not_change_a_bit(kernel: Kernel, threads: int) -> None:
    tensors = inputs((1, 3, 48, 17, 19, 3))
    options: dict[str, Any] = {"k": 7, "temperature": 0.07, "radius": 4, "global_frames": 1}
    one = search(kernel, tensors, **options, num_threads=1)
    assert torch.equal(search(kernel, tensors, **options, num_threads=threads), one)


def test_a_smaller_workspace_gives_the_same_readout(kernel: Kernel) -> None:
    tensors = inputs((1, 6, 16, 19, 21, 3))
    options: dict[str, Any] = {"k": 7, "temperature": 0.07, "radius": 4, "global_frames": 2}
    with workspace_limit(1):
        small = search(kernel, tensors, **options)
    torch.testing.assert_close(small, search(kernel, tensors, **options), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("where", [0, 1])
def test_features_that_would_overflow_are_refused(kernel: Kernel, bad: float, where: int) -> None:
    tensors = inputs((1, 2, 16, 6, 7, 1))
    tensors[where].view(-1)[37] = bad
    assert searched(kernel, tensors, k=3, temperature=0.07, radius=2) is None


def test_calls_from_two_threads_do_not_disturb_each_other(kernel: Kernel) -> None:
    options: dict[str, Any] = {"k": 7, "temperature": 0.07, "radius": 4}
    problems = [inputs((1, 3, 48, 17, 19, 3), seed) for seed in range(2)]
    expected = [search(kernel, tensors, **options) for tensors in problems]
    right: list[bool] = []

    def work(i: int) -> None:
        results = [search(kernel, problems[i], **options, num_threads=2) for _ in range(5)]
        right.append(all(torch.equal(result, expected[i]) for result in results))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert right == [True, True]


def fastest(load_kernel: Any) -> Kernel:
    obstacle = can_use_native()
    if obstacle is not None:
        pytest.skip(obstacle)
    kernel = load_kernel(next(path for path in PATHS if can_run(path) is None))
    assert isinstance(kernel, Kernel)
    return kernel


def count_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def long_problem() -> tuple[Inputs, dict[str, Any]]:
    tensors = inputs((1, 6, 128, 40, 48, 2))
    return tensors, {"k": 10, "temperature": 0.07, "radius": 12, "prune": False}


def test_other_python_threads_run_during_a_search(load_kernel: Any) -> None:
    kernel = fastest(load_kernel)
    tensors, options = long_problem()
    inside = threading.Event()
    leave = threading.Event()
    progress = 0
    real = kernel.library.vosnet_knn_propagate
    started = time.monotonic()
    search(kernel, tensors, **options)
    alone_s = time.monotonic() - started

    def count() -> None:
        nonlocal progress
        inside.set()
        while not leave.is_set():
            progress += 1
            time.sleep(alone_s / 100)

    worker = threading.Thread(target=count)
    worker.start()
    inside.wait()
    before = progress
    search(kernel, tensors, **options, num_threads=1)
    during = progress - before
    leave.set()
    worker.join()
    assert real is kernel.library.vosnet_knn_propagate
    assert during >= 5, "a search that holds the interpreter lock stops every other thread"


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_torch_set_num_threads_is_honored(
    load_kernel: Any, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = fastest(load_kernel)
    tensors, options = long_problem()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    alive = count_threads()
    most = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, count_threads())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(3):
        search(kernel, tensors, **options)
    done.set()
    watcher.join()
    assert most == alive + 1 + (threads - 1), "the caller works too; the watcher is one more"
    deadline = time.monotonic() + 5.0
    while count_threads() > alive and time.monotonic() < deadline:
        time.sleep(0.001)  # Linux lists a thread for a moment after it was joined, the watcher too
    assert count_threads() == alive, "no thread outlives its call"


def test_a_forked_process_can_search(load_kernel: Any) -> None:
    kernel = fastest(load_kernel)
    tensors = inputs((1, 3, 48, 17, 19, 3))
    options: dict[str, Any] = {"k": 7, "temperature": 0.07, "radius": 4, "num_threads": 2}
    expected = search(kernel, tensors, **options)
    pid = os.fork()
    if pid == 0:
        ok = torch.equal(search(kernel, tensors, **options), expected)
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.usefixtures("fresh_choice")
def test_f40_without_a_compiler_torch_serves_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if can_use_native() is not None:
        pytest.skip("no native kernel on this machine anyway")
    monkeypatch.setenv(COMPILER_VARIABLE, "no-such-compiler")
    tensors = inputs((1, 3, 16, 9, 11, 2))
    options: dict[str, Any] = {"k": 5, "temperature": 0.07, "radius": 3}
    with caplog.at_level(logging.DEBUG, logger="vosnet_kernels"):
        got = knn_propagate(*tensors, **options)
    exact = reference(tensors, torch.float64, options)
    assert_as_accurate_as(got, reference(tensors, torch.float32, options), exact)
    backend = cpu_backend("knn_propagate")
    assert backend.name == "torch"
    assert "no C++ compiler found" in backend.reason
    assert any("no C++ compiler found" in message for message in caplog.messages)


@pytest.mark.usefixtures("fresh_choice")
def test_f40_a_processor_without_the_instructions_gets_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vosnet_kernels.native.capability.cpu_flags", lambda: frozenset({"sse2", "avx"}))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    backend = cpu_backend("knn_propagate")
    assert backend.name == "torch"
    assert "the processor lacks avx2, f16c, fma" in backend.reason


@pytest.mark.usefixtures("fresh_choice")
def test_f41_a_kernel_that_fails_its_self_check_is_not_used(
    load_kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = fastest(load_kernel)

    def slightly_wrong(self: Kernel, query: Tensor, *args: Tensor, **options: Any) -> Any:
        found = real(self, query, *args, **options)
        assert found is not None
        return found[0] + 1e-3, found[1]

    real = Kernel.search
    monkeypatch.setattr(Kernel, "search", slightly_wrong)
    with pytest.raises(BuildError, match="wrong answer"):
        native._self_check(kernel)


def test_the_op_runs_the_native_kernel_where_there_is_one(load_kernel: Any) -> None:
    fastest(load_kernel)
    assert cpu_backend("knn_propagate").name == "native"
    tensors = inputs((2, 3, 32, 9, 11, 3))
    options: dict[str, Any] = {"k": 10, "temperature": 0.07, "radius": 3}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        query, memory, value = (tensor.to(dtype) for tensor in tensors)
        got = knn_propagate(query, memory, value, **options)
        assert got.dtype == dtype
        exact = reference((query, memory, value), torch.float64, options)
        tolerance = 1e-5 if dtype != torch.bfloat16 else 1e-2
        np.testing.assert_allclose(got.double().numpy(), exact.numpy(), rtol=0, atol=tolerance)


def test_features_that_are_not_finite_take_the_torch_way(
    load_kernel: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fastest(load_kernel)
    query, memory, value = inputs((1, 2, 16, 6, 7, 1))
    memory[0, 0, 0, 0, 0] = torch.inf
    with caplog.at_level(logging.DEBUG, logger="vosnet_kernels"):
        knn_propagate(query, memory, value, k=3, temperature=0.07, radius=1)
    assert any("not finite" in message for message in caplog.messages)


def test_the_two_sides_agree_on_the_layout_of_a_call() -> None:
    assert ctypes.sizeof(native.Problem) == 4 * 8 + (2 + 3 + 4 + 3) * 8 + 12 * 4 + 4 + 4  # padded to 8 bytes
