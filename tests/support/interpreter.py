"""Run Triton kernels on CPU tensors: a process of its own, as Triton reads TRITON_INTERPRET at import."""

import importlib
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from tests.support.poison import poison_empty


class Interpreter:
    """A worker process in which every @triton.jit function is interpreted by numpy.

    >>> with Interpreter() as interpreter:
    ...     readout = interpreter.call("package.module_with_triton_kernels", "launcher", query, memory)
    """

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_become_interpreter
        )

    def call(self, module: str, function: str, *args: Any, **kwargs: Any) -> Any:
        """`module.function(*args, **kwargs)` in the worker; tensors go there and come back by value."""
        return _unpacked(self._pool.submit(_call, module, function, _packed(args), _packed(kwargs)).result())

    def __enter__(self) -> "Interpreter":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.shutdown()


def _become_interpreter() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    poison_empty(setattr)
    _teach_bfloat16_dot()


def _call(module: str, function: str, args: Any, kwargs: Any) -> Any:
    return _packed(getattr(importlib.import_module(module), function)(*_unpacked(args), **_unpacked(kwargs)))


def _teach_bfloat16_dot() -> None:
    """The interpreter keeps bfloat16 as uint16 and multiplies the bit patterns (triton-lang/triton#11584)."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    original = builder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_imprecise: Any) -> Any:
        if a.dtype.scalar != tl.bfloat16:
            return original(self, a, b, d, input_precision, max_imprecise)
        a32, b32 = ((x.data.astype(np.uint32) << 16).view(np.float32) for x in (a, b))
        return interpreter.TensorHandle(np.matmul(a32, b32, dtype=d.data.dtype) + d.data, d.dtype.scalar)

    builder.create_dot = create_dot


# Tensors travel as numpy arrays (torch's own way needs shared memory, which small containers lack).
class _Packed:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype = tensor.dtype
        wide = tensor.double() if tensor.is_floating_point() else tensor
        self.array, self.shape, self.stride = wide.contiguous().numpy(), tensor.shape, tensor.stride()

    def unpack(self) -> torch.Tensor:
        strided = torch.empty_strided(self.shape, self.stride, dtype=self.dtype)
        return strided.copy_(torch.from_numpy(self.array))


def _packed(tree: Any) -> Any:
    return _mapped(tree, torch.Tensor, _Packed)


def _unpacked(tree: Any) -> Any:
    return _mapped(tree, _Packed, lambda packed: packed.unpack())


def _mapped(tree: Any, kind: Any, function: Any) -> Any:
    if isinstance(tree, kind):
        return function(tree)
    if isinstance(tree, tuple | list):
        return type(tree)(_mapped(leaf, kind, function) for leaf in tree)
    if isinstance(tree, dict):
        return {name: _mapped(leaf, kind, function) for name, leaf in tree.items()}
    return tree
