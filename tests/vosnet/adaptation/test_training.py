"""How the appearance model is trained, against section 3.3 and appendix B of Zhu et al. 2020."""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vosnet.adaptation.adapt import Adaptation, adapt
from vosnet.adaptation.appearance import AppearanceModel
from vosnet.adaptation.settings import AdaptationSettings, make_settings
from vosnet.transforms import IMAGENET_MEAN, IMAGENET_STD

PLAIN: dict[str, Any] = {
    "size": 32, "decoder_dims": (8, 8, 8, 8), "precision": "float32", "min_agreement": 0.0,
    "jitter_probability": 0.0, "gray_probability": 0.0, "flip_probability": 0.0, "iterations": 4,
}  # fmt: skip
MASK = np.zeros((32, 32), np.uint8)
MASK[8:24, 4:20] = 1
NOISE = np.random.default_rng(0).integers(0, 50, (32, 32, 3))
COLORS = [(NOISE + [20 * index, 0, 0]).astype(np.uint8) for index in range(10)]  # red says which frame it is


class Watch:
    """What the network saw in every iteration but the first, and its weights after every one."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.losses: list[float] = []

    def __call__(self, iteration: int, loss: float, model: AppearanceModel) -> None:
        if iteration == 1:
            model.unet.register_forward_pre_hook(self.look)
        self.losses.append(loss)
        self.weights.append(torch.cat([p.detach().flatten().clone() for p in model.unet.parameters()]))

    def look(self, unet: nn.Module, inputs: tuple[Tensor]) -> None:
        if unet.training:
            self.images.append(inputs[0].clone())

    @property
    def steps(self) -> list[float]:
        """The largest change of a weight in every iteration but the first."""
        return [float((b - a).abs().max()) for a, b in zip(self.weights, self.weights[1:])]

    @property
    def frames(self) -> list[int]:
        """Frames of `COLORS` that were drawn, in every iteration but the first."""
        seen = torch.cat(self.images)[:, 0, 16, 16] * IMAGENET_STD[0] + IMAGENET_MEAN[0]
        return [round((float(red) * 255 - NOISE[16, 16, 0]) / 20) for red in seen]


def train(
    frames: Any, given: dict[int, np.ndarray], watch: Watch, *, direction: Any = "forward", **settings: Any
) -> Adaptation:
    first = min(given) if direction == "forward" else 0
    last = max(given) if direction == "backward" else len(frames) - 1
    propagated = dict.fromkeys(range(first, last + 1), MASK)
    options = make_settings(**{**PLAIN, **settings})
    return adapt(frames, propagated, given, options, direction=direction, device="cpu", on_step=watch)


def test_defaults_are_the_papers_where_it_names_them() -> None:
    defaults = dataclasses.asdict(AdaptationSettings())
    paper = {"iterations": 200, "lr": 2e-4, "lr_step": 50, "size": 480, "zoom": (1.0, 1.0)}
    assert paper.items() <= defaults.items()
    for drawn in ("jitter_probability", "gray_probability", "flip_probability"):
        assert 0 < defaults[drawn] < 1  # "random color jitter, grayscale and horizontal flip"
    assert 0 < defaults["last_weight"] < 1  # "more weights on the early frames"
    assert 0 < defaults["lr_gamma"] < 1
    assert defaults["dice_weight"] > 0  # "cross entropy and Dice"


def test_defaults_that_the_paper_leaves_open() -> None:
    ours = {
        "lr_gamma": 0.5, "batch_size": 2, "decoder_dims": (128, 64, 48, 32), "bn_momentum": 0.1,
        "dice_weight": 1.0, "decay": "exponential", "last_weight": 0.1, "given_share": 0.2,
        "brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05, "jitter_probability": 0.8,
        "gray_probability": 0.1, "flip_probability": 0.5, "max_frames": 120, "min_agreement": 0.5,
        "predict_batch": 4, "seed": 0, "precision": "auto", "compiled": False,
    }  # fmt: skip
    defaults = dataclasses.asdict(AdaptationSettings())
    assert ours.items() <= defaults.items()
    assert set(defaults) - set(ours) == {"iterations", "lr", "lr_step", "size", "zoom"}


@pytest.mark.parametrize("lr", [1e-3, 2e-4])
def test_the_learning_rate_is_adams_and_falls_every_few_iterations(lr: float) -> None:
    watch = Watch()
    train(COLORS[:3], {0: MASK}, watch, lr=lr, lr_step=2, lr_gamma=0.01, iterations=6)
    first, *later = watch.steps  # of iterations 2 to 6; Adam's steps are about as large as its rate
    assert 0.5 * lr < first < 1.5 * lr
    for step, expected in zip(later, [0.01, 0.01, 0.0001, 0.0001]):
        assert 0.3 * expected * lr < step < 3 * expected * lr


SAMPLE: dict[str, Any] = {"iterations": 2, "batch_size": 50, "lr": 1e-6}


@pytest.mark.parametrize(
    ("direction", "given", "near"),
    [("forward", 2, range(2, 5)), ("backward", 7, range(5, 8)), ("both", 5, range(3, 8))],
)
def test_frames_near_the_annotation_are_drawn_most(direction: str, given: int, near: range) -> None:
    watch = Watch()
    train(COLORS, {given: MASK}, watch, direction=direction, last_weight=0.001, given_share=0.1, **SAMPLE)
    drawn = Counter(watch.frames)
    assert sum(drawn[i] for i in near) > 0.8 * sum(drawn.values())
    assert sum(drawn[i] for i in range(10) if abs(i - given) > 4) < 0.1 * sum(drawn.values())


@pytest.mark.parametrize(("direction", "near"), [("forward", range(1, 5)), ("backward", range(5, 9))])
def test_with_several_annotations_the_first_of_the_direction_counts(direction: str, near: range) -> None:
    watch, given = Watch(), {0: MASK, 9: MASK}
    train(COLORS, given, watch, direction=direction, last_weight=0.001, given_share=0.0, **SAMPLE)
    assert np.isin(watch.frames, near).mean() > 0.8
    assert not {0, 9} & set(watch.frames)


def test_equal_weights_draw_every_frame_and_annotated_ones_get_their_share() -> None:
    watch = Watch()
    train(COLORS, {3: MASK}, watch, direction="both", last_weight=1.0, given_share=0.5, **SAMPLE)
    drawn = Counter(watch.frames)
    assert 0.35 < drawn.pop(3) / 50 < 0.65
    assert set(drawn) == set(range(10)) - {3}
    assert max(drawn.values()) < 15


def test_the_dice_weight_and_the_batch_size_are_those_asked_for() -> None:
    losses = {}
    for weight in (0.0, 1.0, 3.0):
        watch = Watch()
        train(COLORS[:3], {0: MASK}, watch, dice_weight=weight, iterations=2, batch_size=3)
        losses[weight] = watch.losses[0]
        assert watch.images[0].shape == (3, 3, 32, 32)
    assert losses[1] - losses[0] > 0.05
    assert losses[3] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-4)


@pytest.mark.parametrize(
    "changed",
    [
        {"flip_probability": 1.0}, {"gray_probability": 1.0}, {"zoom": (0.5, 0.5)},
        {"jitter_probability": 1.0, "brightness": 0.5}, {"jitter_probability": 1.0, "hue": 0.3},
    ],
    ids=lambda changed: next(iter(changed)) + "-" + list(changed)[-1],
)  # fmt: skip
def test_each_augmentation_changes_what_the_network_sees(changed: dict[str, Any]) -> None:
    frames = [np.random.default_rng(i).integers(0, 255, (32, 32, 3), np.uint8) for i in range(2)]
    plain, other, neutral = (
        Watch(),
        Watch(),
        {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
    )
    train(frames, {0: MASK}, plain, iterations=2, given_share=1.0, **neutral)
    train(frames, {0: MASK}, other, iterations=2, **{"given_share": 1.0, **neutral, **changed})
    assert not torch.allclose(plain.images[0], other.images[0], atol=0.05)
    if "flip_probability" in changed:
        assert torch.equal(plain.images[0].flip(-1), other.images[0])
    if "gray_probability" in changed:
        raw = (
            other.images[0] * torch.tensor(IMAGENET_STD)[:, None, None]
            + torch.tensor(IMAGENET_MEAN)[:, None, None]
        )
        assert (raw.amax(1) - raw.amin(1)).max() < 1e-4


def test_the_report_holds_means_of_the_first_and_last_ten_losses() -> None:
    watch = Watch()
    report = train(COLORS[:4], {0: MASK}, watch, iterations=13).report
    assert (report.iterations, report.frames) == (13, 4)
    assert report.loss == pytest.approx((np.mean(watch.losses[:10]), np.mean(watch.losses[3:])))


def test_an_annotated_frame_teaches_the_given_pixels_not_the_propagated_ones() -> None:
    wrong = {0: np.zeros_like(MASK), 1: MASK}
    settings = make_settings(**{**PLAIN, "iterations": 1, "given_share": 1.0})
    first: list[float] = []
    for masks in (wrong, {0: MASK, 1: MASK}):
        adapt(
            COLORS[:2], masks, {0: MASK}, settings, device="cpu",
            on_step=lambda iteration, loss, model: first.append(loss),
        )  # fmt: skip
    assert first[0] == first[1]


def test_an_object_is_not_answered_before_its_annotation() -> None:
    late = np.zeros_like(MASK)
    late[26:, 22:] = 8
    for direction, given, unknown in (
        ("forward", {0: MASK, 2: late}, [0, 1]),
        ("backward", {2: MASK, 1: late}, [2]),
    ):
        watch = Watch()
        masks = dict(train(COLORS[:3], given, watch, direction=direction, iterations=1).masks(COLORS[:3]))
        for index in unknown:
            assert not (masks[index] == 8).any()
        assert (masks[max(given) if direction == "forward" else 1] == 8).any()


def test_frames_answered_together_or_one_by_one_are_the_same() -> None:
    answers = [
        dict(train(COLORS[:5], {0: MASK}, Watch(), iterations=2, predict_batch=batch).masks(COLORS[:5]))
        for batch in (1, 3)
    ]
    assert list(answers[0]) == list(answers[1]) == [0, 1, 2, 3, 4]
    assert all((answers[0][i] == answers[1][i]).mean() > 0.999 for i in range(5))
