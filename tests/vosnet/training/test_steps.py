"""Whole runs against the same steps written down in plain torch: weights, rates and terms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.support.probe import PROBE, Probe, ProbeSettings, probe
from tests.support.toy_training import toy_recipe, train_toy
from vosnet.models import build_encoder
from vosnet.propagation import Propagator
from vosnet.recipe import Recipe, open_stream
from vosnet.synthetic import make_clip, write_davis
from vosnet.training.journal import read_rows
from vosnet.transforms import assemble_clip

__all__ = ["probe"]


class Plain:
    """The steps of a recipe with the probe, without anything of the engine.

    Args:
        recipe: of the run, or of its first phase.
        batch_norm: as the probe's.
    """

    def __init__(self, recipe: Recipe, *, batch_norm: bool = True) -> None:
        torch.manual_seed(recipe.seed)
        encoder = build_encoder(seed=recipe.seed, **recipe.encoder.model_dump(exclude={"test_layer"}))
        self.model = Probe(encoder, ProbeSettings(batch_norm=batch_norm))
        self.average: dict[str, Tensor] = {}

    def optimizer(self, recipe: Recipe) -> torch.optim.Optimizer:
        """One group per parameter: biases have a rate of their own and no decay."""
        settings, groups = recipe.optimizer, []
        for name, parameter in self.model.named_parameters():
            is_bias = name.endswith("bias")
            decay = 0.0 if is_bias else settings.weight_decay
            factor = settings.bias_lr_factor if is_bias else 1.0
            groups.append({"params": [parameter], "weight_decay": decay, "factor": factor})
        if settings.name == "sgd":
            return torch.optim.SGD(groups, lr=1.0, momentum=settings.momentum)
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.name]
        return kind(groups, lr=1.0, betas=settings.betas)

    def run(
        self,
        recipe: Recipe,
        rates: Sequence[float],
        *,
        optimizer: torch.optim.Optimizer | None = None,
        skipped: Sequence[int] = (),
        parts: int = 1,
        clip_norm: float | None = None,
        decay: float | None = None,
    ) -> list[float]:
        """Take a step per rate; returns each step's gradient norm before clipping."""
        stream, norms = open_stream(recipe), []
        optimizer = optimizer or self.optimizer(recipe)
        for step, rate in enumerate(rates):
            if step + 1 in skipped:
                continue
            clip = assemble_clip(stream.batch(step), torch.device("cpu"), recipe.encoder.color_space)
            size = len(clip) // parts
            optimizer.zero_grad()
            for i in range(parts):
                (self.model(clip.part(i * size, (i + 1) * size)).total / parts).backward()
            norms.append(float(nn.utils.clip_grad_norm_(self.model.parameters(), clip_norm or 1e9)))
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            optimizer.step()
            if decay is not None:
                self._average(decay)
        return norms

    def _average(self, decay: float) -> None:
        for name, value in self.model.encoder.state_dict().items():
            before = self.average.get(name, value.clone())
            self.average[name] = decay * before + (1 - decay) * value


def saved(out: Path) -> dict[str, Tensor]:
    return load_file(out / "checkpoints/last/model.safetensors")


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        if "num_batches" not in name:
            torch.testing.assert_close(tensor, expected[name], rtol=2e-4, atol=2e-6, msg=name)


