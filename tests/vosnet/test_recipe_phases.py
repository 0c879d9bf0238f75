"""What a phase changes of its recipe, key by key, and what stays as it is."""

from typing import Any

import pytest

from vosnet.recipe import Recipe, RecipeError, parse_recipe, resolved_values

RECIPE = """\
seed: 3
preset: mast
deterministic: true
encoder: {arch: mast_resnet18_pooled, layer: layer2, color_space: lab}
objective: {name: color_reconstruction, radius: 3, loss_scale: 7, jitter_probability: 0.1}
data:
  sources: [{layout: generated, count: 2}]
  clip_len: 4
  crop_size: 64
  short_side: [64, 97]
  zoom: [0.7, 0.9]
optimizer: {name: sgd, lr: 0.1, momentum: 0.7, weight_decay: 0.01, bias_lr_factor: 3}
schedule: {epochs: 9, decay: step, step_epochs: 2, gamma: 0.3, warmup_steps: 5}
training: {batch_size: 8, accumulate: 2, clip_grad_norm: 2.5, ema_decay: 0.9, precision: bfloat16}
phases:
  - name: first
  - name: second
"""
# The second phase's key -> what it changes in the recipe of that phase; nothing else may change.
CHANGES: list[tuple[str, Any, dict[str, Any]]] = [
    ("optimizer.lr", "0.02", {"optimizer.lr": 0.02}),
    ("training.batch_size", "4", {"training.batch_size": 4}),
    ("training.accumulate", "4", {"training.accumulate": 4}),
    ("data.clip_len", "3", {"data.clip_len": 3}),
    ("data.zoom", "[0.5, 0.6]", {"data.zoom": [0.5, 0.6]}),
    ("data.order", "kept", {"data.order": "kept"}),
    ("objective.radius", "5", {"objective.radius": 5}),
    ("objective.num_references", "3", {"objective.num_references": 3}),
    ("schedule.epochs", "4", {"schedule.epochs": 4}),
    ("schedule.steps", "50", {"schedule.epochs": None, "schedule.steps": 50}),
    ("schedule.minutes", "2.5", {"schedule.epochs": None, "schedule.minutes": 2.5}),
    ("schedule.warmup_steps", "0", {"schedule.warmup_steps": 0}),
    ("schedule.gamma", "0.1", {"schedule.gamma": 0.1}),
    ("schedule.decay", "cosine", {
        "schedule.decay": "cosine", "schedule.step_epochs": None, "schedule.gamma": 0.5,
    }),
    ("schedule", "{decay: constant, steps: 7}", {
        "schedule.decay": "constant", "schedule.step_epochs": None, "schedule.gamma": 0.5,
        "schedule.epochs": None, "schedule.steps": 7,
    }),
]  # fmt: skip


def flat(recipe: Recipe) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for section, value in resolved_values(recipe).items():
        if isinstance(value, dict):
            found |= {f"{section}.{key}": inner for key, inner in value.items()}
        elif section != "phases":
            found[section] = value
    return found


@pytest.mark.parametrize(("key", "value", "expected"), CHANGES, ids=[f"{k}={v}" for k, v, _ in CHANGES])
def test_a_phase_changes_what_it_names_and_nothing_else(
    key: str, value: str, expected: dict[str, Any]
) -> None:
    loaded = parse_recipe(RECIPE, [f"phases.1.{key}={value}"])
    first, second = map(flat, loaded.phases)
    whole = flat(loaded.recipe)
    assert first == whole
    assert {k: v for k, v in second.items() if whole.get(k) != v} == expected


def test_an_objective_of_another_name_starts_from_its_own_defaults() -> None:
    other = ["phases.1.objective={name: dense_correspondence, temperature: 0.1}"]
    second = parse_recipe(RECIPE, other).phases[1]
    alone = parse_recipe(RECIPE, ["objective={name: dense_correspondence, temperature: 0.1}"]).recipe
    assert second.objective == alone.objective


def test_a_recipe_without_phases_is_its_only_one_and_phases_follow_in_order() -> None:
    plain = parse_recipe(RECIPE.partition("phases:")[0])
    assert plain.phases == (plain.recipe,)
    names = [phase.name for phase in parse_recipe(RECIPE).recipe.phases]
    assert names == ["first", "second"]
    with pytest.raises(RecipeError, match="phases need different names"):
        parse_recipe(RECIPE.replace("second", "first"))


def test_a_phase_holds_no_phases_and_keeps_or_renews_the_optimizers_state() -> None:
    loaded = parse_recipe(RECIPE, ["phases.1.optimizer_state=kept"])
    assert [phase.phases for phase in loaded.phases] == [(), ()]
    assert [phase.optimizer_state for phase in loaded.recipe.phases] == ["fresh", "kept"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("phases.1.optimizer.betas=[0.5, 0.9]", "betas"),
        ("phases.1.training.precision=float32", "precision"),
        ("phases.1.encoder={layer: layer3}", "encoder"),
        ("phases.1.training.accumulate=3", "multiple of accumulate"),
        ("phases.1.objective.num_references=4", "num_references: got 4, but a clip of 4 frames"),
        ("phases.1.data.crop_size=100", "short_side"),
    ],
)
def test_a_phases_mistakes_are_named(override: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=r"(phase 'second'|phases\.1).*" + expected):
        parse_recipe(RECIPE, [override])
