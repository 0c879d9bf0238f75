"""DUL's losses against the authors' numbers, a plain materialized definition, two ranks and the compiler."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.dul import ToyEncoder, materialized_losses, peak_bytes, picked_losses, toy_objective
from tests.support.two_ranks import on_two_ranks
from vosnet.errors import SettingError, UsageError
from vosnet.objectives import ObjectiveOutput, build_objective
from vosnet.objectives.anchors import grid_index
from vosnet.objectives.dense_correspondence import make_targets, watch_terms
from vosnet.transforms import Clip, nearest_index, random_similarity

GOLDEN = os.environ.get("VOSNET_GOLDEN")


def random_clip(seed: int = 0, B: int = 2, T: int = 3, side: int = 64) -> Clip:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(B, T, 3, side, side, generator=generator)
    theta = torch.stack([random_similarity(generator) for _ in range(B)])
    return Clip(frames, frames.flip(-1), theta, torch.rand(B, 4, generator=generator), torch.arange(B))


def random_views(B: int, T: int, C: int, h: int, w: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    views = [torch.randn(B, T, C, h, w, generator=generator, dtype=dtype) for _ in range(2)]
    return [F.normalize(view, dim=2).requires_grad_() for view in views]


def grids(B: int, cells_per_frame: int, anchors: int = 16, pairs: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    order = torch.stack([torch.randperm(cells_per_frame, generator=generator) for _ in range(B)])
    return order[:, :anchors], order[:, -pairs:]


THETA = torch.stack(
    [
        torch.tensor([[-0.8, 0.0, -0.15], [0.0, 0.8, 0.1]]),
        torch.tensor([[0.6, 0.0, 0.9], [0.0, 0.6, -0.2]]),  # looks outside the frame on one side
        torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
    ]
)


@pytest.mark.skipif(GOLDEN is None, reason="VOSNET_GOLDEN names no folder with the authors' numbers")
def test_losses_labels_and_gradients_are_those_of_the_authors_code() -> None:
    stored = np.load(Path(str(GOLDEN)) / "peer_dul_losses_dev.npz")
    main, view, theta = (torch.from_numpy(stored[k]) for k in ("feature", "feature_reg", "theta"))
    anchor, cross = (torch.from_numpy(stored[k]).flatten(1) for k in ("anchor_index", "cross_view_index"))
    main.requires_grad_(), view.requires_grad_()
    temperature = float(stored["temperature"])
    space_time, cross_view, targets = picked_losses(main, view, theta, anchor, cross, temperature=temperature)
    assert space_time.item() == pytest.approx(float(stored["space_time"]), rel=1e-5)
    assert cross_view.item() == pytest.approx(float(stored["cross_view"]), rel=1e-5)
    label = targets.pseudo_label.view(stored["pseudo_label"].shape)
    assert torch.equal(label, torch.from_numpy(stored["pseudo_label"]).long())
    gradients = {
        "grad_space_time": torch.autograd.grad(space_time, main, retain_graph=True)[0],
        "grad_cross_view": torch.autograd.grad(cross_view, main, retain_graph=True)[0],
        "grad_cross_view_reg": torch.autograd.grad(cross_view, view)[0],
    }
    for name, gradient in gradients.items():
        exact = torch.from_numpy(stored[name])
        assert float((gradient - exact).abs().max() / exact.abs().max()) < 1e-4, name


@pytest.mark.parametrize("chunk_size", [1, 37, 100_000])
def test_picking_rows_equals_warping_logits_in_value_and_gradient(chunk_size: int) -> None:
    main, view = random_views(3, 4, 8, 7, 9)
    anchor, cross = grids(3, 63)
    ours = picked_losses(main, view, THETA.double(), anchor, cross, temperature=0.1, chunk_size=chunk_size)[
        :2
    ]
    plain = materialized_losses(main, view, THETA.double(), anchor, cross, 0.1)
    for got, exact in zip(ours, plain):
        torch.testing.assert_close(got, exact, rtol=1e-10, atol=0)
        gradients = torch.autograd.grad(got, (main, view), retain_graph=True, allow_unused=True)
        expected = torch.autograd.grad(exact, (main, view), retain_graph=True, allow_unused=True)
        for a, b in zip(gradients, expected):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


def test_pseudo_labels_stay_within_the_own_clip() -> None:
    main, view = random_views(3, 2, 4, 6, 6)
    *_, targets = picked_losses(main, view, THETA.double(), *grids(3, 36))
    clip_of_label = targets.pseudo_label // 16
    assert torch.equal(clip_of_label, torch.arange(3).view(3, 1, 1).expand_as(clip_of_label))


def test_anchors_and_cross_view_pairs_have_lattices_of_their_own() -> None:
    main, view = random_views(3, 2, 4, 8, 8, torch.float32)
    main, view = (x.detach().flatten(3).transpose(2, 3) for x in (main, view))
    draws = torch.tensor([[0.1, 0.9, 0.6, 0.3], [0.7, 0.2, 0.0, 0.9], [0.5, 0.5, 0.99, 0.1]])
    objective = toy_objective(grid_size=4, cross_view_grid_size=2)
    targets = objective.find_targets(main, view, THETA, draws, (8, 8))
    source = nearest_index(THETA, 8, 8)
    for b, (y, x, pair_y, pair_x) in enumerate(draws.tolist()):
        shift = [int(2 * y), int(2 * x), int(4 * pair_y), int(4 * pair_x)]  # of steps of 2 and 4 cells
        anchors = [8 * (2 * i + shift[0]) + 2 * j + shift[1] for i in range(4) for j in range(4)]
        pairs = [8 * (4 * i + shift[2]) + 4 * j + shift[3] for i in range(2) for j in range(2)]
        assert torch.equal(targets.anchors[16 * b : 16 * b + 16], main[b, 0, anchors])
        assert torch.equal(targets.cross_view[4 * b : 4 * b + 4], view[b, 0, pairs])
        assert targets.cross_view_source[b].tolist() == source[b, pairs].tolist()


@pytest.mark.parametrize(
    ("draws", "expected"),
    [
        ((0.0, 0.0), [0, 3, 14, 17]),
        ((0.0, 0.99), [2, 5, 16, 19]),
        ((0.99, 0.0), [7, 10, 21, 24]),
        ((0.5, 0.5), [8, 11, 22, 25]),
    ],
    ids=str,
)
def test_a_lattice_is_shifted_rigidly_by_less_than_its_step(
    draws: tuple[float, float], expected: list[int]
) -> None:
    both = torch.tensor([draws, (0.0, 0.0)])
    assert grid_index(both, 5, 7, 2).tolist() == [expected, [0, 3, 14, 17]]  # steps of 2 rows and 3 columns


def test_only_frame_0_of_the_regularizing_view_learns() -> None:
    objective = toy_objective()
    clip = random_clip()
    clip.frames.requires_grad_(), clip.view.requires_grad_()
    objective(clip).total.backward()
    assert clip.view.grad is not None
    assert clip.frames.grad is not None
    assert clip.view.grad[:, 0].abs().sum() > 0
    assert clip.view.grad[:, 1:].abs().sum() == 0
    assert clip.frames.grad[:, 1:].abs().sum() > 0


@pytest.mark.parametrize(("mode", "passes"), [("train", 2), ("eval", 1)])
def test_batch_norm_of_the_pass_without_gradient_follows_the_switch(mode: Any, passes: int) -> None:
    objective = toy_objective(regularizing_norm=mode)
    objective(random_clip())
    assert int(objective.encoder.norm.num_batches_tracked) == passes  # type: ignore[union-attr,arg-type]
    assert objective.training
    assert objective.encoder.training


def test_terms_are_detached_and_a_collapsed_network_shows() -> None:
    objective = toy_objective()
    output = objective(random_clip())
    assert set(output.terms) == {"space_time", "cross_view", "label_entropy", "mean_feature", "valid"}
    assert not any(term.requires_grad for term in output.terms.values())
    torch.testing.assert_close(output.total, output.terms["space_time"] + 0.1 * output.terms["cross_view"])
    collapsed = torch.ones(2, 3, 36, 4) / 2
    targets = make_targets(collapsed, collapsed, nearest_index(THETA[:2], 6, 6), *grids(2, 36))
    watch = watch_terms(collapsed, targets)
    assert float(watch["mean_feature"]) == pytest.approx(1.0)
    assert float(watch["label_entropy"]) < 0.25
    assert 0.5 < float(watch["valid"]) < 1.0


def test_the_cross_view_term_is_weighted_in_the_total_alone() -> None:
    one, three = (toy_objective(cross_view_weight=weight)(random_clip()) for weight in (1.0, 3.0))
    assert one.terms["cross_view"] == three.terms["cross_view"]
    torch.testing.assert_close(three.total, one.total + 2 * one.terms["cross_view"])


def test_a_step_of_learning_lowers_the_loss() -> None:
    objective = toy_objective(temperature=0.2)
    clip = random_clip()
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.05)
    before = objective(clip).total
    before.backward()
    optimizer.step()
    assert objective(clip).total.item() < before.item()


def test_the_loss_needs_at_most_a_quarter_of_the_materialized_memory() -> None:
    main, view = random_views(8, 5, 32, 16, 16, torch.float32)
    theta = torch.stack([random_similarity(torch.Generator().manual_seed(i)) for i in range(8)])
    arguments = (main, view, theta, *grids(8, 256, anchors=64, pairs=16))
    ours = peak_bytes(picked_losses, *arguments, chunk_size=512)
    plain = peak_bytes(materialized_losses, *arguments, temperature=0.05)
    assert 0 < ours <= plain / 4, (ours, plain)


def test_the_graphs_are_whole_and_compiled_once() -> None:
    objective = toy_objective()
    eager = objective(random_clip(1)).total
    objective = toy_objective()
    objective.compile_graphs("aot_eager")  # the compiler's front end; the back end would only add minutes
    torch.testing.assert_close(objective(random_clip(1)).total, eager)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(2, 5):
            objective(random_clip(seed)).total.backward()
    assert {name.split(".")[0] for name, _ in objective.named_parameters()} == {"encoder", "head"}
    torch._dynamo.reset()


def test_losses_are_computed_in_float32_under_autocast() -> None:
    objective = toy_objective()
    with torch.autocast("cpu", torch.bfloat16):
        output: ObjectiveOutput = objective(random_clip())
    assert output.total.dtype == torch.float32
    output.total.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in objective.parameters())


TWO_RANKS = """
from tests.support.dul import cells, toy_objective
from tests.vosnet.objectives.test_dense_correspondence import grids, random_views, THETA
from vosnet.objectives.dense_correspondence import make_targets
from vosnet.objectives.gather import gather_ranks
from vosnet.transforms import nearest_index

