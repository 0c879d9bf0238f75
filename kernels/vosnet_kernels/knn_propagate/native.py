"""`knn_propagate` in C++ on the CPU: build it, check it once, call it."""

import ctypes
import logging
import threading
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from vosnet_kernels.knn_propagate.reference import knn_propagate_reference
from vosnet_kernels.native.build import BuildError, build
from vosnet_kernels.native.capability import PATHS, InstructionPath, can_run, can_use_native
from vosnet_kernels.window import Window
from vosnet_kernels.workspace import workspace_bytes

logger = logging.getLogger("vosnet_kernels")

SOURCE = "knn_propagate"
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
MAX_CELLS = 2**31 - 1  # the kernel counts memory cells in 32 bits
ROUND_BYTES = 8 * 2**20  # memory frames packed at once: enough to keep threads busy, small enough for a cache
SELF_CHECK_TOLERANCE = 1e-4  # float32 sums of a few normalized features, weights at temperature 0.1
DONE, UNUSABLE_FEATURES = 0, 1


class Problem(ctypes.Structure):
    """One call, as `struct Problem` of src/problem.h lays it out."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "memory", "value", "out")),
        ("query_strides", ctypes.c_int64 * 2),
        ("memory_strides", ctypes.c_int64 * 3),
        ("value_strides", ctypes.c_int64 * 4),
        ("counters", ctypes.c_int64 * 3),
        *((name, ctypes.c_int32) for name in ("T", "C", "h", "w", "M", "k")),
        *((name, ctypes.c_int32) for name in ("radius", "disc", "global_frames")),
        *((name, ctypes.c_int32) for name in ("dtype", "num_threads", "prune")),
        ("temperature", ctypes.c_float),
    )


@dataclass(frozen=True)
class Counters:
    """Counts of pairs (query cell, memory cell) in a search.

    Attributes:
        pairs: considered, in whole 4 x 4 patches.
        completed: dot products over all channels; the others were dropped early by a bound.
        rescored: summed again in float32 because their half-precision sum could not rule them out.
    """

    pairs: int
    completed: int
    rescored: int


@dataclass(frozen=True)
class Kernel:
    """The loaded library of one instruction path."""

    path: InstructionPath
    library: ctypes.CDLL

    def search(
        self,
        query: Tensor,
        memory: Tensor,
        value: Tensor,
        *,
        k: int,
        temperature: float,
        window: Window,
        num_threads: int | None = None,
        prune: bool = True,
    ) -> tuple[Tensor, Counters] | None:
        """`knn_propagate_reference` and what it took; None if features are not finite or exceed 1e15.

        Arguments are taken as valid. `prune=False` sums every dot product to its end.
        """
        B, T, C, h, w = memory.shape
        M = value.shape[2]
        query, memory = _readable(query), _readable(memory)
        labels = value.float()
        readout = torch.empty((B, M, h, w), dtype=torch.float32)
        totals = [0, 0, 0]
        for b in range(B if readout.numel() else 0):
            problem = Problem(
                query[b].data_ptr(),
                memory[b].data_ptr(),
                labels[b].data_ptr(),
                readout[b].data_ptr(),
                query.stride()[1:3],
                memory.stride()[1:4],
                labels.stride()[1:],
                (0, 0, 0),
                *(T, C, h, w, M, k),
                *(min(window.radius, h + w), int(window.strict), window.global_frames),
                *(DTYPES[query.dtype], num_threads or torch.get_num_threads(), int(prune)),
                temperature,
            )
            status = self._call(problem)
            if status == UNUSABLE_FEATURES:
                return None
            if status != DONE:
                raise MemoryError(f"knn_propagate: no memory for features {tuple(memory.shape)} at k={k}")
            totals = [total + count for total, count in zip(totals, problem.counters, strict=True)]
        return readout.to(value.dtype), Counters(*totals)

    def _call(self, problem: Problem) -> int:
        limit = ctypes.c_int64(min(ROUND_BYTES, workspace_bytes()))
        return int(self.library.vosnet_knn_propagate(ctypes.byref(problem), limit))  # without the GIL


def knn_propagate_native(
    query: Tensor, memory: Tensor, value: Tensor, *, k: int, temperature: float, window: Window
) -> Tensor | None:
    """`knn_propagate_reference` by the native kernel, or None (with a debug log line) if it cannot serve."""
    _, T, _, h, w = memory.shape
    obstacle, kernel = None, native_kernel()
    if T * h * w > MAX_CELLS:
        obstacle = f"{T * h * w} memory cells exceed the {MAX_CELLS} that the native kernel can count"
    if obstacle is None and isinstance(kernel, Kernel):
        found = kernel.search(query, memory, value, k=k, temperature=temperature, window=window)
        if found is not None:
            return found[0]
        obstacle = "features are not finite or their norm exceeds 1e15"
    logger.debug("knn_propagate: native kernel not used for this call: %s", obstacle or kernel)
    return None


_lock = threading.Lock()
_chosen: list[Kernel | str] = []


def native_kernel() -> Kernel | str:
    """The fastest kernel that can be built here, or why there is none. Decided once per process."""
    with _lock:
        if not _chosen:
            _chosen.append(_choose())
        return _chosen[0]


def _choose() -> Kernel | str:
    obstacle = can_use_native()
    if obstacle is not None:
        return obstacle
    reasons = []
    for path in PATHS:
        if can_run(path) is not None:
            continue
        try:
            return load(path)
        except BuildError as error:
            reasons.append(f"{path.name}: {error}")
            logger.debug("knn_propagate: no native kernel for %s", reasons[-1])
    return reasons[-1]


def load(path: InstructionPath) -> Kernel:
    """The kernel for `path`, built if need be and checked on a small problem.

    Raises:
        BuildError: if it cannot be built, loaded or used, or gives a wrong answer.
    """
    library_path = build(SOURCE, path)
    try:
        library = ctypes.CDLL(str(library_path))
    except OSError as error:
        raise BuildError(f"{library_path} cannot be loaded: {error}") from error
    if library.vosnet_prepare() != 0:
        raise BuildError("the operating system denies this process the tile registers")
    kernel = Kernel(path, library)
    _self_check(kernel)
    return kernel


def _self_check(kernel: Kernel) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 40, 6, 9, generator=generator) / 6
    memory = torch.randn(1, 3, 40, 6, 9, generator=generator) / 6
    value = torch.rand(1, 3, 2, 6, 9, generator=generator)
    window = Window(4, "disc", global_frames=1)
    with torch.no_grad():
        expected = knn_propagate_reference(query, memory, value, k=5, temperature=0.1, **asdict(window))
    found = kernel.search(query, memory, value, k=5, temperature=0.1, window=window)
    if found is None or not bool(((found[0] - expected).abs() < SELF_CHECK_TOLERANCE).all()):
        raise BuildError("the compiled kernel gives a wrong answer on its self-check and is not used")


def _readable(features: Tensor) -> Tensor:
    """In a dtype the kernel reads, with neighboring columns side by side."""
    if features.dtype not in DTYPES:
        features = features.float()
    return features if features.stride(-1) == 1 else features.contiguous()
