"""Mask-embedded segmentation against a loop in float64, and what its loss counts."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.vosnet.models.test_segmenter import TINY, aggregated_by_definition
from vosnet.matching import Neighborhood, dense_readout, nearest_attention, nearest_readout
from vosnet.objectives.mask_targets import choose_objects, object_target
from vosnet.objectives.segmentation_term import SegmentationSettings, SegmentationTerm
from vosnet.objectives.settings import settings_from
from vosnet.synthetic import make_clip
from vosnet.transforms import normalize_images
from vosnet_kernels import workspace_limit


def problem(B: int = 2, T: int = 3, C: int = 7, grid: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "features": torch.randn(B, T, C, grid, grid, generator=generator),
        "frames": torch.randn(B, T, 3, 8 * grid, 8 * grid, generator=generator),
        "labels": torch.randint(0, 4, (B, T, grid, grid), generator=generator),
        "draws": torch.rand(B, 4, generator=generator),
    }


def embedding(num_clusters: int = 4, **changes: Any) -> SegmentationTerm:
    torch.manual_seed(0)
    keys = {"clustering": {"num_clusters": num_clusters}, "mask_embedding": {**TINY, **changes}}
    return SegmentationTerm(8, settings_from(SegmentationSettings, keys))


def affinity_by_loop(query: Tensor, memory: Tensor, temperature: float) -> Tensor:
    """A of one sample, [T * h * w, h * w]: for each query cell a softmax over all reference cells."""
    queries, cells = query.flatten(1).t().tolist(), memory.transpose(0, 1).flatten(1).t().tolist()
    columns = []
    for q in queries:
        logits = torch.tensor([sum(a * b for a, b in zip(q, r)) / temperature for r in cells]).double()
        columns.append(torch.exp(logits - logits.max()) / torch.exp(logits - logits.max()).sum())
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize(("channels", "values"), [(7, 3), (3, 20)], ids=["narrow-value", "wide-value"])
def test_the_dense_readout_is_the_affinity_applied(channels: int, values: int) -> None:
    query, memory = torch.randn(1, channels, 3, 4), torch.randn(1, 2, channels, 3, 4)
    value = torch.randn(1, 2, values, 3, 4)
    affinity = affinity_by_loop(query[0].double(), memory[0].double(), 0.7)
    torch.testing.assert_close(affinity.sum(0), torch.ones(12, dtype=torch.float64))
    expected = value[0].double().transpose(0, 1).flatten(1) @ affinity
    got = dense_readout(query, memory, value, temperature=0.7)
    torch.testing.assert_close(got[0].flatten(1).double(), expected, rtol=1e-4, atol=1e-5)


def test_weights_of_a_query_cell_sum_to_one_over_the_references() -> None:
    ones = torch.ones(1, 3, 1, 5, 5)
    readout = dense_readout(torch.randn(1, 8, 5, 5), torch.randn(1, 3, 8, 5, 5), ones, temperature=0.1)
    torch.testing.assert_close(readout, torch.ones(1, 1, 5, 5))


def test_nearest_attention_is_the_read_out_that_masks_are_propagated_with() -> None:
    query, memory = torch.randn(2, 5, 4, 3), torch.randn(2, 2, 5, 4, 3)
    value = torch.rand(2, 2, 6, 4, 3)
    with workspace_limit(500):  # a few query cells at a time
        got = nearest_attention(query, memory, value, k=3, temperature=0.7)
    everywhere = Neighborhood("square", radius=1, global_frames=2)
    for b in range(2):
        expected = nearest_readout(
            query[b], memory[b], value[b], k=3, temperature=0.7, neighborhood=everywhere
        )
        torch.testing.assert_close(got[b], expected, rtol=1e-4, atol=1e-5)


def test_nearest_attention_over_all_cells_is_the_dense_readout_and_so_is_its_gradient() -> None:
    inputs = [torch.randn(1, 5, 3, 3), torch.randn(1, 2, 5, 3, 3), torch.randn(1, 2, 4, 3, 3)]
    gradients = []
    for readout in (dense_readout, functools.partial(nearest_attention, k=18)):
        leaves = [x.clone().requires_grad_() for x in inputs]
        readout(*leaves, temperature=0.5).square().sum().backward()
        gradients.append([x.grad for x in leaves])
    for dense, nearest in zip(*gradients, strict=True):
        torch.testing.assert_close(nearest, dense, rtol=1e-3, atol=1e-4)


def test_nearest_attention_has_the_gradient_of_finite_differences() -> None:
    query, memory = torch.randn(1, 4, 2, 2).double(), torch.randn(1, 2, 4, 2, 2).double()
    value = torch.rand(1, 2, 2, 2, 2).double()
    step, at = 1e-3, (0, 1, 1, 0)

    def total(moved: float) -> Tensor:
        shifted = query.clone()
        shifted[at] += moved
        return nearest_attention(shifted, memory, value, k=3, temperature=1.0).square().sum()

    query.requires_grad_()
    nearest_attention(query, memory, value, k=3, temperature=1.0).square().sum().backward()
    with torch.no_grad():
        slope = (total(step) - total(-step)) / (2 * step)
    assert query.grad is not None
    # float32 sums of about 1, differences over 2e-3: 1e-7 / 2e-3
    assert abs(float(query.grad[at]) - float(slope)) < 1e-3


def test_clips_of_a_batch_are_read_out_by_themselves() -> None:
    query, memory, value = torch.randn(3, 5, 4, 4), torch.randn(3, 2, 5, 4, 4), torch.randn(3, 2, 3, 4, 4)
    together = dense_readout(query, memory, value, temperature=0.4)
    for b in range(3):
        affinity = affinity_by_loop(query[b], memory[b], 0.4)
        expected = value[b].double().transpose(0, 1).flatten(1) @ affinity
        torch.testing.assert_close(together[b].flatten(1).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rollout", ["copied", "decoded"])
def test_in_a_rollout_later_frames_are_references_with_their_own_masks(rollout: str) -> None:
    data, valid = problem(B=1, T=3), torch.ones(1, 2, dtype=torch.bool)
    term = embedding(rollout=rollout, k=5, upsample=False).eval()
    given = torch.rand(1, 1, 2, 4, 4)
    with torch.no_grad():
        first, second = term.predict(data["features"], data["frames"], given, valid)
        kept = first.coarse[:, None] if rollout == "copied" else first.rounds[-1].softmax(1)[:, None, 1:]
        (later,) = term.predict(data["features"], data["frames"], torch.cat([given, kept], dim=1), valid)
    torch.testing.assert_close(later.coarse, second.coarse)
    torch.testing.assert_close(later.rounds[-1], second.rounds[-1])


@pytest.mark.parametrize("rollout", ["copied", "decoded"])
def test_no_gradient_flows_through_the_masks_that_a_rollout_remembers(rollout: str) -> None:
    data, valid = problem(B=2, T=3), torch.ones(2, 2, dtype=torch.bool)
    features = data["features"].requires_grad_()
    term = embedding(rollout=rollout, upsample=False).eval()
    given = torch.rand(2, 1, 2, 4, 4)
    learning = [features, *term.parameters()]
    first, second = term.predict(features, data["frames"], given, valid)
    kept = first.coarse[:, None] if rollout == "copied" else first.rounds[-1].softmax(1)[:, None, 1:]
    constant = torch.cat([given, kept.detach()], dim=1)
    (later,) = term.predict(features, data["frames"], constant, valid)
    for got, expected in zip(
        torch.autograd.grad(second.rounds[-1].square().sum() + second.coarse.square().sum(), learning),
        torch.autograd.grad(later.rounds[-1].square().sum() + later.coarse.square().sum(), learning),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_samples_of_a_batch_do_not_meet() -> None:
    term, data = embedding(rounds=2).eval(), problem(B=3)
    masks, valid = torch.rand(3, 2, 2, 4, 4), torch.tensor([[True, True], [True, False], [True, True]])
    with torch.no_grad():
        (together,) = term.predict(data["features"], data["frames"], masks, valid)
        for b in range(3):
            part = slice(b, b + 1)
            (alone,) = term.predict(data["features"][part], data["frames"][part], masks[part], valid[part])
            torch.testing.assert_close(together.coarse[part], alone.coarse)
            torch.testing.assert_close(together.rounds[1][part], alone.rounds[1], rtol=1e-4, atol=1e-5)


def test_the_copied_masks_own_cross_entropy_has_its_weight() -> None:
    plain, terms = embedding().eval().loss(**problem())
    weighted, _ = embedding(coarse_weight=0.3).eval().loss(**problem())
    torch.testing.assert_close(weighted, plain + 0.3 * terms["coarse"])
    torch.testing.assert_close(plain.detach(), terms["segmentation"])


def test_the_temperature_may_be_the_root_of_the_channels_and_features_may_stay_as_they_are() -> None:
    data, valid = problem(B=1), torch.ones(1, 2, dtype=torch.bool)
    masks = torch.rand(1, 2, 2, 4, 4)
    raw = embedding(temperature="sqrt_dim", normalize=False).eval()
    with torch.no_grad():
        (got,) = raw.predict(data["features"], data["frames"], masks, valid)
    affinity = affinity_by_loop(data["features"][0, 2], data["features"][0, :2], 7**0.5)
    expected = masks[0].double().transpose(0, 1).flatten(1) @ affinity
    torch.testing.assert_close(got.coarse[0].flatten(1).double(), expected, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_mean_over_queries_rounds_and_known_cells() -> None:
    term, data = embedding(rounds=2, num_objects=2, upsample=False, rollout="copied").eval(), problem(B=2)
    data["labels"][1, 2, :2] = -1
    loss, terms = term.loss(**data)
    chosen, valid = choose_objects(data["labels"][:, :1], data["draws"], 4, 2)
    masks = (data["labels"][:, :1, None] == chosen[:, None, :, None, None]).float()
    values, overlaps = [], []
    for t, prediction in enumerate(term.predict(data["features"], data["frames"], masks, valid), start=1):
        target = object_target(data["labels"][:, t], chosen, valid)
        for logits in prediction.rounds:
            values.append(functional.cross_entropy(logits, target, ignore_index=-1))
    for b in range(2):
        for o in range(2):
            known = target[b] >= 0
            said, true = (logits[b].argmax(0) == o + 1) & known, target[b] == o + 1
            union = float((said | true).sum())
            overlaps.append(float((said & true).sum()) / union if union else 1.0)
    torch.testing.assert_close(loss, torch.stack(values).mean())
    assert float(terms["iou"]) == pytest.approx(sum(overlaps) / 4)
    assert float(terms["objects"]) == 2


def test_slots_without_an_object_get_nothing_and_count_for_nothing() -> None:
    term, data = embedding(num_objects=3, upsample=False).eval(), problem(B=2)
    data["labels"] = data["labels"] % 2  # two clusters for three slots
    _, terms = term.loss(**data)
    assert float(terms["objects"]) == 2
    chosen, valid = choose_objects(data["labels"][:, :2], data["draws"], 4, 3)
    assert valid.sum(1).tolist() == [2, 2]
    masks = (data["labels"][:, :2, None] == chosen[:, None, :, None, None]).float()
    (prediction,) = term.predict(data["features"], data["frames"], masks, valid)
    probs = prediction.rounds[-1].detach().softmax(1)[:, 1:]
    assert float(probs[~valid].max()) < 1e-6


def test_a_rollout_learns_from_every_frame_after_the_first() -> None:
    data = problem(B=1, T=3)
    whole, _ = embedding(rollout="decoded").eval().loss(**data)
    parts = []
    for t in (1, 2):
        only = data["labels"].clone()
        only[:, 3 - t] = -1  # the other one is unknown: it counts for nothing
        parts.append(embedding(rollout="decoded").eval().loss(**{**data, "labels": only})[0])
    torch.testing.assert_close(whole, parts[0] + parts[1])


def test_labels_may_be_as_fine_as_the_answers() -> None:
    term, data = embedding().eval(), problem()
    fine = data["labels"].repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert term.segmenter.answer_grid((4, 4)) == tuple(fine.shape[-2:])
    assert embedding(upsample=False).segmenter.answer_grid((4, 4)) == (4, 4)
    coarse_loss, coarse = term.loss(**data)
    fine_loss, terms = term.loss(**{**data, "labels": fine})
    torch.testing.assert_close(terms["coarse"], coarse["coarse"])
    torch.testing.assert_close(fine_loss, coarse_loss, rtol=0.05, atol=0)  # V sees sharper mask edges


def test_the_prediction_follows_the_papers_equations() -> None:
    term = embedding(rounds=2).eval()
    data = problem(B=1)
    masks, valid = torch.rand(1, 2, 2, 4, 4), torch.ones(1, 2, dtype=torch.bool)
    with torch.no_grad():
        (got,) = term.predict(data["features"], data["frames"], masks, valid)
    features = functional.normalize(data["features"].double(), dim=2)[0]
    affinity = affinity_by_loop(features[2], features[:2], 0.05)
    term = term.double()
    frames = data["frames"].double()[0]
    seen, supports = [], []
    for o in range(2):
        cells = masks[0, :, o].double().flatten()
        seen.append((cells @ affinity).view(4, 4))
        V_r = [
            term.segmenter.mask_encoder(frames[r : r + 1], masks[0, r : r + 1, o]).features for r in (0, 1)
        ]
        stacked = torch.stack([v[0] for v in V_r], dim=1).flatten(1)  # [D', 2 * h * w]
        supports.append((stacked @ affinity).view(1, -1, 4, 4))
    torch.testing.assert_close(got.coarse[0].double(), torch.stack(seen), rtol=1e-4, atol=1e-5)
    for round_logits in got.rounds:
        answers = []
        for o in range(2):
            own = term.segmenter.mask_encoder(frames[2:], seen[o][None])
            answers.append(term.segmenter.mask_decoder(supports[o], own)[0].sigmoid())
        expected = aggregated_by_definition(torch.stack(answers)[None])
        torch.testing.assert_close(round_logits.softmax(1).double(), expected, rtol=1e-3, atol=1e-4)
        seen = list(expected[0, 1:].detach())


def test_objects_are_drawn_among_the_clusters_that_the_references_show() -> None:
    labels = torch.full((200, 2, 3, 3), -1)
    labels[:, 0, 0], labels[:, 1, 1] = 1, 3
    labels[:, 0, 1] = 2
    chosen, valid = choose_objects(labels, torch.rand(200, 4), num_clusters=5, num_objects=2)
    assert bool(valid.all())
    assert {int(i) for i in chosen.flatten()} == {1, 2, 3}
    assert bool((chosen[:, 0] != chosen[:, 1]).all())
    assert len({tuple(row) for row in chosen.tolist()}) == 6  # every clip draws for itself
    _, few = choose_objects(labels[:, :1] * (labels[:, :1] == 1), torch.rand(200, 4), 5, 4)
    assert few.sum(1).tolist() == [2] * 200  # clusters 0 and 1 are all there is


def test_the_target_leaves_out_what_is_unknown_and_calls_the_rest_background() -> None:
    target = object_target(
        torch.tensor([[[3, 1, 0, -1]]]), torch.tensor([[1, 0]]), torch.tensor([[True, False]])
    )
    assert target.tolist() == [[[0, 1, 0, -1]]]


def test_unknown_query_cells_do_not_count() -> None:
    term, data = embedding().eval(), problem(B=1)
    known, _ = term.loss(**data)
    part = data["labels"].clone()
    part[:, -1, :2] = -1
    half, _ = term.loss(**{**data, "labels": part})
    assert half != known
    nothing = torch.full_like(part, -1)
    none, terms = embedding().loss(**{**data, "labels": nothing})
    none.backward()
    assert (none.item(), float(terms["objects"])) == (0.0, 0.0)


@pytest.mark.parametrize("flows", [True, False])
def test_the_gradient_reaches_the_visual_encoder_only_when_asked(flows: bool) -> None:
    data = problem()
    data["features"].requires_grad_()
    term = embedding(encoder_gradient=flows, coarse_weight=0.5, normalize=False, temperature="sqrt_dim")
    loss, _ = term.loss(**data)
    loss.backward()
    assert (data["features"].grad is not None) == flows
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in term.parameters())


def test_only_the_latest_references_are_read() -> None:
    data = problem(T=4)
    late = {name: value[:, 1:] if name != "draws" else value for name, value in data.items()}
    one, _ = embedding(num_references=2).eval().loss(**data)
    two, _ = embedding().eval().loss(**late)
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_objects": 9}, "num_objects: must"),
        ({"rounds": 0}, "rounds: must"),
        ({"temperature": 0.0}, "temperature: must"),
        ({"num_references": 0}, "num_references: must"),
        ({"k": 0}, "k: must"),
        ({"rollout": "answers"}, "rollout: must"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        embedding(**changes)


@pytest.mark.parametrize(("channels", "values"), [(16, 5), (7, 30)], ids=["narrow-value", "wide-value"])
def test_the_weights_are_never_held(channels: int, values: int) -> None:
    query, memory = torch.randn(1, channels, 6, 6), torch.randn(1, 2, channels, 6, 6)
    value = torch.randn(1, 2, values, 6, 6, requires_grad=True)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # an error where only the materialising one is left
        dense_readout(query, memory, value, temperature=0.1).sum().backward()
    assert value.grad is not None


def test_decoding_learns_more_of_a_clip_than_copying_shows() -> None:
    clip = make_clip(3, num_frames=16, size=(48, 48), num_objects=2, num_distractors=0)
    frames = normalize_images(torch.from_numpy(clip.frames[[0, 8, 15]]).permute(0, 3, 1, 2))[None]
    labels = torch.from_numpy(clip.masks[[0, 8, 15], 4::8, 4::8]).long()[None]
    torch.manual_seed(0)
    features = torch.nn.functional.avg_pool2d(frames[0], 8)[None]  # mean colors: a poor encoder
    term = embedding(num_objects=2, num_clusters=3, width=8)
    optimizer = torch.optim.Adam(term.parameters(), lr=1e-2)
    for _ in range(40):
        loss, terms = term.loss(features, frames, labels, torch.zeros(1, 4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert terms["segmentation"] < 0.5 * terms["coarse"]
    assert terms["iou"] > 0.8
