"""The two equivariance terms and the objective they make with the segmentation term."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.support.dul import ToyEncoder
from tests.support.masked_clips import masked_clip
from tests.support.toy_training import losses, train_toy
from tests.support.two_ranks import on_two_ranks
from vosnet.errors import DivergedError, UsageError
from vosnet.objectives import OBJECTIVES, Unified, build_objective
from vosnet.objectives.anchors import grid_index
from vosnet.objectives.pairs import (
    feature_variance,
    frame_variance,
    long_term_assignments,
    long_term_pairs,
    moved_features,
    pair_loss,
    short_term_pairs,
)
from vosnet.training.journal import read_rows
from vosnet.transforms import Clip, Cut, invert_similarity, similarity_theta, warp_images

TOY = [
    "objective={name: unified, grid_size: 2, segmentation_weight: 0}",
    "data.sources=[{layout: generated, count: 4, num_frames: 8, size: [48, 64]}]",
    "data.clip_len=3",
    "data.order=paired",
    "schedule={steps: 3}",
]
CLUSTERS = "clustering: {short_side: 48, position_weight: 0.5}"
MASKS = "mask_embedding: {width: 8, depth: 1, mask_dim: 8, hidden_dim: 8}"
WITH_MASKS = [
    TOY[0].replace("segmentation_weight: 0", f"{CLUSTERS}, {MASKS}, refresh_steps: 2"),
    *TOY[1:],
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def thetas() -> Tensor:
    scale = torch.tensor([0.5, 0.75, 1.0])
    x, y = torch.tensor([0.25, -0.125, 0.0]), torch.tensor([-0.25, 0.125, 0.0])
    return similarity_theta(scale, x, y, torch.tensor([True, False, True]))


def toy_clip(B: int = 2, T: int = 4, side: int = 64, frame_ids: list[int] | None = None) -> Clip:
    frames = torch.randn(B, T, 3, side, side)
    theta = thetas()[:B]
    ids = torch.tensor([frame_ids or [3, 4, 8, 12][:T]] * B)
    cut = Cut(ids, torch.zeros(B, T, 3), torch.zeros(B), torch.zeros(B, 2))
    return Clip(frames, warp_images(frames, theta), theta, torch.rand(B, 4), torch.arange(B), (), cut)


def toy_unified(**kwargs: Any) -> Unified:
    encoder = ToyEncoder()
    encoder.output_stride = 8  # type: ignore[assignment]
    return unified(encoder, **({"segmentation_weight": 0.0, "grid_size": 4} | kwargs))


def unified(encoder: nn.Module, **keys: Any) -> Unified:
    built = build_objective("unified", encoder, **keys)
    assert isinstance(built, Unified)
    return built


def test_a_transform_and_its_inverse_are_the_identity_inside_the_crop() -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 24), torch.linspace(-1, 1, 24), indexing="ij")
    ramp = torch.stack([x, y, 2 * x - 3 * y])[None].expand(3, -1, -1, -1)  # bilinear sampling keeps ramps
    theta = thetas()
    moved = moved_features(ramp, theta)
    assert not torch.allclose(moved, ramp, atol=0.1)
    back = moved_features(moved, invert_similarity(theta))
    grid = F.affine_grid(invert_similarity(theta), [3, 1, 24, 24], align_corners=False)
    inside = (grid.abs() <= 1 - 1 / 24).all(-1)[:, None].expand_as(ramp)
    assert 0.1 < inside[0].float().mean() < 0.3  # a quarter of the frame was visible
    assert inside[2].all()
    torch.testing.assert_close(back[inside], ramp[inside], rtol=0, atol=1e-4)


def test_features_that_are_equivariant_are_their_own_partners_at_short_term() -> None:
    features = torch.randn(3, 8, 16, 16)
    theta = similarity_theta(
        torch.full((3,), 0.5), torch.full((3,), 0.5), torch.full((3,), -0.5), torch.ones(3) > 0
    )
    index = torch.arange(0, 256, 17).expand(3, -1)
    rows, targets = short_term_pairs(
        moved_features(F.normalize(features, dim=1), theta), features, theta, index
    )
    torch.testing.assert_close(rows, targets)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(48))
    loss = pair_loss(rows, targets, first=0, loss="cosine", temperature=1.0)
    assert float(loss) == pytest.approx(0, abs=1e-6)
    loss = pair_loss(rows, targets.flip(0), first=0, loss="cosine", temperature=1.0)
    assert float(loss) > 0.5


def test_the_long_term_alignment_is_the_written_out_one() -> None:
    query, moved, distant = (torch.randn(2, 6, 5, 5, dtype=torch.float64).float() for _ in range(3))
    theta, index = thetas()[:2], torch.tensor([[0, 7, 24], [3, 12, 20]])
    rows, aligned = long_term_pairs(query, moved, distant, theta, index, temperature=0.2)
    for b in range(2):
        q, k = (F.normalize(x[b].double().flatten(1), dim=0) for x in (query, moved))
        value = moved_features(F.normalize(distant.double(), dim=1), theta.double())[b].flatten(1)
        affinity = torch.softmax(k.t() @ q / 0.2, dim=0)  # [moved cells, query cells]
        torch.testing.assert_close(affinity.sum(0), torch.ones(25, dtype=torch.float64))
        expected = F.normalize((value @ affinity)[:, index[b]], dim=0).t().float()
        torch.testing.assert_close(aligned[3 * b : 3 * b + 3], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rows[3 * b : 3 * b + 3], q[:, index[b]].t().float())


def test_the_hard_alignment_is_the_written_out_one() -> None:
    query, moved, distant = torch.randn(3, 2, 6, 5, 5)
    theta, index = thetas()[:2], torch.tensor([[0, 7, 24, 11], [3, 3, 12, 20]])
    rows, anchors, label = long_term_assignments(query, moved, distant, theta, index)
    assert not label.is_floating_point()
    value = moved_features(F.normalize(distant.double(), dim=1), theta.double())
    for b in range(2):
        q, k = (F.normalize(x[b].double().flatten(1), dim=0) for x in (query, moved))
        for cell in range(25):
            alike = [float(k[:, cell] @ q[:, n]) for n in index[b]]
            assert int(label[25 * b + cell]) == 4 * b + alike.index(max(alike))
            expected = F.normalize(value[b].flatten(1)[:, cell], dim=0).float()
            torch.testing.assert_close(rows[25 * b + cell], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(anchors[4 * b : 4 * b + 4], q[:, index[b]].t().float())


def test_the_hard_alignment_is_a_cross_entropy_over_all_anchors_in_the_term() -> None:
    objective, clip = toy_unified(short_term_weight=0.0, grid_size=2), toy_clip(T=3)
    features = objective.embed(clip)
    loss = objective.equivariance.long_term(features, clip)
    index = grid_index(clip.draws[:, 2:4], *features.main[0].shape[-2:], 2)
    rows, anchors, label = long_term_assignments(
        features.compared[0], features.view[2], features.compared[2], clip.theta, index
    )
    torch.testing.assert_close(
        loss, F.cross_entropy(rows @ anchors.t() / objective.settings.temperature, label)
    )
    assert not features.view[2].requires_grad
    (gradient,) = torch.autograd.grad(loss, features.compared[0])
    assert float(gradient.abs().sum()) > 0  # anchors learn too


def test_the_contrast_is_a_cross_entropy_over_the_targets_of_all_ranks() -> None:
    rows, targets = (F.normalize(torch.randn(n, 5), dim=1) for n in (4, 12))
    loss = pair_loss(rows, targets, first=4, loss="infonce", temperature=0.1)
    logits = rows @ targets.t() / 0.1
    expected = torch.stack([logits[i].logsumexp(0) - logits[i, 4 + i] for i in range(4)]).mean()
    torch.testing.assert_close(loss, expected)


def lattice_cells(features: Tensor, draws: Tensor, grid_size: int) -> Tensor:
    """Unit vectors of the cells on each clip's lattice, [B * N, C], all clips together."""
    h, w = features.shape[-2:]
    rows = []
    for feature, (y, x) in zip(features, draws.tolist(), strict=True):
        step_y, step_x = h // grid_size, w // grid_size
        rows += [
            feature[:, step_y * i + int(step_y * y), step_x * j + int(step_x * x)]
            for i in range(grid_size)
            for j in range(grid_size)
        ]
    return F.normalize(torch.stack(rows), dim=1)


