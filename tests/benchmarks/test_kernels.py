"""Each op beside what a user would write instead, in one run: time, ratio, memory, share of the limit.

`ratio_to_dense` above 1 is faster than the dense way. `gemm_share` is the arithmetic inside the windows over
the time, as a share of the float32 matmul rate measured in the same run: an op that drops work early, or
searches in half precision, may exceed 1. `cpu_ms` is processor time, which other people's programs on the
machine disturb less than they do the clock. Every way's answer is checked.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support import rivals
from tests.support.machine import limits, median_s, peak_extra_bytes
from vosnet_kernels import knn_propagate, windowed_readout
from vosnet_kernels.backends import cpu_backend, cuda_backend
from vosnet_kernels.knn_propagate.tiled import knn_propagate_tiled
from vosnet_kernels.window import Window

pytestmark = pytest.mark.timeout(3000)  # the dense way at 720p takes minutes on a CPU

Inputs = tuple[Tensor, Tensor, Tensor]
Way = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """Sizes of one problem."""

    T: int
    C: int
    h: int
    w: int
    radius: int = 12
    M: int = 4

    def pairs(self) -> int:
        """Pairs of query cell and memory cell inside the windows."""
        reach = [
            sum(min(n - 1, i + self.radius) - max(0, i - self.radius) + 1 for i in range(n))
            for n in (self.h, self.w)
        ]
        return self.T * reach[0] * reach[1]

    def inputs(self, device: torch.device) -> Inputs:
        """A smooth random scene that drifts, with noise; normalized features, soft masks."""
        generator = torch.Generator().manual_seed(1)
        coarse = (self.h // 4 + 1, self.w // 4 + 1)
        scene = torch.nn.functional.interpolate(
            torch.randn(1, self.C, *coarse, generator=generator), (self.h, self.w), mode="bicubic"
        )[0]

        def frame(t: int) -> Tensor:
            noise = 0.35 * torch.randn(scene.shape, generator=generator)
            return torch.nn.functional.normalize(scene.roll((t // 3, t // 2), (1, 2)) + noise, dim=0)

        query = frame(0)[None]
        memory = torch.stack([frame(t + 1) for t in range(self.T)])[None]
        value = torch.rand(1, self.T, self.M, self.h, self.w, generator=generator)
        return query.to(device), memory.to(device), value.to(device)


KNN_CASES = {
    "480p-C256": Case(20, 256, 60, 107),
    "480p-C512": Case(20, 512, 60, 107),
    "720p-C256": Case(20, 256, 90, 160),
    # unfold copies every window: 625 times the features, 82 GB at 480p; this size needs 0.6 GB a frame
    "reduced": Case(2, 64, 30, 54),
}
READOUT_CASES = {
    "train-T1": Case(1, 256, 96, 96, M=3),
    "train-T5": Case(5, 256, 96, 96, M=3),
    # unfold copies every window: 5.9 GB per frame at 96 x 96, and its gradient again
    "reduced": Case(1, 64, 32, 32, M=3),
}
SETTINGS: dict[str, Any] = {"k": 10, "temperature": 0.05}


def knn_tiled(*tensors: Tensor, radius: int, **options: Any) -> Tensor:
    return knn_propagate_tiled(*tensors, **options, window=Window(radius))


KNN_WAYS: dict[str, Way] = {
    "dense": rivals.knn_dense,
    "dense-key-axis": rivals.knn_dense_key_axis,
    "op": knn_propagate,
    "tiled-torch": knn_tiled,
    "unfold": rivals.knn_unfold,
}


def flex_tiled(*tensors: Tensor, **options: Any) -> Tensor:
    return rivals.readout_flex(*tensors, **options, tiled=True)


READOUT_WAYS: dict[str, Way] = {
    "dense": rivals.readout_dense,
    "op": windowed_readout,
    "unfold": rivals.readout_unfold,
    "flex": rivals.readout_flex,
    "flex-tiled": flex_tiled,
}


@pytest.mark.parametrize("way", KNN_WAYS)
@pytest.mark.parametrize("case", KNN_CASES)
def test_knn_propagate(
    benchmark: Any, plain_runs: dict[str, Any], case: str, way: str, device: torch.device
) -> None:
    if way == "unfold" and case != "reduced":
        pytest.skip("unfold copies 625 times the features: it is measured at the reduced size")
    if way == "dense-key-axis" and not case.startswith("480p-C256"):
        pytest.skip("the order of the axes is compared at one size")
    sizes = KNN_CASES[case]
    tensors = sizes.inputs(device)

    def call() -> Tensor:
        with torch.no_grad():
            return finished(KNN_WAYS[way](*tensors, **SETTINGS, radius=sizes.radius), device)

    key = f"knn-{case}-{device.type}"
    flops = 2 * sizes.C * sizes.pairs()
    measure(
        benchmark,
        plain_runs,
        key,
        way,
        call,
        device,
        flops,
        slow=way in {"dense", "dense-key-axis", "unfold"},
    )


@pytest.mark.parametrize("direction", ["forward", "forward-backward"])
@pytest.mark.parametrize("way", READOUT_WAYS)
@pytest.mark.parametrize("case", READOUT_CASES)
def test_windowed_readout(
    benchmark: Any, plain_runs: dict[str, Any], case: str, way: str, direction: str, device: torch.device
) -> None:
    if way == "unfold" and case != "reduced":
        pytest.skip("unfold copies 625 times the features: it is measured at the reduced size")
    if way.startswith("flex"):
        if device.type == "cpu" and direction != "forward":
            pytest.skip("FlexAttention has no backward on the CPU")
        if device.type == "cpu" and (case, way) != ("train-T1", "flex"):
            pytest.skip("FlexAttention on the CPU is measured once: each shape costs a long compile")
        if way == "flex-tiled" and case == "reduced":
            pytest.skip("blocks of 128 tokens say little about a frame of 1024")
    sizes = READOUT_CASES[case]
    query, memory, value = sizes.inputs(device)
    if direction == "forward-backward":
        query.requires_grad_()
        memory.requires_grad_()

    def call() -> Tensor:
        out = READOUT_WAYS[way](query, memory, value, radius=sizes.radius, temperature=0.05)
        if direction == "forward-backward":
            query.grad = memory.grad = None
            out.sum().backward()
        return finished(out.detach(), device)

    key = f"readout-{case}-{direction}-{device.type}"
    products = {"forward": 1, "forward-backward": 4}[direction]  # scores; again, and into both gradients
    flops = 2 * (sizes.C * products + sizes.M) * sizes.pairs()
    measure(benchmark, plain_runs, key, way, call, device, flops, slow=way in {"dense", "unfold"})


@pytest.mark.parametrize("case", ["train-T1"])
def test_natten_has_another_border_rule(benchmark: Any, case: str, device: torch.device) -> None:
    """NATTEN shifts windows inward at the border and reads one frame: timed for its speed alone."""
    if importlib.util.find_spec("natten") is None:
        pytest.skip("NATTEN is not installed")
    if device.type == "cpu":
        pytest.skip("NATTEN has no CPU kernels of its own")
    from natten.functional import na2d

    sizes = READOUT_CASES[case]
    query, memory, _ = sizes.inputs(device)
    q, k = (
        x.movedim(1, -1)[:, :, :, None].contiguous() for x in (query, memory[:, 0])
    )  # [B, h, w, heads, C]
    window = 2 * sizes.radius + 1

    def call() -> Tensor:
        return finished(na2d(q, k, k, kernel_size=window, scale=20.0), device)

    benchmark.pedantic(call, rounds=5, warmup_rounds=1)


def finished(out: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return out


def measure(
    benchmark: Any,
    plain_runs: dict[str, Any],
    key: str,
    way: str,
    call: Callable[[], Tensor],
    device: torch.device,
    flops: int,
    *,
    slow: bool,
) -> None:
    """Check, then time, then say how it compares."""
    limit = limits(device)
    once = slow and device.type == "cpu"  # too slow to run twice: its answer is checked after it was timed

    def check(readout: Tensor) -> None:
        plain = plain_runs.setdefault(key, {"readout": readout}) if way == "dense" else plain_runs[key]
        assert_same_readout(readout, plain["readout"])

    if not once:
        check(call())  # also loads, compiles and tunes what the timed calls then find ready
    readouts: list[Tensor] = []
    cpu_s: list[float] = []

    def timed() -> Tensor:
        before = time.process_time()
        readouts.append(call())
        cpu_s.append(time.process_time() - before)
        return readouts[-1]

    rounds = 1 if once else 5
    extra = peak_extra_bytes(lambda: benchmark.pedantic(timed, rounds=rounds, iterations=1), device)
    check(readouts[-1])
    median, busy = benchmark.stats.stats.median, statistics.median(cpu_s)
    if way == "dense":
        plain_runs[key] |= {"median": median, "extra": extra, "busy": busy}
    plain = plain_runs[key]
    backend = cpu_backend if device.type == "cpu" else lambda op: cuda_backend(op, device)
    benchmark.extra_info.update(
        ratio_to_dense=round(plain["median"] / median, 2),
        cpu_ms=round(1e3 * busy, 1),
        cpu_ratio_to_dense=round(plain["busy"] / busy, 2),
        peak_extra_mib=None if extra is None else round(extra / 2**20, 1),
        memory_share_of_dense=None if not extra or not plain["extra"] else round(extra / plain["extra"], 4),
        gemm_share=round(flops / median / limit.gemm_flops, 4),
        gemm_gflops=round(limit.gemm_flops / 1e9, 1),
        half_gemm_gflops=round(limit.half_gemm_flops / 1e9, 1),
        copy_gbytes=round(limit.copy_bytes / 1e9, 1),
        backend=backend("knn_propagate" if key.startswith("knn") else "windowed_readout").reason,
    )
    if device.type == "cuda":
        benchmark.extra_info["cuda_event_ms"] = 1e3 * median_s(call, device, rounds=20)


def assert_same_readout(got: Tensor, plain: Tensor) -> None:
    """Equal but for a few cells whose last neighbors are as good as equal in float32."""
    differs = ((got - plain).abs() > 1e-3).any(1)
    assert differs.float().mean() < 1e-3, f"{int(differs.sum())} of {differs.numel()} cells differ"
