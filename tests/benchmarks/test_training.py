"""Images per second of a training step, waiting for data, and memory of DUL's loss at the paper's size.

OMP_NUM_THREADS=1 python -m pytest tests/benchmarks/test_training.py --benchmark-only
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support import rivals
from tests.support.dul import materialized_losses, peak_bytes, picked_losses
from vosnet.commands.recipes import recipe_folder
from vosnet.models import build_encoder
from vosnet.objectives import build_objective, color_reconstruction
from vosnet.objectives.anchors import grid_index
from vosnet.recipe import load_recipe
from vosnet.training.journal import read_rows
from vosnet.training.train import RunOptions, train
from vosnet.transforms import Clip, random_similarity

# CPU: the setting of recipes/dul_cpu.yaml; GPU: the paper's.
CPU_SIZE = {"B": 8, "T": 4, "side": 128, "layer": "layer3"}
GPU_SIZE = {"B": 16, "T": 5, "side": 256, "layer": "layer4"}


def training_step(way: str, device: str) -> tuple[Callable[[], None], int]:
    """One step without data loading, and the images it sees."""
    size: dict[str, Any] = CPU_SIZE if device == "cpu" else GPU_SIZE
    B, T, side = size["B"], size["T"], size["side"]
    torch.manual_seed(0)
    frames = torch.randn(B, T, 3, side, side, device=device)
    theta = torch.stack([random_similarity(torch.Generator().manual_seed(i)) for i in range(B)]).to(device)
    draws = torch.rand(B, 4, device=device)
    clip = Clip(frames, frames.flip(-1), theta, draws, torch.arange(B, device=device))
    encoder = build_encoder("resnet18", layer=size["layer"], output_stride=8)
    objective = build_objective("dense_correspondence", encoder).to(device).train()
    if way != "eager-float32":
        objective = objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if way.startswith("compiled"):
        objective.compile_graphs()
    optimizer = torch.optim.Adam(objective.parameters(), 1e-3, fused=True)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled="bfloat16" in way):
            total = objective(clip).total
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step, B * T


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    "way", ["eager-float32", "eager-bfloat16-channels_last", "compiled-bfloat16-channels_last"]
)
def test_a_training_step(benchmark: Any, way: str, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    step, images = training_step(way, device)
    benchmark.pedantic(step, rounds=5, warmup_rounds=2)
    benchmark.extra_info["images_per_s"] = images / benchmark.stats.stats.median


FAST, PLAIN = "compiled-bfloat16-channels_last", "eager-float32"


@pytest.mark.timeout(1800)  # compiling on a busy machine
def test_the_fast_step_against_the_plain_one_in_one_run(benchmark: Any) -> None:
    """Both steps take turns, so that whatever else the machine does falls on both; compiling comes before.

    Processor seconds are counted: with one thread they are what an idle core would take.
    """
    steps = {way: training_step(way, "cpu") for way in (FAST, PLAIN)}
    seconds: dict[str, list[float]] = {way: [] for way in steps}
    for step, _ in steps.values():
        for _ in range(3):
            step()

    def turn() -> None:
        for way, (step, _) in steps.items():
            began = time.process_time()
            step()
            seconds[way].append(time.process_time() - began)

    benchmark.pedantic(turn, rounds=9)
    median = {way: statistics.median(values) for way, values in seconds.items()}
    images = steps[FAST][1]
    benchmark.extra_info["images_per_processor_s"] = {way: images / value for way, value in median.items()}
    benchmark.extra_info["plain / fast"] = median[PLAIN] / median[FAST]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_share_of_a_run_that_waits_for_data(benchmark: Any, workers: int, tmp_path: Path) -> None:
    """recipes/dul_cpu.yaml on generated clips, two passes: the first loads them, the second is measured."""
    overrides = [
        "data.sources=[{layout: generated, count: 16, num_frames: 48, size: [256, 456]}]",
        f"training.workers={workers}", "schedule={steps: 16}", "training.log_steps=8",
    ]  # fmt: skip
    loaded = load_recipe(recipe_folder() / "dul_cpu.yaml", overrides)
    options = RunOptions(tmp_path / "run", device="cpu", progress="quiet")
    benchmark.pedantic(train, args=(loaded, options), rounds=1)
    last = [row for row in read_rows(tmp_path / "run") if row["split"] == "train"][-1]
    benchmark.extra_info |= {name: last[name] for name in ("data_wait_share", "images_per_s")}


def dense_readout(
    query: Tensor, memory: Tensor, value: Tensor, *, radius: int, temperature: float, outside: str
) -> Tensor:
    """The masked softmax over whole frames that people write, with the op's signature."""
    assert outside == "exclude"
    return rivals.readout_dense(query, memory, value, radius=radius, temperature=temperature)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("readout", ["windowed", "dense"])
@pytest.mark.parametrize(
    ("side", "B", "K", "radius"), [(128, 8, 1, 6), (192, 2, 5, 12)], ids=["pairs", "memory"]
)
def test_a_step_of_color_reconstruction(
    benchmark: Any,
    monkeypatch: pytest.MonkeyPatch,
    side: int,
    B: int,
    K: int,
    radius: int,
    readout: str,
    device: str,
) -> None:
    """The step of recipes/mast_cpu.yaml, and one of a memory at 192 pixels, without data loading."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.manual_seed(0)
    frames = torch.randn(B, K + 1, 3, side, side, device=device) * 0.3
    clip = Clip(
        frames,
        frames,
        torch.eye(2, 3, device=device).expand(B, 2, 3),
        torch.rand(B, 4, device=device),
        torch.arange(B, device=device),
    )
    encoder = build_encoder("mast_resnet18_pooled", layer="layer2", color_space="lab")
    objective = build_objective(
        "color_reconstruction",
        encoder,
        num_references=K,
        memory="shared" if K == 1 else "momentum",
        radius=radius,
        outside="exclude",
    )
    objective = objective.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    if readout == "dense":
        monkeypatch.setattr(color_reconstruction, "windowed_readout", dense_readout)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, 1e-3, fused=True)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            total = objective(clip).total
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        objective.after_step()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(step, rounds=3, warmup_rounds=1)
    benchmark.extra_info["images_per_s"] = B * (K + 1) / benchmark.stats.stats.median


@pytest.mark.parametrize("way", ["picked", "materialized"])
def test_the_loss_at_the_papers_size(benchmark: Any, way: str) -> None:
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(16, 5, 128, 32, 32, generator=generator) for _ in range(2)]
    main, view = (F.normalize(view, dim=2).requires_grad_() for view in views)
    theta = torch.stack([random_similarity(generator) for _ in range(16)])
    draws = torch.rand(16, 4, generator=generator)
    anchor, cross = grid_index(draws[:, :2], 32, 32, 8), grid_index(draws[:, 2:], 32, 32, 4)
    losses = picked_losses if way == "picked" else materialized_losses
    arguments = (main, view, theta, anchor, cross)
    peak = benchmark.pedantic(peak_bytes, args=(losses, *arguments), kwargs={"temperature": 0.05}, rounds=1)
    benchmark.extra_info["peak_megabytes"] = peak / 1e6