def written_out_short_term(encoder: nn.Module, clip: Clip, loss: str, temperature: float) -> Tensor:
    """E(Phi(I_0)) ~ Phi(E(I_1)) on a lattice of 2 x 2 cells."""
    rows = lattice_cells(encoder(clip.view[:, 0]), clip.draws[:, :2], 2)
    following = F.normalize(encoder(clip.frames[:, 1]), dim=1)
    targets = lattice_cells(warp_images(following[:, None], clip.theta)[:, 0], clip.draws[:, :2], 2)
    if loss == "cosine":
        return 1 - (rows * targets).sum(1).mean()
    return F.cross_entropy(rows @ targets.t() / temperature, torch.arange(len(rows)))


def written_out_long_term(encoder: nn.Module, clip: Clip, loss: str, temperature: float) -> Tensor:
    """E(I_0) ~ A^T Phi(E(I_t)), A a softmax of cosines divided by 0.3, lattice of 4 x 4, mean over t >= 2."""
    query = F.normalize(encoder(clip.frames[:, 0]), dim=1)
    rows, values = lattice_cells(query, clip.draws[:, 2:4], 4), []
    for t in range(2, clip.frames.shape[1]):
        moved = F.normalize(encoder(clip.view[:, t]), dim=1).flatten(2)
        distant = F.normalize(encoder(clip.frames[:, t]), dim=1)
        value = warp_images(distant[:, None], clip.theta)[:, 0].flatten(2)
        affinity = torch.softmax(moved.transpose(1, 2) @ query.flatten(2) / 0.3, dim=1)
        targets = lattice_cells((value @ affinity).view_as(query), clip.draws[:, 2:4], 4)
        if loss == "cosine":
            values.append(1 - (rows * targets).sum(1).mean())
        else:
            values.append(F.cross_entropy(rows @ targets.t() / temperature, torch.arange(len(rows))))
    return torch.stack(values).mean()


