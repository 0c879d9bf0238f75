"""The spaced bank reads what its rule says, holds no more, and goes on from a saved state."""

import pytest
import torch
from torch import Tensor

from vosnet.memory import REFERENCES, References, SpacedBank, spaced_frames


def stamp(index: int, channels: int = 1) -> Tensor:
    """A frame that carries its index in every cell."""
    return torch.full((channels, 2, 3), float(index))


def read_indices(bank: SpacedBank, context_index: int = 0) -> list[int]:
    features, values, _ = bank.read(bank.contexts[context_index])
    assert torch.equal(features[:, 0, 0, 0], values[:, 0, 0, 0])
    return [int(i) for i in features[:, 0, 0, 0]]


def filled(references: References, length: int) -> SpacedBank:
    """A bank in which channel 1 joined at frame 4."""
    bank = SpacedBank(references)
    bank.append(stamp(0), stamp(0), reference_for=[0])
    for t in range(1, length):
        bank.append(stamp(t), stamp(t, 1 + (t >= 4)), reference_for=[1] if t == 4 else [])
    return bank


@pytest.mark.parametrize("references", REFERENCES)
def test_each_context_reads_the_frames_of_the_rule(references: References) -> None:
    for t in range(1, 30):
        bank = filled(references, t)
        assert read_indices(bank) == spaced_frames(t, references)
        if t > 4:
            assert read_indices(bank, 1) == spaced_frames(t, references, start=4)


@pytest.mark.parametrize(("references", "most"), [(1, 3), (3, 5), (5, 9)])
def test_f13_memory_does_not_grow_with_the_length(references: References, most: int) -> None:
    one = 2 * 3 * 4  # bytes of a channel
    for length in (40, 41, 200):
        assert filled(references, length).num_bytes <= most * 3 * one


def test_memory_of_all_references_grows_by_a_frame_per_frame() -> None:
    assert filled("all", 50).num_bytes - filled("all", 40).num_bytes == 10 * 3 * 2 * 3 * 4


def test_channels_that_joined_later_are_empty_in_older_frames() -> None:
    bank = SpacedBank(3)
    bank.append(stamp(5), stamp(5, 2), reference_for=[0, 1])
    bank.append(stamp(6), stamp(6, 2))
    bank.append(stamp(7), stamp(7, 3), reference_for=[0, 2])
    bank.append(stamp(8), stamp(8, 3))
    assert [(context.start, context.channels) for context in bank.contexts] == [(0, [1]), (2, [0, 2])]
    bank.contexts[0].channels = [1, 2]
    assert bank.read(bank.contexts[0]).values[:, :, 0, 0].tolist() == [[5, 0], [6, 0], [8, 8]]


def test_the_caller_may_reuse_the_tensors_it_handed_over() -> None:
    bank, features, values = SpacedBank(5), stamp(0), stamp(0, 2)
    for t in range(12):
        features.fill_(t)
        values.fill_(t)
        bank.append(features, values, reference_for={0: [0], 4: [1]}.get(t, []))
    features.fill_(99)
    values.fill_(99)
    assert read_indices(bank) == spaced_frames(12, 5)
    assert read_indices(bank, 1) == spaced_frames(12, 5, start=4)


@pytest.mark.parametrize("references", REFERENCES)
def test_a_loaded_bank_reads_the_same(references: References) -> None:
    bank, other = filled(references, 13), SpacedBank(references)
    tensors, described = bank.state()
    other.load_state({name: tensor.clone() for name, tensor in tensors.items()}, described)
    for t in range(13, 25):
        for i in (0, 1):
            assert read_indices(other, i) == read_indices(bank, i)
        for each in (bank, other):
            each.append(stamp(t), stamp(t, 2))


@pytest.mark.parametrize(("before", "after"), [("all", 5), (5, 3), (3, 1)])
def test_shrinking_goes_on_with_fewer_references(before: References, after: References) -> None:
    bank = filled(before, 20)
    assert bank.shrink() == f"{after} references instead of {before} (results change)"
    for t in range(20, 30):
        for i, start in enumerate((0, 4)):
            assert read_indices(bank, i) == spaced_frames(t, after, start)
        bank.append(stamp(t), stamp(t, 2))


def test_one_reference_cannot_shrink() -> None:
    assert filled(1, 9).shrink() is None


@pytest.mark.parametrize("references", REFERENCES)
def test_a_frame_is_searched_as_far_as_its_distance_from_the_query_says(references: References) -> None:
    bank = SpacedBank(references, dilation=lambda gap: 100 + gap)
    bank.append(stamp(0), stamp(0), reference_for=[0])
    for t in range(1, 20):
        features, _, dilations = bank.read(bank.contexts[0])
        assert dilations == [100 + t - int(frame) for frame in features[:, 0, 0, 0]]
        bank.append(stamp(t), stamp(t))
