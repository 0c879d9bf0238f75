"""Frame-mask encoder, mask decoder, soft aggregation and refinement rounds."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vosnet.errors import InputError
from vosnet.models import build_encoder, load_model, save_encoder
from vosnet.models.mask_encoder import MaskEncoder
from vosnet.models.segmenter import MaskSegmenter, refinement_rounds, soft_aggregate

TINY = {"width": 4, "depth": 1, "mask_dim": 6, "hidden_dim": 8}


@pytest.mark.parametrize("output_stride", [4, 8])
@pytest.mark.parametrize("size", [(64, 48), (61, 45)], ids=["even", "odd"])
def test_features_lie_on_the_visual_encoders_grid(output_stride: int, size: tuple[int, int]) -> None:
    images = torch.randn(1, 3, *size)
    grid = build_encoder(layer="layer2", output_stride=output_stride)(images).shape[-2:]
    segmenter = MaskSegmenter(output_stride=output_stride, **TINY)
    embedded = segmenter.embed(images, torch.rand(1, 2, 7, 5))
    assert embedded.features.shape == (2, 6, *grid)
    assert embedded.fine.shape[-2:] == (-(-size[0] // 4), -(-size[1] // 4))


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("upsample", [True, False])
def test_a_round_answers_every_object_of_every_image(skips: bool, upsample: bool) -> None:
    segmenter = MaskSegmenter(skips=skips, upsample=upsample, **TINY)
    masks = torch.rand(2, 3, 4, 5)
    logits = segmenter.refine(torch.randn(2, 3, 32, 40), torch.randn(2, 3, 6, 4, 5), masks, masks)
    assert logits.shape == ((2, 3, 8, 10) if upsample else (2, 3, 4, 5))
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in segmenter.parameters())


def test_the_bottleneck_trunk_has_four_times_the_channels() -> None:
    encoder = MaskEncoder(arch="resnet50", width=4, depth=1, out_dim=5)
    out = encoder(torch.randn(1, 3, 32, 32), torch.rand(1, 32, 32))
    assert (out.fine.shape[1], out.middle.shape[1], out.features.shape) == (16, 32, (1, 5, 4, 4))


def test_objects_are_independent_of_each_other() -> None:
    segmenter = MaskSegmenter(**TINY).eval()
    images, support, masks = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 6, 4, 4), torch.rand(1, 3, 4, 4)
    with torch.no_grad():
        together = segmenter.refine(images, support, masks, masks)
        alone = segmenter.refine(images, support[:, 1:2], masks[:, 1:2], masks[:, 1:2])
    torch.testing.assert_close(together[:, 1:2], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("upsample", [True, False])
def test_with_residual_a_decoder_that_says_nothing_copies_in_every_round(upsample: bool) -> None:
    segmenter = MaskSegmenter(residual=True, upsample=upsample, **TINY).eval()
    torch.nn.init.zeros_(segmenter.mask_decoder.logit.weight)
    images, support = torch.randn(1, 3, 32, 32), torch.randn(1, 2, 6, 4, 4)
    copied = torch.tensor([0.2, 0.7]).view(1, 2, 1, 1).expand(1, 2, 4, 4)

    def rounds(count: int) -> list[Tensor]:
        coarse = copied[:, :count]
        with torch.no_grad():
            return refinement_rounds(
                lambda m: segmenter.refine(images, support[:, :count], m, coarse), coarse, 2
            )

    first, second = rounds(2)
    torch.testing.assert_close(first[0, 1:, 0, 0], 0.5 * torch.tensor([0.2, 0.7]).logit())
    torch.testing.assert_close(second, first)
    for logits in rounds(1):  # an object by itself is copied exactly
        torch.testing.assert_close(logits.softmax(1)[:, 1], torch.full_like(logits[:, 1], 0.2))


def test_with_residual_no_gradient_passes_through_the_copied_mask() -> None:
    segmenter = MaskSegmenter(residual=True, **TINY)
    support = torch.randn(1, 2, 6, 4, 4, requires_grad=True)
    copied = torch.rand(1, 2, 4, 4, requires_grad=True)
    segmenter.refine(torch.randn(1, 3, 32, 32), support, torch.rand(1, 2, 4, 4), copied).sum().backward()
    assert copied.grad is None
    assert support.grad is not None


def test_the_mask_reaches_the_features_and_random_numbers_follow_the_seed() -> None:
    torch.manual_seed(5)
    first = MaskSegmenter(**TINY).eval()
    torch.manual_seed(5)
    second = MaskSegmenter(**TINY).eval()
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        blank = first.embed(image, torch.zeros(1, 1, 32, 32)).features
        same = second.embed(image, torch.zeros(1, 1, 32, 32)).features
        full = first.embed(image, torch.ones(1, 1, 32, 32)).features
    assert torch.equal(blank, same)
    assert (blank - full).abs().max() > 1e-3


def aggregated_by_definition(probs: Tensor) -> Tensor:
    """Background is the product of all 1 - p; a softmax over log-odds of background and objects."""
    joint = torch.cat([(1 - probs).prod(1, keepdim=True), probs], dim=1)
    odds = joint / (1 - joint)
    return odds / odds.sum(1, keepdim=True)


def test_soft_aggregation_follows_its_definition() -> None:
    logits = 3 * torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    expected = aggregated_by_definition(logits.double().sigmoid())
    torch.testing.assert_close(soft_aggregate(logits).softmax(1).double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("value", "winner"), [(-200.0, 0), (200.0, 1)])
def test_soft_aggregation_stands_extreme_logits(value: float, winner: int) -> None:
    logits = torch.full((1, 2, 1, 1), -200.0)
    logits[0, 0] = value
    logits.requires_grad_()
    probs = soft_aggregate(logits).softmax(1)
    probs[:, winner].log().sum().backward()
    assert probs[0, winner].item() == pytest.approx(1.0, abs=1e-5)
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_a_slot_without_object_changes_nothing() -> None:
    logits = torch.randn(1, 2, 3, 3)
    probs = soft_aggregate(logits, torch.tensor([[True, False]])).softmax(1)
    assert float(probs[:, 2].max()) == 0.0
    torch.testing.assert_close(probs[:, :2], soft_aggregate(logits[:, :1]).softmax(1))


def test_each_round_sees_the_probabilities_of_the_one_before() -> None:
    seen = []

    def refine(masks: Tensor) -> Tensor:
        seen.append(masks)
        return masks * 4 - 1

    coarse = torch.rand(1, 2, 3, 3)
    outputs = refinement_rounds(refine, coarse, 3)
    assert len(outputs) == len(seen) == 3
    assert torch.equal(seen[0], coarse)
    for before, now in zip(outputs, seen[1:]):
        torch.testing.assert_close(now, before.softmax(1)[:, 1:])


@pytest.mark.parametrize("half", [True, False])
def test_a_checkpoint_holds_it_beside_the_encoder(tmp_path: Path, half: bool) -> None:
    segmenter, encoder = MaskSegmenter(skips=False, **TINY), build_encoder(layer="layer2")
    path = tmp_path / "model.safetensors"
    save_encoder(path, encoder, {}, half=half, segmenter=segmenter)
    loaded = load_model(path).segmenter()
    assert loaded.settings == segmenter.settings
    for name, tensor in segmenter.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    assert not loaded.training
    torch.testing.assert_close(
        load_model(path).encoder.conv1.weight, encoder.conv1.weight, rtol=1e-3, atol=1e-4
    )


def test_a_checkpoint_that_describes_another_network_is_refused(tmp_path: Path) -> None:
    segmenter = MaskSegmenter(**TINY)
    segmenter.settings["width"] = 8
    save_encoder(tmp_path / "a.safetensors", build_encoder(layer="layer2"), {}, segmenter=segmenter)
    with pytest.raises(InputError) as caught:
        load_model(tmp_path / "a.safetensors").segmenter()
    assert caught.value.code == "E274"
