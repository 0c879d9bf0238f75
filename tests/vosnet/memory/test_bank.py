"""The memory bank reads what the context rules say, in bounded memory and without re-computing anything."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from vosnet.matching import Neighborhood, nearest_readout
from vosnet.memory import CONTEXT_RULES, MemoryBank, context_frames


def stamp(index: int, channels: int = 1) -> Tensor:
    """A frame that carries its index in every cell."""
    return torch.full((channels, 2, 3), float(index))


def read_indices(bank: MemoryBank, context_index: int = 0) -> list[int]:
    features, values, dilations = bank.read(bank.contexts[context_index])
    assert dilations == [1] * len(features)
    assert torch.equal(features[:, 0, 0, 0], values[:, 0, 0, 0])
    return [int(i) for i in features[:, 0, 0, 0]]


@pytest.mark.parametrize("rule", CONTEXT_RULES)
@pytest.mark.parametrize("k", [1, 3, 50])
def test_the_frames_read_are_those_of_the_rule_with_at_most_k_copies(rule: str, k: int) -> None:
    bank = MemoryBank(rule, num_recent=6, k=k)
    bank.append(stamp(0), stamp(0), reference_for=[0])
    for t in range(1, 30):
        expected = Counter(context_frames(t, 6, rule))
        got = read_indices(bank)
        assert got[0] == 0
        assert set(got) == set(expected)
        for frame, count in Counter(got).items():
            assert count == expected[frame] if frame else min(expected[frame], k) <= count <= expected[frame]
        bank.append(stamp(t), stamp(t))


@pytest.mark.parametrize("rule", CONTEXT_RULES)
def test_each_reference_frame_has_its_own_context(rule: str) -> None:
    bank = MemoryBank(rule, num_recent=4, k=50)
    bank.append(stamp(0), stamp(0), reference_for=[0])
    for t in range(1, 25):
        starts = [0, *([6] if t > 6 else []), *([9] if t > 9 else [])]
        for i, start in enumerate(starts):
            assert Counter(read_indices(bank, i)) == Counter(context_frames(t, 4, rule, start)), (t, start)
        new = {6: [1], 9: [2]}.get(t, [])
        channels = 1 + (t >= 6) + (t >= 9)
        bank.append(stamp(t), stamp(t, channels), reference_for=new)


def test_leaving_out_copies_beyond_k_does_not_change_the_read_out() -> None:
    generator = torch.Generator().manual_seed(0)
    k, frames = 5, torch.nn.functional.normalize(torch.randn(12, 8, 6, 7, generator=generator), dim=1)
    values = torch.rand(12, 2, 6, 7, generator=generator)
    bank = MemoryBank("replicate", num_recent=9, k=k)
    bank.append(frames[0], values[0], reference_for=[0, 1])
    for t in range(1, 11):
        full = context_frames(t, 9, "replicate")
        for global_frames in (0, 1):
            options = {"k": k, "temperature": 0.05, "neighborhood": Neighborhood("disc", 3, global_frames)}
            memory, value, _ = bank.read(bank.contexts[0])
            got = nearest_readout(frames[t], memory, value, **options)
            expected = nearest_readout(frames[t], frames[full], values[full], **options)
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
            assert len(memory) <= len(full)
        bank.append(frames[t], values[t])


def test_channels_belong_to_the_reference_frame_that_named_them_last() -> None:
    bank = MemoryBank("queue", num_recent=2, k=3)
    bank.append(stamp(0), stamp(0, 3), reference_for=[0, 1, 2])
    bank.append(stamp(1), stamp(1, 3), reference_for=[2])
    assert [context.channels for context in bank.contexts] == [[0, 1], [2]]
    bank.append(stamp(2), stamp(2, 3), reference_for=[0, 1, 2])
    assert [(context.start, context.channels) for context in bank.contexts] == [(2, [0, 1, 2])]


def test_new_channels_are_empty_in_older_frames() -> None:
    bank = MemoryBank("clamp", num_recent=3, k=3)
    bank.append(stamp(5), stamp(5, 2), reference_for=[0, 1])
    bank.append(stamp(6), stamp(6, 4), reference_for=[2, 3])
    bank.append(stamp(7), stamp(7, 4))
    values = bank.read(bank.contexts[1]).values
    assert values.shape == (3, 2, 2, 3)
    assert [int(v) for v in values[:, 0, 0, 0]] == [6, 6, 7]


def test_f13_memory_does_not_grow_with_the_length() -> None:
    bank = MemoryBank("replicate", num_recent=5, k=3)
    sizes = []
    bank.append(stamp(0), stamp(0, 2), reference_for=[0, 1])
    for t in range(1, 500):
        bank.append(stamp(t), stamp(t, 2))
        bank.read(bank.contexts[0])
        sizes.append(bank.num_bytes)
    assert len(set(sizes)) == 1


@pytest.mark.parametrize("rule", CONTEXT_RULES)
@pytest.mark.parametrize("length", [3, 6, 14])
def test_forgetting_keeps_the_most_recent_frames(rule: str, length: int) -> None:
    bank = MemoryBank(rule, num_recent=8, k=50)
    bank.append(stamp(0), stamp(0), reference_for=[0])
    for t in range(1, length):
        bank.append(stamp(t), stamp(t))
    bank.forget_oldest(4)
    for t in range(length, length + 8):
        assert Counter(read_indices(bank)) == Counter(context_frames(t, 4, rule))
        bank.append(stamp(t), stamp(t))


def test_a_loaded_bank_reads_the_same() -> None:
    bank = MemoryBank("replicate", num_recent=3, k=9)
    bank.append(stamp(0), stamp(0), reference_for=[0])
    for t in range(1, 8):
        bank.append(stamp(t), stamp(t, 2), reference_for=[1] if t == 3 else [])
    tensors, described = bank.state()
    other = MemoryBank("replicate", num_recent=3, k=9)
    other.load_state({name: tensor.clone() for name, tensor in tensors.items()}, described)
    for t in range(8, 14):
        for i in (0, 1):
            assert read_indices(other, i) == read_indices(bank, i)
        bank.append(stamp(t), stamp(t, 2))
        other.append(stamp(t), stamp(t, 2))


@pytest.mark.parametrize("rule", CONTEXT_RULES)
def test_the_caller_may_reuse_the_tensors_it_handed_over(rule: str) -> None:
    bank, features, values = MemoryBank(rule, num_recent=3, k=9), stamp(0), stamp(0, 2)
    for t in range(9):
        features.fill_(t)
        values.fill_(t)
        bank.append(features, values, reference_for={0: [0], 4: [1]}.get(t, []))
    features.fill_(99)
    values.fill_(99)
    for i, start in enumerate((0, 4, 0, 4)):
        assert Counter(read_indices(bank, i % 2)) == Counter(context_frames(9, 3, rule, start))


@pytest.mark.parametrize("rule", CONTEXT_RULES)
@pytest.mark.parametrize("num_recent", [0, 1, 2])
def test_few_recent_frames_or_none_are_read_too(rule: str, num_recent: int) -> None:
    bank = MemoryBank(rule, num_recent, k=50)
    bank.append(stamp(0), stamp(0), reference_for=[0])
    for t in range(1, 12):
        assert Counter(read_indices(bank)) == Counter(context_frames(t, num_recent, rule))
        if t > 5:
            assert Counter(read_indices(bank, 1)) == Counter(context_frames(t, num_recent, rule, 5))
        bank.append(stamp(t), stamp(t, 1 + (t >= 5)), reference_for=[1] if t == 5 else [])


def test_a_window_reads_every_copy_of_the_reference_frame() -> None:
    bank = MemoryBank("replicate", num_recent=6, k=None)
    bank.append(stamp(0), stamp(0), reference_for=[0])
    for t in range(1, 10):
        assert sorted(read_indices(bank)) == sorted(context_frames(t, 6, "replicate"))
        bank.append(stamp(t), stamp(t))


def test_shrinking_halves_the_recent_frames_down_to_one() -> None:
    bank = MemoryBank("replicate", num_recent=5, k=9)
    bank.append(stamp(0), stamp(0), reference_for=[0])
    for t in range(1, 8):
        bank.append(stamp(t), stamp(t))
    assert bank.shrink() == "2 recent frames instead of 5 (results change)"
    assert sorted(read_indices(bank)) == [0, 6, 7]
    assert bank.shrink() == "1 recent frames instead of 5 (results change)"
    assert sorted(read_indices(bank)) == [0, 7]
    assert bank.shrink() is None
