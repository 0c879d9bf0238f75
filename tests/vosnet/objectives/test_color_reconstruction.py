"""Color reconstruction against a plain definition; the bottleneck, the memory's gradient and its momentum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vosnet.errors import UsageError
from vosnet.memory.momentum import MomentumEncoder
from vosnet.objectives import build_objective
from vosnet.objectives.color_reconstruction import ColorReconstruction, reference_frames
from vosnet.recipe import RecipeError, parse_recipe
from vosnet.transforms import Clip


class Pixels(nn.Module):
    """Features of 4 x 4 cells by one convolution and batch norm."""

    feature_dim, output_stride, color_space = 16, 4, "lab"

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 4, 4)
        self.bn = nn.BatchNorm2d(16)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.bn(self.conv(images))
        return features


def lab_clip(B: int = 3, T: int = 3, side: int = 16, shift: int = 0) -> Clip:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(B, 3, side // 4, (side + T * shift) // 4, generator=generator) * 0.4
    wide = F.interpolate(coarse, (side, side + T * shift), mode="bilinear")[:, None]
    frames = torch.cat([wide[..., t * shift : t * shift + side] for t in range(T)], dim=1)
    theta = torch.eye(2, 3).expand(B, 2, 3)
    return Clip(frames, frames, theta, torch.rand(B, 4, generator=generator), torch.arange(B))


def objective(**options: Any) -> ColorReconstruction:
    torch.manual_seed(1)
    built = build_objective("color_reconstruction", Pixels(), **{"radius": 2, **options})
    assert isinstance(built, ColorReconstruction)
    return built


def plain_loss(model: ColorReconstruction, clip: Clip, *, outside: str) -> Tensor:
    """Both frames encoded, and the missing channel of the last one explained by those before."""
    query, memory = model.encode(*model.inputs(clip.frames, clip.draws))
    channel = model.dropped(clip.draws).int().argmax(1)
    colors = [clip.frames[b, :, channel[b]] for b in range(len(clip))]
    return plain_reconstruction(query, memory, colors, outside=outside)


def plain_reconstruction(
    query: Tensor,
    memory: Tensor,
    colors: list[Tensor],
    *,
    outside: str,
    temperature: float = 4.0,  # the root of 16 channels
    scale: float = 20.0,
) -> Tensor:
    """All cells in loops: Eq. 6, 7 and the Huber loss of one channel of each clip, [K + 1, H, W]."""
    predictions = []
    for b, color in enumerate(colors):
        value = color[:-1, ::4, ::4]
        _, h, w = value.shape
        out = torch.zeros(h, w)
        for y in range(h):
            for x in range(w):
                logits, values = [], []
                for k in range(len(value)):
                    for v in range(y - 2, y + 3):
                        for u in range(x - 2, x + 3):
                            if 0 <= v < h and 0 <= u < w:
                                logits.append(query[b, :, y, x] @ memory[b, k, :, v, u] / temperature)
                                values.append(value[k, v, u])
                            elif outside == "zero":
                                logits.append(torch.tensor(0.0))
                                values.append(torch.tensor(0.0))
                out[y, x] = torch.softmax(torch.stack(logits), 0) @ torch.stack(values)
        large = F.interpolate(out[None, None], (16, 16), mode="bilinear")[0, 0]
        difference = (scale * (large - color[-1])).abs()
        predictions.append(torch.where(difference < 1, difference**2 / 2, difference - 0.5).mean())
    return torch.stack(predictions).mean()


@pytest.mark.parametrize("outside", ["zero", "exclude"])
def test_the_loss_is_that_of_the_equations(outside: str) -> None:
    model, clip = objective(num_references=2, outside=outside).eval(), lab_clip()
    output = model(clip)
    assert output.total.item() == pytest.approx(plain_loss(model, clip, outside=outside).item(), rel=1e-5)
    assert not any(term.requires_grad for term in output.terms.values())


def noise_clip(B: int = 2, T: int = 2, side: int = 16) -> Clip:
    """No frame resembles another."""
    generator = torch.Generator().manual_seed(5)
    frames = torch.rand(B, T, 3, side, side, generator=generator)
    theta = torch.eye(2, 3).expand(B, 2, 3)
    return Clip(frames, frames, theta, torch.rand(B, 4, generator=generator), torch.arange(B))


def test_in_both_directions_each_frame_is_explained_by_the_other() -> None:
    options = {"both_directions": True, "temperature": 0.7, "loss_scale": 3.0, "jitter_probability": 0.0}
    model, clip = objective(**options).eval(), noise_clip()
    query, memory = model.encode(*model.inputs(clip.frames, clip.draws))
    channel = model.dropped(clip.draws).int().argmax(1)
    colors = [clip.frames[b, :, channel[b]] for b in range(2)]
    there = {"temperature": 0.7, "scale": 3.0, "outside": "zero"}
    forward = plain_reconstruction(query, memory, colors, **there)  # type: ignore[arg-type]
    swapped = [color.flip(0) for color in colors]
    back = plain_reconstruction(memory[:, 0], query[:, None], swapped, **there)  # type: ignore[arg-type]
    output = model(clip)
    assert float(forward.detach()) != pytest.approx(float(back.detach()), rel=1e-2)
    torch.testing.assert_close(output.total, (forward + back) / 2)
    copied = []
    for before, after in [(c[0], c[1]) for c in colors] + [(c[1], c[0]) for c in colors]:
        large = F.interpolate(before[None, None, ::4, ::4], (16, 16), mode="bilinear")[0, 0]
        copied.append(F.smooth_l1_loss(3 * large, 3 * after))
    torch.testing.assert_close(output.terms["copy"], torch.stack(copied).mean())


def test_only_the_chosen_references_are_read() -> None:
    model, clip = objective(num_references=2, memory="momentum").eval(), noise_clip(T=5)
    clip.frames.requires_grad_()
    with torch.no_grad():
        model.encoder.conv.weight.mul_(2)  # type: ignore[operator,union-attr]
    (seen,) = torch.autograd.grad(model(clip).total, clip.frames)
    assert [bool(seen[:, t].any()) for t in range(5)] == [True, False, False, True, True]


def test_colors_of_a_cell_are_its_first_pixel_or_its_mean() -> None:
    colors = torch.rand(2, 2, 3, 8, 12)
    sliced = objective().values(colors, (2, 3))
    torch.testing.assert_close(sliced, colors[..., ::4, ::4])
    averaged = objective(value_sampling="average").values(colors, (2, 3))
    torch.testing.assert_close(averaged, colors.unflatten(-2, (2, 4)).unflatten(-1, (3, 4)).mean((-3, -1)))


def test_exactly_one_chroma_channel_is_missing_and_the_rest_is_scaled_up() -> None:
    model, clip = objective(jitter_probability=0.0), lab_clip(B=64, T=2)
    dropped = model.dropped(clip.draws)
    assert dropped.sum(1).tolist() == [1] * 64
    assert not dropped[:, 0].any()
    assert 20 < dropped[:, 1].sum() < 44
    query, references = model.inputs(clip.frames, clip.draws)
    expected = clip.frames * 1.5 * ~dropped[:, None, :, None, None]
    torch.testing.assert_close(query, expected[:, -1])
    torch.testing.assert_close(references, expected[:, :-1])


def test_the_papers_dropout_takes_each_chroma_channel_by_itself_and_reconstructs_all_of_lab() -> None:
    model, clip = objective(bottleneck="each", jitter_probability=0.0), lab_clip(B=200, T=2)
    counts = model.dropped(clip.draws)[:, 1:].sum(1).bincount().tolist()
    assert [abs(count - expected) < 30 for count, expected in zip(counts, (50, 100, 50))] == [True] * 3
    query, _ = model.inputs(clip.frames, clip.draws)
    missing = model.dropped(clip.draws)
    both = int(missing.sum(1).argmax())
    torch.testing.assert_close(query[both, 0], 3 * clip.frames[both, -1, 0])
    seen = {}
    model.reconstruct = lambda q, m, colors: seen.update(colors=colors) or (q.sum(), q.sum())  # type: ignore[func-returns-value, method-assign]
    model(clip)
    torch.testing.assert_close(seen["colors"], clip.frames)


def test_jitter_changes_what_is_seen_but_not_what_is_reconstructed() -> None:
    model, clip = objective(jitter_probability=1.0), lab_clip(T=2)
    plain, jittered = (
        objective(jitter_probability=0.0).inputs(clip.frames, clip.draws),
        model.inputs(clip.frames, clip.draws),
    )
    assert not torch.allclose(plain[0], jittered[0], atol=0.01)
    assert model(clip).terms["copy"] == objective(jitter_probability=0.0)(clip).terms["copy"]


def test_references_of_a_momentum_memory_get_no_gradient_and_a_shared_ones_do() -> None:
    for memory, expected in (("momentum", False), ("shared", True)):
        model, clip = objective(num_references=2, memory=memory), lab_clip()
        query, references = (x.requires_grad_() for x in model.inputs(clip.frames, clip.draws))
        _, features = model.encode(query, references)
        assert features.requires_grad is expected
        assert model.encode(query, references)[0].requires_grad


def test_the_memory_encoder_starts_as_a_copy_and_follows_by_momentum() -> None:
    model = objective(memory="momentum", momentum=0.9)
    before = [p.clone() for p in model.encoder.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, model.memory_encoder.parameters()))  # type: ignore[union-attr]
    with torch.no_grad():
        torch._foreach_add_(list(model.encoder.parameters()), 1.0)
    model.after_step()
    for old, new in zip(before, model.memory_encoder.parameters()):  # type: ignore[union-attr]
        torch.testing.assert_close(new, old + 0.1)
    assert not any(p.requires_grad for p in model.memory_encoder.parameters())  # type: ignore[union-attr]
    averaged = objective(memory="momentum", memory_norm="average").train()
    assert averaged.encoder.training
    assert not averaged.memory_encoder.network.training  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("norm", "expected"), [("batch", 0.0), ("copy", 1.0), ("average", 0.1)], ids=["batch", "copy", "average"]
)
def test_the_memorys_batch_norm_follows_the_switch(norm: Any, expected: float) -> None:
    encoder = Pixels().train()
    memory = MomentumEncoder(encoder, momentum=0.9, norm=norm)
    assert memory.network.training is (norm == "batch")
    encoder.bn.running_mean += 1.0  # type: ignore[operator]
    memory.follow(encoder)
    torch.testing.assert_close(memory.network.bn.running_mean, torch.full((16,), expected))


@pytest.mark.parametrize(
    ("clip_len", "count", "first", "expected"),
    [
        (2, 1, True, [0, 1]),
        (8, 5, True, [0, 3, 4, 5, 6, 7]),
        (8, 5, False, [2, 3, 4, 5, 6, 7]),
        (8, 1, True, [6, 7]),
        (4, "all", False, [0, 1, 2, 3]),
    ],
)
def test_references_are_the_first_frame_and_the_latest(
    clip_len: int, count: Any, first: bool, expected: list[int]
) -> None:
    assert reference_frames(clip_len, count, first) == expected


def test_learning_gets_below_copying_the_same_cell_on_a_moving_scene() -> None:
    model, clip = (
        objective(jitter_probability=0.0, value_sampling="average", both_directions=True),
        lab_clip(B=6, T=2, side=32, shift=4),
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-2)
    for _ in range(40):
        output = model(clip)
        optimizer.zero_grad()
        output.total.backward()
        optimizer.step()
    assert output.total < 0.8 * output.terms["copy"]


def test_the_graphs_are_whole() -> None:
    model, clip = objective(num_references=2, memory="momentum"), lab_clip()
    plain = model(clip).total
    model.compile_graphs(backend="eager")
    torch.testing.assert_close(model(clip).total, plain)


RECIPE = """\
encoder: {layer: layer2, color_space: lab}
objective:
  name: color_reconstruction
  num_references: 5