@pytest.mark.parametrize(("loss", "temperature"), [("infonce", 0.2), ("cosine", 0.2)])
def test_both_terms_are_the_written_out_ones_of_all_clips_and_distant_frames(
    loss: Any, temperature: float
) -> None:
    objective = toy_unified(
        loss=loss,
        temperature=temperature,
        alignment="soft",
        affinity_temperature=0.3,
        grid_size=4,
        short_term_grid_size=2,
        short_term_weight=0.3,
        long_term_weight=0.7,
    ).eval()
    clip = toy_clip(B=3)
    output = objective(clip)
    short = written_out_short_term(objective.encoder, clip, loss, temperature)
    long = written_out_long_term(objective.encoder, clip, loss, temperature)
    torch.testing.assert_close(output.terms["short_term"], short)
    torch.testing.assert_close(output.terms["long_term"], long)
    torch.testing.assert_close(output.total, 0.3 * short + 0.7 * long)


@pytest.mark.parametrize("loss", ["infonce", "cosine"])
def test_under_hard_alignment_every_moved_cell_learns_its_own_clips_anchor_among_all(loss: Any) -> None:
    objective = toy_unified(loss=loss, temperature=0.2, grid_size=2, short_term_weight=0.0).eval()
    clip = toy_clip(B=3)
    encoder, values = objective.encoder, []
    anchors = lattice_cells(encoder(clip.frames[:, 0]), clip.draws[:, 2:4], 2)
    for t in (2, 3):
        moved = F.normalize(encoder(clip.view[:, t]), dim=1).flatten(2)  # [B, C, cells]
        distant = F.normalize(encoder(clip.frames[:, t]), dim=1)
        value = F.normalize(warp_images(distant[:, None], clip.theta)[:, 0], dim=1).flatten(2)
        for b in range(3):
            label = 4 * b + (anchors[4 * b : 4 * b + 4] @ moved[b]).argmax(0)
            if loss == "cosine":
                values.append(1 - (value[b] * anchors[label].t()).sum(0).mean())
            else:
                values.append(F.cross_entropy(value[b].t() @ anchors.t() / 0.2, label))
    torch.testing.assert_close(objective(clip).total, torch.stack(values).mean())


SMALL: dict[str, Any] = {
    "grid_size": 2,
    "short_term_grid_size": 2,
    "clustering": {"num_clusters": 3, "short_side": None},
    "mask_embedding": {"width": 4, "depth": 1, "mask_dim": 4, "hidden_dim": 4},
}


