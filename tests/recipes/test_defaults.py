"""The defaults of every section of a recipe, as a table: an accidental change would change results."""

from typing import Any

import pytest

from vosnet.recipe import parse_recipe, resolved_values

LEAST = """\
objective: {name: dense_correspondence}
data: {sources: [{layout: generated, count: 1}]}
optimizer: {lr: 1}
schedule: {steps: 1}
training: {batch_size: 1}
validation: {root: davis, split: val, every_steps: 1}
phases: [{name: only}]
"""
DEFAULTS: dict[str, Any] = {
    "version": 2,
    "title": "",
    "seed": 0,
    "deterministic": False,
    "preset": "dul",
    "encoder": {
        "arch": "resnet18",
        "layer": "layer4",
        "output_stride": 8,
        "padding": "zeros",
        "color_space": "rgb",
        "test_layer": None,
    },
    "data": {  # Araslanov et al. 2021 on YouTube-VOS
        "clip_len": 5,
        "frame_gap": 2,
        "frame_step": 1,
        "order": "permuted",
        "distant_gap": [5, 15],
        "gap_choices": [],
        "gap_weights": [],
        "crop_size": 256,
        "short_side": [256, 320],
        "random_crop": True,
        "flip_probability": 0.5,
        "zoom": [0.5, 1.0],
        "still_motion": "jitter",
        "still_jitter": 0.15,
        "decode_short_side": None,
        "cache_mb": 0,
    },
    "optimizer": {
        "name": "adam",
        "lr": 1.0,
        "betas": [0.9, 0.999],
        "momentum": 0.9,
        "weight_decay": 0.0,
        "bias_lr_factor": 1.0,
        "decay_bias": False,
        "decay_norm": True,
    },
    "schedule": {
        "epochs": None,
        "steps": 1,
        "minutes": None,
        "decay": "constant",
        "step_epochs": None,
        "milestones": [],
        "gamma": 0.5,
        "final_factor": 0.0,
        "warmup_steps": 0,
    },
    "training": {
        "batch_size": 1,
        "accumulate": 1,
        "precision": "float32",
        "channels_last": True,
        "compile": False,
        "sync_batchnorm": False,
        "clip_grad_norm": None,
        "ema_decay": None,
        "workers": 1,
        "prefetch": 3,
        "save_minutes": 10.0,
        "log_steps": 20,
        "bad_steps_in_a_row": 10,
    },
    "validation": {
        "root": "davis",
        "split": "val",
        "sequences": [],
        "preset": None,
        "resolution": "480p",
        "every_epochs": None,
        "every_steps": 1,
        "every_minutes": None,
        "optional": True,
    },
    "phases": [
        {
            "name": "only",
            "objective": {},
            "data": {},
            "optimizer": {"lr": None},
            "schedule": {},
            "training": {"batch_size": None, "accumulate": None},
            "optimizer_state": "fresh",
        }
    ],
}
SOURCE = {
    "layout": "generated",
    "root": "",
    "split": None,
    "names": None,
    "pattern": "*",
    "index": None,
    "repeat": 1,
    "count": 1,
    "seed": 0,
    "num_frames": 48,
    "size": [240, 432],
}
# By objective: the values of the paper, or of the authors' code where they differ.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "dense_correspondence": {
        "hidden_dim": None,  # the features' channels
        "embedding_dim": 128,
        "grid_size": 8,
        "cross_view_grid_size": 4,
        "temperature": 0.05,
        "cross_view_weight": 0.1,
        "regularizing_norm": "train",
    },
    "color_reconstruction": {
        "num_references": 1,
        "memory": "shared",
        "momentum": 0.999,
        "radius": 12,
        "temperature": "sqrt_dim",
        "bottleneck": "one",
        "drop_probability": 0.5,
        "jitter_probability": 0.3,
        "loss_scale": 20.0,
        "both_directions": False,
    },
    "cycle_walk": {
        "embedding_dim": 128,
        "patch_size": 64,
        "patch_stride": 32,
        "frame_scale": [0.8, 0.95],
        "frame_ratio": [0.7, 1.3],
        "patch_scale": [0.7, 0.9],
        "temperature": 0.05,
        "edge_dropout": 0.1,
    },
    "unified": {"long_term_gap": 5, "refresh_epochs": None, "refresh_steps": None, "refresh_minutes": None},
    "plus_segmentation": {"segmentation_weight": 1.0, "refresh_epochs": None},
}
NEEDED = {
    "color_reconstruction": ["encoder.color_space=lab"],
    "unified": ["data.order=paired", "data.frame_gap=1"],
    "plus_segmentation": ["objective.base.name=dense_correspondence"],
}


def test_every_default_is_the_tables() -> None:
    values = resolved_values(parse_recipe(LEAST).recipe)
    assert values["data"].pop("sources") == [SOURCE]
    assert values.pop("objective")["name"] == "dense_correspondence"
    assert values == DEFAULTS


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_defaults_of_an_objective_are_the_papers(name: str) -> None:
    overrides = [f"objective={{name: {name}}}", "phases=[]", *NEEDED.get(name, [])]
    values = resolved_values(parse_recipe(LEAST, overrides).recipe)["objective"]
    assert {key: values[key] for key in OBJECTIVES[name]} == OBJECTIVES[name]
