"""Recipes of several phases: what a phase may say, what goes over, and resuming in either, bit for bit."""

from pathlib import Path
from unittest import mock

import pytest
import torch

from tests.support.probe import stop_after
from vosnet.recipe import LoadedRecipe, RecipeError, load_recipe, parse_recipe
from vosnet.training.journal import read_rows
from vosnet.training.train import RunOptions, RunResult, train

torch.set_num_threads(1)

RECIPE = """\
seed: 2
encoder: {arch: mast_resnet18_pooled, layer: layer2, color_space: lab}
objective:
  name: color_reconstruction
  radius: 2
data:
  sources: [{layout: generated, count: 4, num_frames: 6, size: [48, 64]}]
  clip_len: 2
  frame_gap: 1
  order: kept
  crop_size: 32
  short_side: [32, 49]
optimizer: {lr: 1e-3}
schedule: {steps: 3, decay: cosine, warmup_steps: 2}
training: {batch_size: 2, workers: 0, log_steps: 1, save_minutes: 60}
phases:
  - name: pairwise
  - name: memory
    objective:
      num_references: 3
      memory: momentum
    data:
      clip_len: 4
    optimizer: {lr: 1e-4}
    schedule: {steps: 2, decay: constant}
    training: {batch_size: 4}
"""


def recipe(*overrides: str) -> LoadedRecipe:
    return parse_recipe(RECIPE, overrides, "phases.yaml")


def run(out: Path, *overrides: str, stop: int = 0, resume: str = "never") -> RunResult:
    options = RunOptions(out, resume=resume, device="cpu", progress="quiet")
    with mock.patch("vosnet.training.train.draw_curves"), pytest.MonkeyPatch.context() as patch:
        if stop:
            stop_after(patch, stop)
        return train(recipe(*overrides), options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phases") / "whole"
    assert (run(out).step, len(read_rows(out))) == (5, 5)
    return out


def state(out: Path) -> dict[str, torch.Tensor]:
    stored = torch.load(out / "checkpoints/last/state.pt", weights_only=True)["trainer"]
    moments = {f"{i} {k}": v for i, s in stored["optimizer"]["state"].items() for k, v in s.items()}
    return {**stored["objective"], **moments}


def test_rows_name_the_phase_and_each_has_its_own_schedule(whole: Path) -> None:
    rows = read_rows(whole)
    assert [row["phase"] for row in rows] == ["pairwise"] * 3 + ["memory"] * 2
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    rates = [row["lr"] for row in rows]
    assert rates[0] == pytest.approx(0.5e-3)
    assert rates[3:] == [pytest.approx(0.5e-4), pytest.approx(1e-4)]  # warm-up begins again


@pytest.mark.parametrize("stop", [2, 3, 4], ids=["first phase", "between", "second phase"])
def test_a_run_resumed_in_either_phase_equals_the_uninterrupted_one_bit_for_bit(
    whole: Path, tmp_path: Path, stop: int
) -> None:
    out = tmp_path / "run"
    assert not run(out, stop=stop).completed
    assert run(out, resume="auto").completed
    assert [row["loss"] for row in read_rows(out)] == [row["loss"] for row in read_rows(whole)]
    ours, expected = state(out), state(whole)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.items())


def test_the_memory_starts_as_a_copy_of_what_the_first_phase_learned(tmp_path: Path) -> None:
    run(tmp_path / "run", "phases.1.schedule.steps=1", "phases.1.objective.momentum=0.0", "optimizer.lr=1e-2")
    first = state(tmp_path / "run")
    weights = [name for name in first if name.startswith("encoder.") and name.endswith("conv1.weight")]
    assert weights
    for name in weights:  # momentum 0 follows at once: equal again after the step
        assert torch.equal(first[name], first["memory_encoder.network" + name.removeprefix("encoder")])


def test_a_memory_that_hardly_moves_is_still_what_the_first_phase_learned(tmp_path: Path) -> None:
    slow = ("phases.1.schedule.steps=1", "phases.1.objective.momentum=0.999999999", "optimizer.lr=1e-2")
    run(tmp_path / "run", *slow, stop=3)
    learned = state(tmp_path / "run")
    run(tmp_path / "run", *slow, resume="auto")
    then = state(tmp_path / "run")
    weights = [name for name in learned if name.startswith("encoder.") and name.endswith("conv1.weight")]
    assert weights
    for name in weights:
        held = then["memory_encoder.network" + name.removeprefix("encoder")]
        torch.testing.assert_close(held, learned[name], rtol=0, atol=1e-6)


def test_the_optimizers_state_goes_over_when_asked(whole: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", "phases.1.optimizer_state=kept")
    for out, count in ((whole, 2), (tmp_path / "run", 5)):
        assert {int(value) for name, value in state(out).items() if name.endswith(" step")} == {count}


def test_a_phases_mistakes_are_found_before_training_with_their_lines() -> None:
    with pytest.raises(RecipeError) as caught:
        recipe("phases.1.data.clip_len=3")
    assert "phase 'memory': objective.num_references: got 3, but a clip of 3 frames" in str(caught.value)
    text = RECIPE.replace("num_references: 3", "num_reference: 3").replace("{lr: 1e-4}", "{lrr: 1e-4}")
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, (), "p.yaml")
    assert "p.yaml:24: unknown key 'lrr'" in str(caught.value)
    text = RECIPE.replace("num_references: 3", "num_reference: 3")
    with pytest.raises(RecipeError, match=r"p.yaml:20: phase 'memory': unknown key 'num_reference'"):
        parse_recipe(text, (), "p.yaml")
    with pytest.raises(RecipeError, match="different names"):
        recipe("phases.1.name=pairwise")


def test_phases_are_in_the_resolved_recipe_and_their_length_may_change(whole: Path, tmp_path: Path) -> None:
    assert load_recipe(whole / "recipe.resolved.yaml").phases == recipe().phases
    out = tmp_path / "run"
    run(out, stop=4)
    assert run(out, "phases.1.schedule.steps=3", resume="auto").step == 6


def test_a_phases_decay_and_length_replace_the_recipes() -> None:
    first, second = recipe("phases.1.schedule={minutes: 2}").phases
    assert (first.schedule.steps, first.schedule.minutes) == (3, None)
    assert (second.schedule.steps, second.schedule.minutes, second.schedule.decay) == (None, 2, "cosine")
    assert (first.training.batch_size, second.training.batch_size) == (2, 4)