def image_gradients(tmp_path: Path, weight: str, **options: Any) -> tuple[Tensor, Tensor]:
    """Of one term alone, beside the segmentation term: to frames and to transformed frames, each [T].

    The difference of totals in which only that term's weight differs.
    """
    gradients = []
    for value in (1.0, 2.0):
        torch.manual_seed(0)
        objective = unified_with_masks(
            **{**SMALL, "segmentation_weight": 1.0, weight: value, **options}
        ).eval()
        clip = masked_clip(objective, tmp_path / str(value))
        images = clip.frames.requires_grad_(), clip.view.requires_grad_()
        gradients.append(torch.autograd.grad(objective(clip).total, images))
    frames, views = (two - one for one, two in zip(*gradients, strict=True))
    sizes = [x.abs().amax((0, 2, 3, 4)) for x in (frames, views)]
    return tuple(torch.where(size < 1e-6, 0.0, size) for size in sizes)  # type: ignore[return-value]


def unified_with_masks(**options: Any) -> Unified:
    return unified(ToyEncoder(), **options)


@pytest.mark.parametrize(
    ("term", "options", "frames", "views"),
    [
        ("short_term_weight", {}, [0, 0, 0, 0], [1, 0, 0, 0]),
        ("short_term_weight", {"stop_gradient": "none"}, [0, 1, 0, 0], [1, 0, 0, 0]),
        ("long_term_weight", {"alignment": "soft"}, [1, 0, 0, 0], [0, 0, 1, 1]),
        ("long_term_weight", {"alignment": "soft", "stop_gradient": "none"}, [1, 0, 1, 1], [0, 0, 1, 1]),
        ("long_term_weight", {"alignment": "hard"}, [1, 0, 1, 1], [0, 0, 0, 0]),
    ],
    ids=["short", "short-both-sides", "soft", "soft-both-sides", "hard"],
)
def test_gradients_reach_the_sides_that_learn_and_no_constant_target(
    tmp_path: Path, term: str, options: dict[str, Any], frames: list[int], views: list[int]
) -> None:
    got = image_gradients(tmp_path, term, **options)
    assert [(side > 0).int().tolist() for side in got] == [frames, views]


def test_each_term_enters_the_total_with_its_own_weight(tmp_path: Path) -> None:
    weights = {"short_term_weight": 0.2, "long_term_weight": 0.3, "segmentation_weight": 0.7}
    objective = unified_with_masks(**SMALL, **weights)
    output = objective(masked_clip(objective, tmp_path))
    terms = output.terms
    expected = 0.2 * terms["short_term"] + 0.3 * terms["long_term"] + 0.7 * terms["segmentation"]
    torch.testing.assert_close(output.total.detach(), expected)
    assert not any(term.requires_grad for term in terms.values())


def test_the_segmentation_term_reads_the_features_themselves_not_their_projection(tmp_path: Path) -> None:
    losses = []
    for dim in (None, 6):
        torch.manual_seed(0)
        encoder = ToyEncoder()
        objective = build_objective("unified", encoder, **SMALL, embedding_dim=dim).eval()
        kept = objective.kept_segmenter()
        assert kept is not None
        for parameter in kept.parameters():
            torch.nn.init.constant_(parameter, 0.1)
        losses.append(objective(masked_clip(objective, tmp_path / str(dim))).terms["segmentation"])
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("trains", [True, False])
def test_the_segmentation_term_trains_the_encoder_only_when_asked(tmp_path: Path, trains: bool) -> None:
    options = {**SMALL, "mask_embedding": {**SMALL["mask_embedding"], "encoder_gradient": trains}}
    sizes = []
    for weight in (1.0, 2.0):
        torch.manual_seed(0)
        objective = unified_with_masks(**options, segmentation_weight=weight).eval()
        objective(masked_clip(objective, tmp_path / str(weight))).total.backward()
        sizes.append(objective.encoder.conv.weight.grad)
    assert torch.allclose(*sizes, rtol=0, atol=1e-6) is not trains


