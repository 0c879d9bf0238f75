"""The shortcut of narrow residual blocks: strided 1x1 convolutions that oneDNN's backward cannot do."""

from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from vosnet.models.resnet import BasicBlock


class Convolutions(TorchDispatchMode):
    """Weight shape and stride of every convolution that is run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.seen.append((tuple(args[1].shape), tuple(args[3])))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("in_dim", [4, 8, 15])
def test_a_narrow_shortcut_never_reaches_the_strided_convolution_that_corrupts_memory(in_dim: int) -> None:
    block = BasicBlock(in_dim, 2 * in_dim, 2, "zeros")
    with Convolutions() as convolutions, torch.no_grad():
        block(torch.zeros(1, in_dim, 8, 8))
    assert (2 * in_dim, in_dim, 1, 1) in [shape for shape, _ in convolutions.seen]
    assert not [shape for shape, stride in convolutions.seen if shape[-1] == 1 and stride != (1, 1)]


@pytest.mark.parametrize("size", [(8, 8), (7, 5)], ids=["even", "odd"])
def test_a_narrow_shortcut_is_the_strided_convolution_with_its_gradient(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    block = BasicBlock(4, 8, 2, "zeros")
    assert block.downsample is not None
    shortcut, x = block.downsample[0], torch.randn(2, 4, *size, generator=generator)
    got = shortcut(x)
    weight = shortcut.weight.detach().double().requires_grad_()
    expected = functional.conv2d(x.double(), weight, stride=2)
    grad = torch.randn(expected.shape, generator=generator)
    got.backward(grad)
    expected.backward(grad.double())
    torch.testing.assert_close(got, expected.float())
    torch.testing.assert_close(shortcut.weight.grad, weight.grad.float())
