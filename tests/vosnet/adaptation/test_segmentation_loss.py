"""Cross-entropy and Dice, and objects that nobody has annotated yet."""

import torch
import torch.nn.functional as F

from vosnet.adaptation.segmentation_loss import merge_unknown, segmentation_loss

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(2, 4, 5, 6, generator=GENERATOR)
LABELS = torch.randint(0, 4, (2, 5, 6), generator=GENERATOR)
ALL = torch.ones(2, 4, dtype=torch.bool)


def test_without_dice_it_is_cross_entropy() -> None:
    got = segmentation_loss(LOGITS, LABELS, ALL, dice_weight=0.0)
    torch.testing.assert_close(got, F.cross_entropy(LOGITS, LABELS))


def test_dice_is_one_minus_overlap_over_areas() -> None:
    probs, truth = LOGITS.softmax(1), F.one_hot(LABELS, 4).permute(0, 3, 1, 2)
    overlap, areas = (probs * truth).sum((2, 3)), probs.sum((2, 3)) + truth.sum((2, 3))
    expected = (1 - (2 * overlap + 1) / (areas + 1))[:, 1:].mean()
    both = segmentation_loss(LOGITS, LABELS, ALL, dice_weight=2.0)
    torch.testing.assert_close(both - F.cross_entropy(LOGITS, LABELS), 2 * expected)


def test_an_unknown_object_shares_the_backgrounds_probability() -> None:
    known = torch.tensor([[True, True, False, True]] * 2)
    merged = merge_unknown(LOGITS, known).softmax(1)
    plain = LOGITS.softmax(1)
    torch.testing.assert_close(merged[:, 0], plain[:, 0] + plain[:, 2])
    assert not merged[:, 2].any()


def test_background_pixels_do_not_push_an_unknown_object_down() -> None:
    logits = torch.zeros(1, 3, 2, 2)
    logits[:, 2] = 9.0  # sure of object 2 where labels, made before its annotation, say background
    logits.requires_grad_()
    labels = torch.zeros(1, 2, 2, dtype=torch.int64)
    loss = segmentation_loss(logits, labels, torch.tensor([[True, True, False]]), dice_weight=1.0)
    loss.backward()
    assert loss < 0.01
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert segmentation_loss(logits, labels, ALL[:1, :3], dice_weight=1.0) > 5


def test_the_loss_is_its_definition_when_objects_are_unknown() -> None:
    """Unknown objects belong to the background, and Dice is the mean over the known objects of all images."""
    known = torch.tensor([[True, True, False, True], [True, False, False, True]])
    labels = torch.where(known.gather(1, LABELS.flatten(1)).view_as(LABELS), LABELS, 0)
    probs, entropies, dice = LOGITS.softmax(1), [], []
    for n in range(2):
        unknown = [channel for channel in range(4) if not known[n, channel]]
        merged = probs[n].clone()
        merged[0] += merged[unknown].sum(0)
        merged[unknown] = 0
        entropies.append(-merged.gather(0, labels[n][None]).log())
        for channel in range(1, 4):
            if known[n, channel]:
                truth = (labels[n] == channel).float()
                overlap, area = (merged[channel] * truth).sum(), merged[channel].sum() + truth.sum()
                dice.append(1 - (2 * overlap + 1) / (area + 1))
    for weight in (0.0, 0.5, 2.0):
        expected = torch.stack(entropies).mean() + weight * torch.stack(dice).mean()
        torch.testing.assert_close(segmentation_loss(LOGITS, labels, known, dice_weight=weight), expected)