TWO_RANKS = """
from tests.support.dul import ToyEncoder
from tests.vosnet.objectives.test_unified import RANK_CASES, rank_case, rank_clip

clip, answer = rank_clip().part(2 * rank, 2 * rank + 2), []
for options in RANK_CASES:
    objective = rank_case(options)
    output = objective(clip)
    (output.total / 2).backward()  # DDP averages gradients over ranks
    answer.append([output.total.detach(), objective.encoder.conv.weight.grad])
"""
RANK_CASES: list[tuple[str, dict[str, Any]]] = [
    ("unified", {"alignment": "hard", "short_term_weight": 0.0}),
    ("unified", {"alignment": "soft", "stop_gradient": "none", "short_term_weight": 0.0}),
    ("unified", {"long_term_weight": 0.0, "stop_gradient": "none"}),
    ("unified", {"loss": "cosine", "embedding_dim": 6}),
    ("dense_correspondence", {"cross_view_grid_size": 2, "cross_view_weight": 0.7}),
]


def rank_case(case: tuple[str, dict[str, Any]]) -> Any:
    torch.manual_seed(0)
    name, options = case
    own = {"segmentation_weight": 0.0} if name == "unified" else {}
    return build_objective(name, ToyEncoder(), **{"grid_size": 4, **own, **options}).eval()


def rank_clip() -> Clip:
    generator = torch.Generator().manual_seed(2)
    frames = torch.randn(4, 4, 3, 64, 64, generator=generator)
    theta = torch.cat([thetas(), thetas()[:1]])
    cut = Cut(torch.tensor([[3, 4, 8, 12]] * 4), torch.zeros(4, 4, 3), torch.zeros(4), torch.zeros(4, 2))
    draws = torch.rand(4, 4, generator=generator)
    return Clip(frames, warp_images(frames, theta), theta, draws, torch.arange(4), (), cut)


def test_two_ranks_with_half_the_batch_give_the_total_and_gradient_of_one(tmp_path: Path) -> None:
    halves = on_two_ranks(TWO_RANKS, tmp_path)
    clip = rank_clip()
    for case, first, second in zip(RANK_CASES, *halves, strict=True):
        objective = rank_case(case)
        total = objective(clip).total
        total.backward()
        torch.testing.assert_close((first[0] + second[0]) / 2, total.detach(), msg=str(case))
        gradient = objective.encoder.conv.weight.grad
        torch.testing.assert_close(first[1] + second[1], gradient, rtol=1e-4, atol=1e-6, msg=str(case))


@pytest.mark.parametrize("stop_gradient", ["target", "none"])
def test_a_projection_learns_with_the_encoder(stop_gradient: str) -> None:
    objective = toy_unified(embedding_dim=6, stop_gradient=stop_gradient)
    output = objective(toy_clip())
    output.total.backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in objective.encoder.parameters())
    assert objective.head is not None
    assert all(p.grad is not None for p in objective.head.parameters())