main, view = (v.detach()[2 * rank : 2 * rank + 2].requires_grad_() for v in random_views(4, 3, 8, 6, 6))
anchor, cross = (index[2 * rank : 2 * rank + 2] for index in grids(4, 36))
theta = THETA[[0, 1, 2, 0]][2 * rank : 2 * rank + 2].double()
targets = make_targets(cells(main), cells(view), nearest_index(theta, 6, 6), anchor, cross)
anchors, pairs = gather_ranks(targets.anchors), gather_ranks(targets.cross_view)
losses = toy_objective().losses(cells(main), targets, anchors, pairs, rank)
(sum(losses) / 2).backward()  # DDP averages gradients over ranks
answer = [torch.stack(losses).detach(), main.grad, view.grad]
"""


def test_two_ranks_with_half_the_batch_give_the_losses_and_gradients_of_one(tmp_path: Path) -> None:
    halves = on_two_ranks(TWO_RANKS, tmp_path)
    main, view = random_views(4, 3, 8, 6, 6)
    losses = picked_losses(main, view, THETA[[0, 1, 2, 0]].double(), *grids(4, 36))[:2]
    sum(losses).backward()  # type: ignore[union-attr]
    torch.testing.assert_close((halves[0][0] + halves[1][0]) / 2, torch.stack(losses).detach())
    torch.testing.assert_close(torch.cat([half[1] for half in halves]), main.grad)
    torch.testing.assert_close(torch.cat([half[2] for half in halves]), view.grad)


def test_unknown_objectives_and_arguments_are_named_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="dense_corespondence"):
        build_objective("dense_corespondence", ToyEncoder())
    with pytest.raises(SettingError, match="temprature: unknown key. Did you mean 'temperature'"):
        build_objective("dense_correspondence", ToyEncoder(), temprature=0.1)
    with pytest.raises(ValueError, match="regularizing_norm"):
        build_objective("dense_correspondence", ToyEncoder(), regularizing_norm="frozen")
    with pytest.raises(ValueError, match="grid_size 9"):
        toy_objective(grid_size=9)(random_clip())
