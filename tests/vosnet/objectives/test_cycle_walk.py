"""The contrastive random walk against a plain float64 definition, its randomness, and the compiler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.dul import ToyEncoder
from vosnet.errors import UsageError
from vosnet.objectives import CycleWalk, build_objective
from vosnet.transforms import Clip


def objective(**kwargs: Any) -> CycleWalk:
    torch.manual_seed(0)
    options: dict[str, Any] = {"patch_size": 16, "patch_stride": 8, "embedding_dim": 8}
    built = build_objective("cycle_walk", ToyEncoder(), **(options | kwargs))
    assert isinstance(built, CycleWalk)
    return built


def random_clip(seed: int = 0, B: int = 2, T: int = 4, side: int = 32) -> Clip:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(B, T, 3, side, side, generator=generator)
    theta = torch.eye(2, 3).expand(B, 2, 3)
    return Clip(frames, frames, theta, torch.rand(B, 4, generator=generator), torch.arange(B))


def random_nodes(B: int = 2, T: int = 4, N: int = 5, C: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return F.normalize(torch.randn(B, T, N, C, generator=generator, dtype=torch.float64), dim=3)


def plain_losses(nodes: Tensor, dropped: Tensor, temperature: float) -> list[Tensor]:
    """The definition: walk by walk, node by node."""
    B, T, N, _ = nodes.shape

    def transition(source: Tensor, target: Tensor, missing: Tensor) -> Tensor:
        rows = []
        for i in range(N):
            weights = [
                torch.exp((source[i] * target[j]).sum() / temperature) * (not missing[i, j]) for j in range(N)
            ]
            rows.append(torch.stack(weights) / sum(weights))
        return torch.stack(rows)

    losses = []
    for length in range(2, T):
        terms = []
        for b in range(B):
            walk = torch.eye(N, dtype=nodes.dtype)
            for t in range(length):
                walk = walk @ transition(nodes[b, t], nodes[b, t + 1], dropped[0, b, t])
            for t in reversed(range(length)):
                walk = walk @ transition(nodes[b, t + 1], nodes[b, t], dropped[1, b, t])
            terms += [-torch.log((walk[i, i] + 1e-20) / (walk[i] + 1e-20).sum()) for i in range(N)]
        losses.append(sum(terms) / len(terms))  # type: ignore[arg-type]
    return losses  # type: ignore[return-value]


def test_losses_and_gradients_are_those_of_the_definition() -> None:
    nodes = random_nodes().requires_grad_()
    dropped = torch.rand(2, 2, 3, 5, 5, generator=torch.Generator().manual_seed(4)) < 0.3
    got, _ = objective(temperature=0.2).losses(nodes, dropped)
    exact = torch.stack(plain_losses(nodes, dropped, 0.2))
    torch.testing.assert_close(got, exact, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(losses.mean(), nodes)[0] for losses in (got, exact)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-14)


def test_gradients_are_those_of_finite_differences() -> None:
    nodes = random_nodes(B=1, T=3, N=3, C=2).requires_grad_()
    dropped = torch.zeros(2, 1, 2, 3, 3, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda x: objective(temperature=0.5).losses(x, dropped)[0], nodes)


def test_a_scene_whose_nodes_are_told_apart_returns_every_walker() -> None:
    nodes = torch.eye(6).expand(2, 4, 6, 6)
    none = torch.zeros(2, 2, 3, 6, 6, dtype=torch.bool)
    losses, accuracy = objective().losses(nodes, none)
    assert float(losses.max()) < 1e-5
    assert accuracy.tolist() == [1, 1]
    blind, chance = objective().losses(torch.ones_like(nodes) / 6**0.5, none)
    torch.testing.assert_close(blind, torch.full((2,), 6.0).log())
    assert float(chance.max()) < 0.5


def test_terms_name_every_length_and_the_total_is_their_mean() -> None:
    output = objective()(random_clip(T=5))
    lengths = (2, 3, 4)
    assert set(output.terms) == {f"{kind}_{n}" for kind in ("cycle", "accuracy") for n in lengths}
    assert not any(term.requires_grad for term in output.terms.values())
    mean = sum(output.terms[f"cycle_{n}"] for n in lengths) / 3  # type: ignore[operator]
    torch.testing.assert_close(output.total.detach(), mean)


def test_the_loss_of_a_clip_is_that_of_its_nodes_without_the_dropped_edges() -> None:
    walk, clip = objective(temperature=0.3, edge_dropout=0.4).eval(), random_clip(B=3, T=4)
    nodes = walk.embed(clip)
    dropped = walk.dropped_edges(clip.draws, nodes)
    exact = plain_losses(nodes.double(), dropped, 0.3)
    output = walk(clip)
    assert not torch.allclose(output.total, walk.losses(nodes, dropped & False)[0].mean(), rtol=1e-2)
    torch.testing.assert_close(output.total.double(), torch.stack(exact).mean(), rtol=1e-4, atol=0)
    for n, value in zip((2, 3), exact, strict=True):
        torch.testing.assert_close(output.terms[f"cycle_{n}"].double(), value.detach(), rtol=1e-4, atol=0)


def test_accuracy_is_the_share_of_nodes_whose_walker_most_likely_comes_back() -> None:
    eye, swapped = torch.eye(4), torch.eye(4)[[1, 0, 2, 3]]
    nodes = torch.stack([torch.stack([eye] * 3), torch.stack([eye] * 3)])
    none = torch.zeros(2, 2, 2, 4, 4, dtype=torch.bool)
    assert objective().losses(nodes, none)[1].tolist() == [1.0]
    dropped = none.clone()
    dropped[1, 0, 1] = (swapped == 0) & (eye == 1)  # the way back of clip 0 from nodes 0 and 1 is cut
    assert objective().losses(nodes, dropped)[1].tolist() == [0.75]


def test_edges_are_dropped_as_often_as_asked_and_for_each_direction_alone() -> None:
    nodes = torch.zeros(8, 4, 20, 1)
    dropped = objective(edge_dropout=0.1).dropped_edges(random_clip(B=8).draws, nodes)
    assert dropped.shape == (2, 8, 3, 20, 20)
    share = dropped.float().mean().item()
    assert abs(share - 0.1) < 5 * (0.09 / dropped.numel()) ** 0.5
    both = (dropped[0] & dropped[1].transpose(2, 3)).float().mean().item()
    assert abs(both - 0.01) < 5 * (0.01 / dropped[0].numel()) ** 0.5
    assert not objective(edge_dropout=0.0).dropped_edges(random_clip().draws, nodes[:2]).any()


def test_a_clip_gives_the_same_loss_whatever_stands_beside_it_and_however_often() -> None:
    walk = objective().eval()  # batch norm's statistics apart
    clip = random_clip(B=3)
    torch.manual_seed(1)
    whole = walk(clip).total
    torch.manual_seed(2)
    alone = torch.stack([walk(clip.part(b, b + 1)).total for b in range(3)])
    torch.testing.assert_close(whole, alone.mean())
    assert not torch.allclose(alone[0], alone[1])


def test_every_frame_of_a_still_is_cropped_for_itself() -> None:
    clip = random_clip(B=1, T=3)
    still = Clip(clip.frames[:, :1].expand(-1, 3, -1, -1, -1), clip.view, clip.theta, clip.draws, clip.ids)
    nodes = objective(frame_scale=(0.8, 0.95), patch_scale=(1.0, 1.0), patch_ratio=(1.0, 1.0)).embed(still)
    assert not torch.allclose(nodes[:, 0], nodes[:, 1], atol=1e-3)
    off = dict.fromkeys(("frame_scale", "frame_ratio", "patch_scale", "patch_ratio"), (1.0, 1.0))
    nodes = objective(**off).embed(still)
    torch.testing.assert_close(nodes[:, 0], nodes[:, 1])


def test_images_are_normalized_with_the_constants_asked_for() -> None:
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    pixels = torch.rand(3, 5, 5)
    imagenet = (pixels - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    walk = objective(pixel_mean=mean, pixel_std=std)
    got = imagenet * walk.pixel_factor + walk.pixel_offset
    exact = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(got, exact)
    assert "pixel_factor" not in walk.state_dict()


def test_a_few_steps_of_learning_lower_the_loss_on_a_clip() -> None:
    walk = objective(temperature=0.2, edge_dropout=0.0)
    clip = random_clip(B=1, T=3)
    frames = clip.frames[:, :1] + 0.1 * clip.frames  # nearly still
    clip = Clip(frames, frames, clip.theta, clip.draws, clip.ids)
    optimizer = torch.optim.Adam(walk.parameters(), lr=1e-2)
    values = []
    for _ in range(8):
        loss = walk(clip).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.9 * values[0]


def test_under_autocast_the_walk_is_float32_and_every_parameter_learns() -> None:
    walk = objective()
    with torch.autocast("cpu", torch.bfloat16):
        output = walk(random_clip())
    assert output.total.dtype == torch.float32
    output.total.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in walk.parameters())


def test_the_graphs_are_whole_and_compiled_once() -> None:
    eager = objective()(random_clip(1)).total
    walk = objective()
    walk.compile_graphs("aot_eager")
    torch.testing.assert_close(walk(random_clip(1)).total, eager)
    with torch._dynamo.config.patch(error_on_recompile=True):
        walk(random_clip(2)).total.backward()
    assert {name.split(".")[0] for name, _ in walk.named_parameters()} == {"encoder", "head"}
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"edge_dropout": 1.0}, "edge_dropout"),
        ({"frame_scale": (0.9, 1.2)}, "frame_scale"),
        ({"patch_ratio": (2.0, 0.5)}, "patch_ratio"),
        ({"patch_stride": 0}, "patch_stride"),
        ({"pixel_std": (0.2, 0.0, 0.2)}, "pixel_std"),
    ],
)
def test_values_out_of_range_are_named(override: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective(**override)


def test_clips_that_are_too_short_or_too_small_are_refused() -> None:
    with pytest.raises(UsageError, match="E150 .*clip_len of at least 3, got 2"):
        objective()(random_clip(T=2))
    with pytest.raises(UsageError, match=r"E150 .*patch_size \(64\) is larger than data.crop_size \(32\)"):
        objective(patch_size=64)(random_clip())
