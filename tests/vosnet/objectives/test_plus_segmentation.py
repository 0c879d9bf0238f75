"""The segmentation term beside any objective: a whole run, its resume, and what its checkpoint can do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.dul import ToyEncoder
from tests.support.masked_clips import masked_clip
from tests.support.toy_training import losses, toy_recipe, train_toy
from vosnet import Propagator
from vosnet.errors import UsageError
from vosnet.models import build_encoder, load_model
from vosnet.objectives import Objective, build_objective
from vosnet.synthetic import make_clip
from vosnet.training.journal import read_rows

TINY = "{num_objects: 1, width: 4, depth: 1, mask_dim: 4, hidden_dim: 4}"
BASE = "{name: dense_correspondence, hidden_dim: 8, embedding_dim: 8, grid_size: 2, cross_view_grid_size: 2}"
CLUSTERS = "{num_clusters: 2, short_side: 48}"
OBJECTIVE = f"{{name: plus_segmentation, base: {BASE}, mask_embedding: {TINY}, clustering: {CLUSTERS}, "
TOY = [f"objective={OBJECTIVE}refresh_steps: 1}}", "preset=crw_decoded", "schedule={steps: 2}"]


def test_a_run_trains_both_and_leaves_a_checkpoint_that_decodes(tmp_path: Path) -> None:
    assert train_toy(tmp_path / "run", *TOY).completed
    rows = read_rows(tmp_path / "run")
    assert {"space_time", "segmentation", "coarse", "iou"} <= set(rows[-1])
    assert load_model(tmp_path / "run").segmenter().mask_dim == 4
    assert load_model(tmp_path / "run").encoder.stage == "layer2"
    propagator = Propagator.from_checkpoint(tmp_path / "run", device="cpu", num_recent=2)
    clip = make_clip(1, num_frames=2, size=(48, 64))
    masks = [result.mask for result in propagator.propagate(clip.frames, {0: clip.masks[0]})]
    assert propagator.protocol.rounds == 3
    assert np.stack(masks).shape == clip.masks.shape


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    train_toy(tmp_path / "whole", *TOY)
    train_toy(tmp_path / "part", *TOY[:-1], "schedule={steps: 1}")
    train_toy(tmp_path / "rest", *TOY, resume=str(tmp_path / "part"))
    assert losses(tmp_path / "rest")[2] == losses(tmp_path / "whole")[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": {"name": "unified"}}, "segmentation term of its own"),
        ({"base": {"name": "no_such"}}, "base.name: unknown objective"),
        ({"base": {"name": "cycle_walk", "radius": 3}}, "base.radius: unknown key"),
        ({"mask_embedding": {"rounds": 0}}, "mask_embedding.rounds: must"),
        ({"mask_embedding": {"color": 0}}, "mask_embedding.color: unknown key"),
        ({"clustering": {"num_clusters": 1}}, "clustering.num_clusters: must"),
        ({"segmentation_weight": 0.0}, "segmentation_weight: must"),
    ],
)
def test_wrong_settings_are_named_with_their_section(changes: dict[str, Any], message: str) -> None:
    arguments = {"base": {"name": "cycle_walk"}, **changes}
    with pytest.raises(ValueError, match=message):
        build_objective("plus_segmentation", build_encoder(layer="layer2"), **arguments)


def test_what_the_base_asks_of_the_recipe_is_asked_of_it_here() -> None:
    with pytest.raises(UsageError, match="lab"):
        toy_recipe(TOY[0].replace(BASE, "{name: color_reconstruction}"))


def test_the_encoder_is_in_the_state_once() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(layer="layer2")
    base = {"name": "cycle_walk", "embedding_dim": 4}
    objective = build_objective("plus_segmentation", encoder, base=base)
    assert objective.encoder is encoder
    held = [name for name in objective.state_dict() if name.endswith("encoder.conv1.weight")]
    assert sorted(held) == ["base.encoder.conv1.weight", "segmentation.segmenter.mask_encoder.conv1.weight"]


WALK = {"name": "cycle_walk", "patch_size": 16, "patch_stride": 8, "embedding_dim": 4}
COLORS = {"name": "color_reconstruction", "radius": 2, "memory": "momentum", "momentum": 0.75}
SIZES = {"width": 4, "depth": 1, "mask_dim": 4, "hidden_dim": 4}


def beside(base: dict[str, Any], **options: Any) -> Objective:
    torch.manual_seed(0)
    masks = {**SIZES, **options.pop("mask_embedding", {})}
    clusters = {"num_clusters": 2, "short_side": None}
    return build_objective(
        "plus_segmentation", ToyEncoder(), base=base, clustering=clusters, mask_embedding=masks, **options
    )


def test_the_total_is_the_bases_plus_the_weighted_term_and_terms_are_unweighted(tmp_path: Path) -> None:
    objective = beside(WALK, segmentation_weight=0.3).eval()
    clip = masked_clip(objective, tmp_path)
    output = objective(clip)
    torch.manual_seed(0)
    alone = build_objective(encoder=objective.encoder, **WALK)
    alone.load_state_dict(
        {k.removeprefix("base."): v for k, v in objective.state_dict().items() if k.startswith("base.")}
    )
    base = alone.eval()(clip)
    torch.testing.assert_close(output.total, base.total + 0.3 * output.terms["segmentation"])
    assert set(output.terms) == set(base.terms) | {"segmentation", "coarse", "objects", "iou"}
    for name, value in base.terms.items():
        torch.testing.assert_close(output.terms[name], value)


@pytest.mark.parametrize("trains", [True, False])
def test_the_term_trains_the_encoder_only_when_asked_and_the_base_always(
    tmp_path: Path, trains: bool
) -> None:
    gradients = []
    for weight in (1.0, 2.0):
        objective = beside(
            WALK, segmentation_weight=weight, mask_embedding={"encoder_gradient": trains}
        ).eval()
        objective(masked_clip(objective, tmp_path / str(weight))).total.backward()
        gradients.append(objective.encoder.conv.weight.grad)
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    assert torch.allclose(*gradients, rtol=0, atol=1e-6) is not trains


def test_networks_that_follow_the_bases_encoder_follow_after_every_step() -> None:
    objective = beside(COLORS)
    state = {k: v.clone() for k, v in objective.state_dict().items()}
    with torch.no_grad():
        objective.encoder.conv.weight.add_(1.0)  # type: ignore[operator,union-attr]
    objective.after_step()
    follower = "base.memory_encoder.network.conv.weight"
    torch.testing.assert_close(objective.state_dict()[follower], state[follower] + 0.25)


def test_collapse_of_the_base_is_collapse() -> None:
    objective = beside(WALK)
    objective.base.collapse_reason = lambda terms: f"all {terms['x']}"  # type: ignore[operator,union-attr]
    assert objective.collapse_reason({"x": 1.0}) == "all 1.0"
    assert objective.kept_segmenter() is not None