class Constant(nn.Module):
    """Features that say nothing: equal everywhere, or the place in the frame alone."""

    feature_dim, output_stride = 4, 8

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.weight = kind, nn.Parameter(torch.ones(1, 4, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        grid = torch.ones(len(images), 4, 8, 8)
        if self.kind == "place":
            angle = torch.arange(64).view(8, 8) * 0.1
            grid = torch.stack([angle.sin(), angle.cos(), (angle / 3).sin(), (angle / 3).cos()])[None] * grid
        return grid * self.weight


def test_features_that_say_nothing_do_not_lower_the_contrast_but_please_the_cosine() -> None:
    guess = math.log(2 * 16)
    for kind, allowed in (("constant", 1e-5), ("place", 2.0)):
        objective = unified(Constant(kind), segmentation_weight=0.0, grid_size=4, alignment="soft")
        terms = objective(toy_clip()).terms
        assert float(terms["short_term"]) >= guess - 1e-5  # no better than guessing
        assert float(terms["long_term"]) >= guess - allowed
    collapsed = unified(Constant("constant"), segmentation_weight=0.0, grid_size=4, loss="cosine")
    hard = unified(Constant("constant"), segmentation_weight=0.0, grid_size=4)
    assert float(hard(toy_clip()).terms["long_term"]) >= guess - 1e-5
    output = collapsed(toy_clip())
    assert float(output.total.detach()) == pytest.approx(0, abs=1e-5)
    values = {name: float(value) for name, value in output.terms.items()}
    assert "frame_variance is" in str(collapsed.collapse_reason(values))


def test_variance_is_zero_for_equal_or_dead_features_and_one_at_most() -> None:
    assert float(feature_variance(torch.ones(2, 3, 4, 4))) == pytest.approx(0, abs=1e-6)
    assert float(feature_variance(torch.zeros(2, 3, 4, 4))) == 0
    assert 0.9 < float(feature_variance(torch.randn(4, 64, 8, 8))) <= 1
    flat = torch.randn(4, 64, 1, 1).expand(-1, -1, 8, 8)  # frames differ, their cells do not
    assert float(feature_variance(flat)) > 0.5
    assert float(frame_variance(flat)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("only", ["short_term_weight", "long_term_weight"])
def test_each_term_alone_trains_the_encoder_and_nothing_is_computed_for_the_other(only: str) -> None:
    other = {"short_term_weight": "long_term_weight", "long_term_weight": "short_term_weight"}[only]
    objective = toy_unified(**{only: 0.5, other: 0.0})
    output = objective(toy_clip())
    term = only.removesuffix("_weight")
    assert set(output.terms) == {term, "feature_variance", "frame_variance"}
    torch.testing.assert_close(output.total.detach(), 0.5 * output.terms[term])
    output.total.backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in objective.encoder.parameters())


def test_frames_run_without_gradient_where_they_are_constants() -> None:
    counted: list[tuple[bool, int]] = []
    clip = toy_clip(B=2, T=4)
    for options in ({}, {"stop_gradient": "none"}, {"alignment": "soft"}):
        objective = toy_unified(**options)
        encode = objective.encode
        objective.encode = lambda x, encode=encode: (  # type: ignore[method-assign]
            counted.append((torch.is_grad_enabled(), len(x))) or encode(x)  # type: ignore[func-returns-value]
        )
        objective(clip).total.backward()
    # frames 0, 2, 3 and view 0, then frame 1 and views 2, 3; all; frame 0 and views, then the rest
    assert counted == [(True, 8), (False, 6), (True, 14), (True, 8), (False, 6)]


def test_the_loss_of_a_clip_does_not_depend_on_chance_of_the_process() -> None:
    objective, clip = toy_unified(), toy_clip()
    first = objective(clip).total
    torch.rand(7)
    assert torch.equal(first, objective(clip).total)


@pytest.mark.parametrize(
    ("frame_ids", "message"),
    [
        ([3, 5, 9], "frame 1 to follow frame 0, but it lies 2 away"),
        ([3, 4, 7], "at least 5 away .* some are 4"),
        ([9, 10, 5], "at least 5 away .* some are 4"),
    ],
)
def test_clips_of_wrong_distances_are_refused(frame_ids: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=f"E150 .*{message}.*order=paired"):
        toy_unified()(toy_clip(T=3, frame_ids=frame_ids))


def test_the_smallest_distance_is_the_one_asked_for_and_only_asked_of_its_term() -> None:
    near, earlier = toy_clip(T=3, frame_ids=[3, 4, 8]), toy_clip(T=3, frame_ids=[9, 10, 4])
    toy_unified()(near), toy_unified()(earlier)
    with pytest.raises(UsageError, match="at least 6 away .* some are 5 .* range from 6 up"):
        toy_unified(long_term_gap=6)(near)
    toy_unified(long_term_gap=6, long_term_weight=0.0)(near)
    toy_unified(short_term_weight=0.0)(toy_clip(T=3, frame_ids=[3, 5, 9]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"short_term_weight": 0.0, "long_term_weight": 0.0}, "at least one must be positive"),
        ({"long_term_weight": -1.0}, "long_term_weight: must be at least 0"),
        ({"alignment": "none"}, "alignment: must be 'hard' or 'soft', got 'none'"),
        ({"loss": "l2"}, "loss: must be 'infonce' or 'cosine', got 'l2'"),
        ({"temperature": 0.0}, "temperature: must be positive"),
        (
            {"clustering": {"num_centroids": 3}},
            "clustering.num_centroids: unknown key. Known: num_clusters",
        ),
        ({"clustering": {"num_clusters": 1}}, "clustering.num_clusters: must be 2 to 254"),
        ({"mask_embedding": {"num_clusters": 3}}, "mask_embedding.num_clusters: unknown key"),
        ({"mask_embedding": {"width": "wide"}}, "mask_embedding.width: must be a valid integer, got 'wide'"),
        ({"mask_embedding": {"num_objects": 6}}, "mask_embedding.num_objects: must be at most clustering"),
        ({"clustering": 3}, "clustering: must be a section with keys of its own, got 3"),
        ({"refresh_epochs": 3.0, "refresh_steps": 5}, "exactly one of .* must be given"),
    ],
)
def test_wrong_arguments_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy_unified(**wrong)


