"""What callers may rely on: errors that name the value, the compiler, precision, and who does the work."""

import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.knn_propagate.cases import Settings, inputs, reference
from vosnet_kernels import backends, knn_propagate, workspace_limit
from vosnet_kernels.knn_propagate import op
from vosnet_kernels.precision import full_float32

SHAPE = (1, 2, 6, 7, 9, 3)
SETTINGS: Settings = {"k": 4, "temperature": 0.07, "radius": 2}


def changed(**changes: Any) -> Callable[[], Tensor]:
    """A call whose inputs or settings are changed: query, memory and value by a function of the tensor."""

    def call() -> Tensor:
        tensors = dict(zip(("query", "memory", "value"), inputs(SHAPE), strict=True))
        settings = dict(SETTINGS)
        for name, change in changes.items():
            if name in tensors:
                tensors[name] = change(tensors[name])
            else:
                settings[name] = change
        return knn_propagate(**tensors, **settings)

    return call


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(changed(k=0), ValueError, "k=0", id="k"),
        pytest.param(changed(temperature=0.0), ValueError, "temperature=0.0", id="temperature"),
        pytest.param(changed(temperature=float("nan")), ValueError, "temperature=nan", id="temperature-nan"),
        pytest.param(changed(radius=-1), ValueError, "radius=-1", id="radius"),
        pytest.param(changed(radius=0, shape="disc"), ValueError, "radius=0", id="empty-disc"),
        pytest.param(changed(shape="circle"), ValueError, "'circle'", id="shape"),
        pytest.param(changed(global_frames=3), ValueError, r"2 frames, got global_frames=3", id="global"),
        pytest.param(changed(global_frames=-1), ValueError, "global_frames=-1", id="global-negative"),
        pytest.param(changed(query=lambda t: t[0]), ValueError, r"query \(6, 7, 9\)", id="dimensions"),
        pytest.param(changed(query=lambda t: t[:, :5]), ValueError, r"query \(1, 5, 7, 9\)", id="channels"),
        pytest.param(changed(memory=lambda t: t[..., 1:]), ValueError, r"\(1, 2, 6, 7, 8\)", id="grid"),
        pytest.param(changed(value=lambda t: t[:, :1]), ValueError, r"value \(1, 1, 3, 7, 9\)", id="frames"),
        pytest.param(
            changed(value=lambda t: t[:, :, :0]), ValueError, r"value \(1, 2, 0, 7, 9\)", id="empty"
        ),
        pytest.param(
            changed(memory=lambda t: t.half()), TypeError, "memory torch.float16", id="mixed-dtypes"
        ),
        pytest.param(changed(value=lambda t: t.long()), TypeError, "value torch.int64", id="integer-value"),
        pytest.param(changed(value=lambda t: t.to("meta")), ValueError, "value on meta", id="devices"),
        pytest.param(
            changed(query=lambda t: t.requires_grad_()), RuntimeError, "no_grad", id="gradient-wanted"
        ),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(
    call: Callable[[], Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_inputs_that_require_grad_are_fine_without_recording() -> None:
    with torch.no_grad():
        assert not changed(query=lambda t: t.requires_grad_())().requires_grad


def test_a_workspace_needs_a_byte() -> None:
    with pytest.raises(ValueError, match="got 0"), workspace_limit(0):
        pass


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_op_passes_opcheck(dtype: torch.dtype) -> None:
    settings = (4, 0.07, 2, "disc", 1)
    torch.library.opcheck(torch.ops.vosnet.knn_propagate.default, (*inputs(SHAPE, dtype=dtype), *settings))


def test_the_compiler_sees_one_graph_and_sizes_do_not_recompile_it() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(
        lambda query, memory, value: knn_propagate(query * 1.0, memory, value, **SETTINGS) + 1,
        fullgraph=True,
        dynamic=True,
        backend=count,
    )
    for h, w in ((7, 9), (8, 12), (10, 5)):
        tensors = inputs((1, 2, 6, h, w, 3))
        torch.testing.assert_close(compiled(*tensors), knn_propagate(*tensors, **SETTINGS) + 1)
    assert len(graphs) == 1


def test_autocast_leaves_the_scores_exact() -> None:
    tensors = inputs((1, 2, 64, 9, 11, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = knn_propagate(*tensors, **SETTINGS)
    torch.testing.assert_close(got, reference(tensors, torch.float32, SETTINGS), rtol=0, atol=1e-5)


def test_fast_matmul_settings_do_not_reach_the_op_and_survive_it() -> None:
    matmul = torch.backends.mkldnn.matmul
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        outer, seen = matmul.fp32_precision, []
        with full_float32("cpu"):
            thread = threading.Thread(target=lambda: _enter_and_leave(seen))
            thread.start()
            thread.join()
            seen.append(matmul.fp32_precision)
        assert seen == ["ieee", "ieee"]
        assert matmul.fp32_precision == outer
    finally:
        torch.set_float32_matmul_precision(before)


def _enter_and_leave(seen: list[str]) -> None:
    with full_float32("cpu"):
        seen.append(torch.backends.mkldnn.matmul.fp32_precision)


def test_the_log_says_which_implementation_runs_and_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="vosnet_kernels"):
        changed()()
    backend = backends.cpu_backend("knn_propagate")
    assert f"knn_propagate: {backend.name} ({backend.reason})" in caplog.messages


def test_f40_without_triton_a_gpu_runs_the_tiled_matmuls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_has_triton", lambda: False)
    chosen = op.backend(torch.device("cuda"), k=10, value_channels=4)
    assert chosen == backends.Backend("torch", "knn_propagate runs as tiled matmuls: triton is not installed")


def test_f40_an_old_gpu_runs_the_tiled_matmuls(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, "Old", (7, 5))
    chosen = op.backend(torch.device("cuda"), k=10, value_channels=4)
    assert chosen.name == "torch"
    assert "Old has capability 7.5, the kernels need 8.0" in chosen.reason


def test_a_gpu_runs_triton_up_to_the_size_that_its_kernels_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, "New", (9, 0))
    assert op.backend(torch.device("cuda"), k=32, value_channels=32).name == "triton"
    too_many = op.backend(torch.device("cuda"), k=33, value_channels=32)
    assert too_many.name == "torch"
    assert "got k=33" in too_many.reason


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(backends, "_has_triton", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)


def test_a_call_does_not_import_the_compiler() -> None:
    code = """
import sys
import torch
from vosnet_kernels import knn_propagate
query, memory, value = torch.ones(1, 2, 3, 3), torch.ones(1, 1, 2, 3, 3), torch.ones(1, 1, 1, 3, 3)
knn_propagate(query, memory, value, k=1, temperature=1.0, radius=1)
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=300, check=False).returncode == 0
