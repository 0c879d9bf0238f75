"""Random numbers that are a function of a sample's draws."""

import numpy as np
import torch

from vosnet.transforms import more_draws

MASK = 2**64 - 1


def splitmix64_finalizer(x: int) -> int:
    """The published finalizer, in Python's whole numbers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def test_numbers_are_those_of_the_definition() -> None:
    draws = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    got = more_draws(draws, 5, salt=7)
    for sample, row in zip(draws.tolist(), got.tolist()):
        key = 7
        for value in sample:
            key = splitmix64_finalizer((key * 0x9E3779B97F4A7C15 + int(value * 2**24)) & MASK)
        for i, number in enumerate(row, start=1):
            mixed = splitmix64_finalizer((key + i * 0x9E3779B97F4A7C15) & MASK)
            assert number == (mixed >> 40) / 2**24


def test_they_are_uniform_and_independent_of_the_neighbors_in_the_batch() -> None:
    draws = torch.rand(200, 4, generator=torch.Generator().manual_seed(1))
    numbers = more_draws(draws, 500, salt=1)
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    counts, _ = np.histogram(numbers.numpy(), bins=20, range=(0, 1))
    # 5,000 expected in each of 20 bins, standard deviation 69
    assert np.abs(counts - 5000).max() < 5 * 69
    assert torch.equal(more_draws(draws[3:5], 500, salt=1), numbers[3:5])
    other = more_draws(draws, 500, salt=2)
    correlation = float(np.corrcoef(numbers.flatten().numpy(), other.flatten().numpy())[0, 1])
    assert abs(correlation) < 5 / np.sqrt(numbers.numel())