def test_the_objective_is_in_the_table_and_refreshes_every_ten_epochs_unless_told() -> None:
    assert OBJECTIVES["unified"].build is Unified
    encoder = ToyEncoder()
    encoder.output_stride = 8  # type: ignore[assignment]
    small = {"width": 8, "depth": 1, "mask_dim": 8, "hidden_dim": 8}
    objective = build_objective("unified", encoder, mask_embedding=small)
    assert objective.refresh_interval is not None
    assert objective.refresh_interval.epochs == 10
    assert objective.kept_segmenter() is not None
    assert toy_unified().refresh_interval is None
    with pytest.raises(ValueError, match="call refresh and use_refreshed first"):
        objective(toy_clip())


def test_a_run_with_the_correspondence_terms_is_one_of_the_engines(tmp_path: Path) -> None:
    train_toy(tmp_path / "run", *TOY)
    rows = read_rows(tmp_path / "run")
    assert all({"short_term", "long_term", "feature_variance"} <= set(row) for row in rows)
    assert not (tmp_path / "run/refreshed").exists()


def test_a_run_with_all_terms_makes_pseudo_masks_and_goes_on_exactly_after_a_stop(tmp_path: Path) -> None:
    train_toy(tmp_path / "whole", *WITH_MASKS)
    rows = read_rows(tmp_path / "whole")
    assert all({"short_term", "long_term", "segmentation", "iou"} <= set(row) for row in rows)
    assert (tmp_path / "whole/refreshed/step_00000002/sheet.png").is_file()
    train_toy(tmp_path / "run", *WITH_MASKS, "schedule={steps: 1}")
    train_toy(tmp_path / "run", *WITH_MASKS, resume="auto")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_run_with_the_segmentation_term_alone_trains_encoder_and_decoder(tmp_path: Path) -> None:
    alone = ("objective.short_term_weight=0", "objective.long_term_weight=0")
    train_toy(tmp_path / "run", *WITH_MASKS, *alone)
    terms = [set(row) & {"short_term", "long_term", "segmentation"} for row in read_rows(tmp_path / "run")]
    assert terms == [{"segmentation"}] * 3


def test_a_later_phase_may_train_the_decoder_alone_and_leaves_the_encoder_as_it_is(tmp_path: Path) -> None:
    first = "{name: correspondence, objective: {segmentation_weight: 0}, schedule: {steps: 2}}"
    alone = "short_term_weight: 0, long_term_weight: 0, segmentation_weight: 1"
    fixed = "mask_embedding: {encoder_gradient: false, rollout: copied, k: 4}"
    second = f"{{name: decoder, objective: {{{alone}, {fixed}}}, schedule: {{steps: 2}}}}"
    train_toy(tmp_path / "run", *WITH_MASKS, f"phases=[{first}, {second}]")
    before, after = (
        load_file(tmp_path / f"run/checkpoints/step_{step:08d}/model.safetensors") for step in (2, 4)
    )
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())  # also batch norm's
    assert len(after) > len(before)
    rows = read_rows(tmp_path / "run")
    assert ["segmentation" in row for row in rows] == [False, False, True, True]
    assert all(row["grad_norm"] > 0 for row in rows)


def test_a_run_whose_encoder_nothing_trains_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="E106 nothing in objective trains the encoder"):
        train_toy(
            tmp_path / "run",
            *WITH_MASKS,
            "objective.short_term_weight=0",
            "objective.long_term_weight=0",
            "objective.mask_embedding.encoder_gradient=false",
        )


def test_collapse_ends_the_run_with_the_value(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"E702 .* frame_variance is .*, below objective.min_frame_var"):
        train_toy(tmp_path / "run", *TOY, "objective.min_frame_variance=1.1")


@pytest.mark.parametrize("alignment", ["hard", "soft"])
def test_the_graphs_are_whole(alignment: str) -> None:
    objective, clip = toy_unified(alignment=alignment, embedding_dim=6).eval(), toy_clip(T=3)
    plain = objective(clip).total
    objective.compile_graphs("eager")
    torch.testing.assert_close(objective(clip).total, plain)
    assert {name.split(".")[0] for name, _ in objective.named_parameters()} == {"encoder", "head"}
