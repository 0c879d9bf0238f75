"""Every recipe of the project can be read, has its header, and trains one step at toy size."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from vosnet.commands.recipes import recipe_folder
from vosnet.recipe import load_recipe, resolved_values
from vosnet.training.journal import read_rows
from vosnet.training.train import RunOptions, train

RECIPES = sorted(recipe_folder().glob("*.yaml"))
TOY = [
    "data.sources=[{layout: generated, count: 2, num_frames: 16, size: [48, 64]}]",
    "data.crop_size=32",
    "data.short_side=[32, 49]",
    "data.cache_mb=10",
    "encoder.layer=layer2",
    "encoder.test_layer=null",
    "training.batch_size=2",
    "training.workers=0",
    "training.log_steps=1",
    "validation=null",
]
TOY_OBJECTIVE = {
    "dense_correspondence": ["objective.grid_size=2", "objective.cross_view_grid_size=2"],
    "cycle_walk": ["objective.patch_size=16", "objective.patch_stride=8"],
    "color_reconstruction": ["objective.radius=2"],
    "plus_segmentation": [
        "objective.mask_embedding.width=4",
        "objective.mask_embedding.mask_dim=4",
        "objective.mask_embedding.hidden_dim=4",
        "objective.clustering={num_clusters: 3, short_side: 48}",
    ],
    "unified": [
        "objective.grid_size=2",
        "objective.clustering={short_side: 48}",
        "objective.mask_embedding={width: 8, depth: 1, mask_dim: 8, hidden_dim: 8}",
    ],
}


def toy_objective(section: dict[str, Any]) -> list[str]:
    own = TOY_OBJECTIVE[section["name"]]
    inner = toy_objective(section["base"]) if "base" in section else []
    return [*own, *(text.replace("objective.", "objective.base.", 1) for text in inner)]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_the_promised_recipes_exist() -> None:
    names = {path.stem for path in RECIPES}
    assert {
        "dul_ytvos",
        "dul_oxuva",
        "dul_trackingnet",
        "dul_kinetics",
        "dul_clips",
        "dul_cpu",
        "crw_kinetics",
        "crw_cpu",
        "mast_ytvos",
        "momentum_memory_ytvos",
        "momentum_memory_100_videos",
        "momentum_memory_100_images",
        "mast_cpu",
        "mast_plus_segmentation",
        "crw_plus_segmentation",
        "mast_cpu_images",
        "momentum_memory_cpu_images",
        "momentum_memory_cpu",
        "unified_ytvos_r18",
        "unified_ytvos_r50",
        "unified_cpu",
        "demo",
    } <= names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_what_it_is_how_to_run_it_and_what_was_measured(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"python tools/train.py recipes/{path.name}" in line for line in header)
    assert any(line.startswith("# Published:") for line in header)
    assert any(line.startswith("# Measured here:") for line in header)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_one_step_at_toy_size(path: Path, tmp_path: Path) -> None:
    original = load_recipe(path).recipe
    schedule = original.schedule.model_dump(
        mode="json", exclude={"epochs", "steps", "minutes"}, exclude_none=True
    )
    overrides = [*TOY, *toy_objective(original.objective), f"schedule={ {**schedule, 'steps': 1} }"]
    phases = original.phases
    for i, phase in enumerate(phases):
        own = {key: value for key, value in phase.schedule.items() if key == "decay"}
        overrides += [f"phases.{i}.schedule={ {**own, 'steps': 1} }", f"phases.{i}.training.batch_size=2"]
    loaded = load_recipe(path, overrides)
    assert loaded.recipe.optimizer == original.optimizer
    with mock.patch("vosnet.training.train.draw_curves"):
        result = train(loaded, RunOptions(tmp_path / "run", device="cpu", progress="quiet"))
    assert (result.step, result.completed) == (max(1, len(phases)), True)
    rows = read_rows(tmp_path / "run")
    assert [row.get("phase") for row in rows] == ([phase.name for phase in phases] or [None])
    assert all(row["loss"] > 0 and row["skipped_steps"] == 0 for row in rows)


@pytest.mark.parametrize("name", ["unified_ytvos_r18", "unified_ytvos_r50", "unified_cpu"])
def test_the_unified_recipes_hold_what_the_paper_states(name: str) -> None:
    recipe = load_recipe(recipe_folder() / f"{name}.yaml").recipe
    assert recipe.objective["clustering"]["num_clusters"] == 5
    assert recipe.objective["long_term_gap"] == recipe.data["distant_gap"][0] == 5
    assert (recipe.data["order"], recipe.data["frame_gap"]) == ("paired", 1)
    assert recipe.preset == "unified"
    if name != "unified_cpu":
        assert recipe.objective["refresh_epochs"] == 10
        assert name.endswith({"resnet18": "r18", "resnet50": "r50"}[recipe.encoder.arch])


# Appendix of Araslanov et al. 2021 and the configuration files of their code.
CONSTANTS = {
    "dul_ytvos": ("adam", 1e-4, 500, 100, 0.5, 2, "permuted", (256, 320), True, 10),
    "dul_oxuva": ("adam", 1e-4, 500, 100, 0.5, 10, "permuted", (256, 320), True, 10),
    "dul_trackingnet": ("sgd", 1e-3, 250, 20, 0.9, 10, "permuted", (256, 257), False, 2),
    "dul_kinetics": ("sgd", 1e-3, 80, 20, 0.5, 10, "kept", (256, 257), False, 2),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_the_papers_recipes_hold_its_constants(name: str) -> None:
    recipe = load_recipe(recipe_folder() / f"{name}.yaml").recipe
    kind, lr, epochs, step, gamma, gap, order, short_side, random_crop, every = CONSTANTS[name]
    assert (recipe.optimizer.name, recipe.optimizer.lr) == (kind, lr)
    assert (recipe.schedule.epochs, recipe.schedule.step_epochs, recipe.schedule.gamma) == (
        epochs,
        step,
        gamma,
    )
    assert (recipe.data["frame_gap"], recipe.data["order"], recipe.data["random_crop"]) == (
        gap,
        order,
        random_crop,
    )
    assert tuple(recipe.data["short_side"]) == short_side
    assert (recipe.data["clip_len"], recipe.data["crop_size"], recipe.data["zoom"]) == (5, 256, (0.5, 1.0))
    assert recipe.validation is not None
    assert recipe.validation.every_epochs == every
    assert (recipe.training.batch_size, recipe.seed, recipe.training.precision) == (16, 32, "float32")
    assert (recipe.encoder.layer, recipe.encoder.output_stride, recipe.encoder.padding) == (
        "layer4",
        8,
        "zeros",
    )
    assert recipe.objective == {
        "name": "dense_correspondence",
        "hidden_dim": 512,
        "embedding_dim": 128,
        "grid_size": 8,
        "cross_view_grid_size": 4,
        "temperature": 0.05,
        "cross_view_weight": 0.1,
        "regularizing_norm": "train",
        "chunk_size": recipe.objective["chunk_size"],
    }
    optimizer = recipe.optimizer
    assert (optimizer.weight_decay, optimizer.bias_lr_factor) == (5e-4, 2)
    assert (optimizer.decay_bias, optimizer.decay_norm) == (False, True)
    assert optimizer.momentum == 0.9 if kind == "sgd" else optimizer.betas == (0.5, 0.999)


def test_crws_recipe_holds_the_constants_of_the_authors_launch_line() -> None:
    recipe = load_recipe(recipe_folder() / "crw_kinetics.yaml").recipe
    assert (recipe.encoder.layer, recipe.encoder.test_layer, recipe.preset) == ("layer4", "layer3", "crw")
    assert (recipe.encoder.padding, recipe.encoder.output_stride) == ("reflect", 8)
    assert {k: v for k, v in recipe.objective.items() if k not in {"pixel_mean", "pixel_std"}} == {
        "name": "cycle_walk",
        "embedding_dim": 128,
        "patch_size": 64,
        "patch_stride": 32,
        "frame_scale": (0.8, 0.95),
        "frame_ratio": (0.7, 1.3),
        "patch_scale": (0.7, 0.9),
        "patch_ratio": (0.75, pytest.approx(4 / 3, abs=1e-4)),
        "temperature": 0.05,
        "edge_dropout": 0.1,
    }
    assert recipe.objective["pixel_mean"] == (0.4914, 0.4822, 0.4465)
    assert recipe.objective["pixel_std"] == (0.2023, 0.1994, 0.2010)
    assert (recipe.data["clip_len"], recipe.data["crop_size"], recipe.data["order"]) == (4, 256, "kept")
    assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.optimizer.weight_decay) == ("adam", 1e-4, 0)
    assert (recipe.schedule.epochs, recipe.schedule.milestones, recipe.schedule.gamma) == (
        25,
        (20, 30, 40),
        0.3,
    )
    assert (recipe.training.batch_size, recipe.data["sources"][0]["repeat"]) == (20, 5)


def test_masts_recipe_holds_the_constants_of_its_code() -> None:
    recipe = load_recipe(recipe_folder() / "mast_ytvos.yaml").recipe
    assert (recipe.encoder.arch, recipe.encoder.color_space) == ("mast_resnet18", "lab")
    objective = recipe.objective
    assert (objective["radius"], objective["outside"], objective["bottleneck"]) == (6, "zero", "one")
    assert (objective["value_sampling"], objective["loss_scale"]) == ("slice", 20)
    assert (recipe.data["gap_choices"], recipe.data["gap_weights"]) == ((2, 5, 8), (0.4, 0.4, 0.2))
    assert (recipe.data["crop_size"], recipe.data["clip_len"]) == (256, 2)
    assert (recipe.optimizer.lr, recipe.optimizer.betas, recipe.training.batch_size) == (
        1e-3,
        (0.9, 0.999),
        12,
    )
    samples = [epoch * (3471 // 12) * 12 for epoch in recipe.schedule.milestones]
    assert samples == pytest.approx([400_000, 600_000, 800_000, 1_000_000], rel=0.01)


@pytest.mark.parametrize("data", ["ytvos", "100_videos", "100_images"])
def test_the_memory_trackers_recipes_hold_its_constants(data: str) -> None:
    loaded = load_recipe(recipe_folder() / f"momentum_memory_{data}.yaml")
    pairs, memory = loaded.phases
    for phase, references, encoder, steps, lr in (
        (pairs, 1, "shared", 120_000, 1e-3),
        (memory, 5, "momentum", 10_000, 1e-4),
    ):
        objective = phase.objective
        assert (objective["num_references"], objective["memory"]) == (references, encoder)
        assert (phase.schedule.steps, phase.optimizer.lr) == (steps, lr)
        assert (objective["momentum"], objective["first_frame"], objective["radius"]) == (0.999, True, 12)
        assert (objective["jitter_probability"], phase.data["crop_size"]) == (0.3, 384)
        assert phase.training.batch_size == 48
    assert loaded.recipe.preset == "memory_tracker"
    assert pairs.data.get("still_motion") == ("homography" if data == "100_images" else "jitter")


# Section 4.1 of the papers and the authors' code; what no paper states is left out.
STATED: dict[str, dict[str, Any]] = {
    "mast_ytvos": {
        "encoder.layer": "layer4",
        "encoder.output_stride": 4,
        "objective.num_references": 1,
        "objective.memory": "shared",
        "objective.temperature": "sqrt_dim",
        "objective.jitter_probability": 0.0,
        "objective.drop_probability": 0.5,
        "data.short_side": [256, 257],
        "data.order": "kept",
        "data.frame_step": 1,
        "optimizer.name": "adam",
        "optimizer.weight_decay": 0.0,
        "optimizer.bias_lr_factor": 1.0,
        "schedule.decay": "milestones",
        "schedule.gamma": 0.5,
        "training.precision": "float32",
        "preset": "mast",
    },
    "momentum_memory_ytvos": {
        "encoder.arch": "mast_resnet18",
        "encoder.color_space": "lab",
        "encoder.output_stride": 4,
        "objective.outside": "exclude",
        "objective.drop_probability": 0.5,
        "data.gap_choices": [2, 5, 8],
        "data.gap_weights": [0.4, 0.4, 0.2],
        "data.short_side": [384, 513],
        "data.order": "kept",
        "optimizer.name": "adam",
        "optimizer.betas": [0.9, 0.999],
        "optimizer.weight_decay": 0.0,
        "schedule.decay": "constant",
        "training.precision": "float32",
    },
    "unified_ytvos_r18": {
        "encoder.layer": "layer4",
        "encoder.output_stride": 8,
        "objective.segmentation_weight": 1.0,
        "objective.long_term_weight": 1.0,
        "objective.short_term_weight": 0.1,
        "objective.temperature": 0.05,
        "data.clip_len": 4,
        "data.distant_gap": [5, 15],
        "data.crop_size": 256,
        "optimizer.lr": 1e-4,
        "schedule.epochs": 300,
        "training.batch_size": 16,
    },
    "mast_plus_segmentation": {
        "objective.segmentation_weight": 1.0,
        "objective.refresh_epochs": 10,
        "encoder.color_space": "lab",
        "data.gap_choices": [2, 5, 8],
        "data.gap_weights": [0.4, 0.4, 0.2],
        "data.flip_probability": 0.0,
        "preset": "mast_decoded",
    },
    "crw_kinetics": {
        "encoder.arch": "resnet18",
        "encoder.color_space": "rgb",
        "optimizer.bias_lr_factor": 1.0,
        "schedule.decay": "milestones",
        "training.precision": "float32",
    },
}


@pytest.mark.parametrize("name", STATED)
def test_a_recipe_holds_every_value_that_its_paper_states(name: str) -> None:
    values = resolved_values(load_recipe(recipe_folder() / f"{name}.yaml").recipe)
    found = {}
    for key in STATED[name]:
        section, _, inner = key.partition(".")
        found[key] = values[section][inner] if inner else values[section]
    assert found == STATED[name]
