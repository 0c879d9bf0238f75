"""How the op behaves as a citizen of PyTorch: checks, opcheck, torch.compile, messages."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from vosnet_kernels import windowed_readout
from vosnet_kernels.windowed_readout import op, tiled

QUERY, MEMORY, VALUE = (1, 4, 5, 6), (1, 2, 4, 5, 6), (1, 2, 3, 5, 6)


def inputs(dtype: torch.dtype = torch.float32, *, grad: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (QUERY, MEMORY, VALUE)
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_(grad) for s in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_forward_op_is_registered_as_pytorch_expects(dtype: torch.dtype, device: torch.device) -> None:
    tensors = [tensor.to(device).detach().requires_grad_() for tensor in inputs(dtype)]
    torch.library.opcheck(op._forward, (*tensors, 2, 0.5, "zero"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_backward_op_is_registered_as_pytorch_expects(dtype: torch.dtype, device: torch.device) -> None:
    tensors = [tensor.to(device) for tensor in inputs(dtype)]
    readout, lse = op._forward(*tensors, 2, 0.5, "exclude")
    for needs in ((True, True, True), (True, False, False), (False, False, True)):
        arguments = (readout, *tensors, lse, torch.zeros_like(lse), 2, 0.5, needs)
        torch.library.opcheck(op._backward, arguments)


def test_compiles_without_graph_breaks_and_without_a_recompile_per_size() -> None:
    torch._dynamo.reset()
    graphs = 0

    def count(module: Any, example: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return module.forward

    def loss(query: Tensor, memory: Tensor, value: Tensor) -> Tensor:
        return windowed_readout(query.relu(), memory, value, radius=2, outside="zero").square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=count)
    for h, w in ((7, 9), (12, 10), (5, 17)):
        tensors = [
            torch.randn(s, requires_grad=True) for s in ((2, 4, h, w), (2, 3, 4, h, w), (2, 3, 2, h, w))
        ]
        torch.testing.assert_close(compiled(*tensors), loss(*tensors))
    assert graphs == 1


def test_gradients_survive_ahead_of_time_autograd() -> None:
    torch._dynamo.reset()

    def loss(*tensors: Tensor) -> Tensor:
        return windowed_readout(*tensors, radius=2, temperature=0.5).square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    got, plain = inputs(grad=True), inputs(grad=True)
    compiled(*got).backward()
    loss(*plain).backward()
    for a, b in zip(got, plain):
        torch.testing.assert_close(a.grad, b.grad)


def test_second_derivatives_are_refused_not_wrong() -> None:
    tensors = inputs(grad=True)
    readout = windowed_readout(*tensors, radius=1)
    (gradient,) = torch.autograd.grad(readout.square().sum(), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="windowed_readout_backward"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": torch.ones(4, 5, 6)}, ValueError, r"query \[B, C, h, w\].*got query \(4, 5, 6\)"),
        (
            {"memory": torch.ones(1, 2, 3, 5, 6)},
            ValueError,
            r"query's batch, channels and grid.*\(1, 2, 3, 5, 6\)",
        ),
        ({"memory": torch.ones(1, 3, 4, 5, 6)}, ValueError, r"value's frames.*memory \(1, 3, 4, 5, 6\)"),
        ({"value": torch.ones(1, 2, 3, 6, 5)}, ValueError, r"memory's frames.*value \(1, 2, 3, 6, 5\)"),
        ({"memory": torch.ones(1, 0, 4, 5, 6), "value": torch.ones(1, 0, 3, 5, 6)}, ValueError, "one frame"),
        ({"value": torch.ones(VALUE, device="meta")}, ValueError, "value on meta"),
        ({"memory": torch.ones(MEMORY).half()}, TypeError, r"torch\.float32.*torch\.float16"),
        ({"value": torch.ones(VALUE, dtype=torch.uint8)}, TypeError, r"torch\.uint8"),
        ({"radius": -1}, ValueError, "radius=-1"),
        ({"temperature": 0.0}, ValueError, r"temperature=0\.0"),
        ({"temperature": float("nan")}, ValueError, "temperature=nan"),
        ({"outside": "wrap"}, ValueError, "exclude.*zero.*outside='wrap'"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else None,
)
def test_a_wrong_argument_is_refused_with_its_rule_and_value(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    query, memory, value = inputs()
    arguments: dict[str, Any] = {"query": query, "memory": memory, "value": value, "radius": 1, **change}
    with pytest.raises(error, match=message):
        windowed_readout(**arguments)


def test_the_debug_log_says_which_implementation_serves_and_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="vosnet_kernels"):
        windowed_readout(*inputs(), radius=1)
    (record,) = caplog.records
    assert record.getMessage().startswith("windowed_readout: ")


def test_f40_a_gpu_without_triton_is_served_by_tiled_matmuls_and_told_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vosnet_kernels.backends._has_triton", lambda: False)
    query = torch.empty(QUERY, device="meta")
    monkeypatch.setattr(type(query), "device", torch.device("cuda", 0), raising=False)
    with caplog.at_level(logging.DEBUG, logger="vosnet_kernels"):
        assert op._implementation(query) is tiled
    assert "triton is not installed" in caplog.text