OPTIMIZERS = [
    pytest.param("{name: sgd, lr: 3e-2, momentum: 0.6, weight_decay: 0.1, bias_lr_factor: 2}", id="sgd"),
    pytest.param(
        "{name: adam, lr: 1e-3, betas: [0.6, 0.7], weight_decay: 0.1, bias_lr_factor: 3}", id="adam"
    ),
    pytest.param(
        "{name: adamw, lr: 1e-3, betas: [0.5, 0.8], weight_decay: 9, bias_lr_factor: 2}", id="adamw"
    ),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_takes_the_optimizers_steps_with_all_of_its_settings(
    probe: type[Probe], tmp_path: Path, optimizer: str
) -> None:
    options = [*PROBE, f"optimizer={optimizer}", "schedule={steps: 3, warmup_steps: 2}"]
    train_toy(tmp_path / "run", *options)
    recipe = toy_recipe(*options).recipe
    lr, plain = recipe.optimizer.lr, Plain(recipe)
    norms = plain.run(recipe, [lr / 2, lr, lr])
    assert_same(saved(tmp_path / "run"), plain.model.encoder.state_dict())
    rows = read_rows(tmp_path / "run")
    assert [row["lr"] for row in rows] == pytest.approx([lr / 2, lr, lr])
    assert [row["grad_norm"] for row in rows] == pytest.approx(norms, rel=1e-3)


@pytest.mark.parametrize("clip_norm", [None, 0.05], ids=["free", "clipped"])
@pytest.mark.parametrize("batch_norm", [True, False], ids=["batch norm", "none"])
def test_micro_batches_are_averaged_and_the_gradient_is_clipped_once_a_step(
    probe: type[Probe], tmp_path: Path, clip_norm: float | None, batch_norm: bool
) -> None:
    lr = 5e-2 if batch_norm or clip_norm else 1e-3  # no faster: rounding would grow from step to step
    options = [
        *PROBE, f"objective.batch_norm={str(batch_norm).lower()}", "schedule={steps: 3}",
        f"optimizer={{name: sgd, lr: {lr}}}", "training.batch_size=4", "training.accumulate=2",
        *([] if clip_norm is None else [f"training.clip_grad_norm={clip_norm}"]),
    ]  # fmt: skip
    train_toy(tmp_path / "run", *options)
    recipe = toy_recipe(*options).recipe
    plain = Plain(recipe, batch_norm=batch_norm)
    # without batch norm the big batch in one go is the definition
    norms = plain.run(recipe, [lr] * 3, parts=2 if batch_norm else 1, clip_norm=clip_norm)
    assert clip_norm is None or min(norms) > 2 * clip_norm, "the limit never bites"
    assert_same(saved(tmp_path / "run"), plain.model.encoder.state_dict())
    rows = read_rows(tmp_path / "run")
    assert [row["grad_norm"] for row in rows] == pytest.approx(norms, rel=1e-3)  # as it was before clipping


def test_a_gradient_below_the_limit_is_not_stretched_to_it(probe: type[Probe], tmp_path: Path) -> None:
    options = [*PROBE, "optimizer={name: sgd, lr: 1e-2}", "schedule={steps: 2}"]
    train_toy(tmp_path / "free", *options)
    train_toy(tmp_path / "limited", *options, "training.clip_grad_norm=1e6")
    assert_same(saved(tmp_path / "limited"), saved(tmp_path / "free"))


def test_the_averaged_encoder_is_what_is_saved_and_follows_with_the_recipes_decay(
    probe: type[Probe], tmp_path: Path
) -> None:
    options = [*PROBE, "optimizer={name: sgd, lr: 5e-2}", "training.ema_decay=0.8"]
    train_toy(tmp_path / "run", *options)
    recipe = toy_recipe(*options).recipe
    plain = Plain(recipe)
    plain.run(recipe, [5e-2] * 4, decay=0.8)
    assert_same(saved(tmp_path / "run"), plain.average)
    trained = torch.load(tmp_path / "run/checkpoints/last/state.pt", weights_only=True)["trainer"]
    encoder = {
        name.removeprefix("encoder."): value
        for name, value in trained["objective"].items()
        if name.startswith("encoder.")
    }
    assert_same(encoder, plain.model.encoder.state_dict())  # the average is not what is trained on


def test_a_skipped_step_leaves_weights_statistics_moments_and_the_average_as_they_were(
    probe: type[Probe], tmp_path: Path
) -> None:
    """The loss alone is not finite: the forward pass has moved the running statistics all the same."""
    probe.bad = {2}
    options = [*PROBE, "optimizer={name: sgd, lr: 5e-2}", "training.ema_decay=0.8"]
    train_toy(tmp_path / "run", *options)
    recipe = toy_recipe(*options).recipe
    plain = Plain(recipe)
    plain.run(recipe, [5e-2] * 4, skipped=[2], decay=0.8)
    assert_same(saved(tmp_path / "run"), plain.average)
    rows = read_rows(tmp_path / "run")
    assert [row["skipped_steps"] for row in rows] == [0, 1, 1, 1]
    assert [row["loss"] is None for row in rows] == [False, True, False, False]


def test_a_bad_micro_batch_spoils_the_whole_step(probe: type[Probe], tmp_path: Path) -> None:
    probe.bad = {4}  # the second part of step 2
    options = [*PROBE, "training.batch_size=4", "training.accumulate=2", "optimizer={name: sgd, lr: 5e-2}"]
    train_toy(tmp_path / "run", *options)
    recipe = toy_recipe(*options).recipe
    plain = Plain(recipe)
    plain.run(recipe, [5e-2] * 4, skipped=[2], parts=2)
    assert_same(saved(tmp_path / "run"), plain.model.encoder.state_dict())


PHASES = [
    (
        "phases=[{name: first}, {name: second, schedule: {steps: 3, decay: cosine, final_factor: 0.1}, "
        "optimizer: {lr: 4e-2}, training: {batch_size: 4, accumulate: 2}%s}]"
    ),
    "optimizer={name: sgd, lr: 2e-2}",
    "schedule={steps: 2, decay: constant}",
]


@pytest.mark.parametrize("kept", [False, True], ids=["fresh optimizer", "kept optimizer"])
def test_the_second_phase_goes_on_from_the_first_with_its_own_rates_and_batches(
    probe: type[Probe], tmp_path: Path, kept: bool
) -> None:
    phases = PHASES[0] % (", optimizer_state: kept" if kept else "")
    options = [*PROBE, *PHASES[1:], phases, "training.ema_decay=0.5"]
    train_toy(tmp_path / "run", *options)
    first, second = toy_recipe(*options).phases
    plain = Plain(first)
    optimizer = plain.optimizer(first)
    plain.run(first, [2e-2] * 2, optimizer=optimizer, decay=0.5)
    # cos(pi s / 3) = 1, 1/2, -1/2 for s = 0, 1, 2: the share is of the phase, not of the run
    rates = [4e-2 * (0.1 + 0.9 * (1 + c) / 2) for c in (1, 0.5, -0.5)]
    plain.run(second, rates, optimizer=optimizer if kept else None, parts=2, decay=0.5)
    assert_same(saved(tmp_path / "run"), plain.average)
    rows = read_rows(tmp_path / "run")
    assert [row["lr"] for row in rows] == pytest.approx([2e-2, 2e-2, *rates])


def test_rows_hold_the_mean_of_every_step_since_the_row_before(probe: type[Probe], tmp_path: Path) -> None:
    options = [*PROBE, "schedule={steps: 6}"]
    probe.bad = {2}
    train_toy(tmp_path / "each", *options)
    probe.calls = 0
    train_toy(tmp_path / "third", *options, "training.log_steps=3")
    each, third = read_rows(tmp_path / "each"), read_rows(tmp_path / "third")
    assert [row["step"] for row in third] == [3, 6]
    for name in ("loss", "mean", "grad_norm"):
        steps = [row.get(name) for row in each]
        assert third[0][name] == pytest.approx((steps[0] + steps[2]) / 2)  # the skipped step does not count
        assert third[1][name] == pytest.approx(sum(steps[3:]) / 3)


def test_what_is_validated_is_the_averaged_encoder_that_was_just_saved(
    probe: type[Probe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip(0, num_frames=3, size=(48, 64), num_objects=1)
    write_davis(tmp_path / "davis", {"a": clip})
    read: list[dict[str, Tensor]] = []
    original = Propagator.from_checkpoint.__func__  # type: ignore[attr-defined]

    def from_checkpoint(cls: type[Propagator], path: Path, *args: object, **kwargs: object) -> Propagator:
        read.append(load_file(path if Path(path).is_file() else Path(path) / "model.safetensors"))
        propagator: Propagator = original(cls, path, *args, **kwargs)
        return propagator

    monkeypatch.setattr(Propagator, "from_checkpoint", classmethod(from_checkpoint))
    section = f"validation={{root: {tmp_path / 'davis'}, sequences: [a], every_steps: 2}}"
    options = [*PROBE, section, "optimizer={name: sgd, lr: 5e-2}", "training.ema_decay=0.8"]
    train_toy(tmp_path / "run", *options)
    recipe = toy_recipe(*options).recipe
    for steps, weights in zip((2, 4), read, strict=True):
        plain = Plain(recipe)
        plain.run(recipe, [5e-2] * steps, decay=0.8)
        assert_same(weights, plain.average)