data:
  sources: [{layout: generated, count: 2}]
  clip_len: 4
optimizer: {lr: 1e-3}
schedule: {steps: 1}
training: {batch_size: 2}
"""


def test_more_references_than_a_clip_has_are_refused_with_the_line() -> None:
    with pytest.raises(RecipeError, match=r"r.yaml:4: objective.num_references: got 5, but a clip of 4 fr"):
        parse_recipe(RECIPE, name="r.yaml")
    parse_recipe(RECIPE, ["objective.num_references=all"])
    with pytest.raises(UsageError, match="E166 num_references: got 5"):
        objective(num_references=5)(lab_clip())


def test_an_encoder_that_sees_rgb_is_refused() -> None:
    with pytest.raises(RecipeError, match="needs encoder.color_space: lab, got rgb"):
        parse_recipe(RECIPE, ["encoder.color_space=rgb", "data.clip_len=6"])


@pytest.mark.parametrize(
    "option",
    [{"radius": -1}, {"temperature": 0.0}, {"num_references": 0}, {"momentum": 1.0, "memory": "momentum"},
     {"jitter_probability": 2.0}, {"loss_scale": 0.0}, {"both_directions": True, "num_references": 2}],
    ids=str,
)  # fmt: skip
def test_impossible_settings_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        objective(**option)
