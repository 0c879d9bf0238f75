"""The benchmark's cases build, and every way in it gives the op's answer, at toy size."""

from typing import Any

import pytest
import torch

from tests.benchmarks.test_kernels import (
    KNN_CASES,
    KNN_WAYS,
    READOUT_CASES,
    READOUT_WAYS,
    Case,
    assert_same_readout,
)
from tests.support import rivals
from tests.support.machine import describe, peak_extra_bytes
from vosnet_kernels import knn_propagate, windowed_readout
from vosnet_kernels.knn_propagate.reference import candidates

TOY = Case(T=2, C=8, h=16, w=32, radius=3, M=3)
CPU = torch.device("cpu")


@pytest.mark.parametrize("way", KNN_WAYS)
def test_every_way_to_propagate_agrees(way: str) -> None:
    tensors = TOY.inputs(CPU)
    options: dict[str, Any] = {"k": 5, "temperature": 0.05, "radius": TOY.radius}
    assert_same_readout(KNN_WAYS[way](*tensors, **options), knn_propagate(*tensors, **options))


def test_the_dense_way_in_chunks_is_the_dense_way() -> None:
    tensors = TOY.inputs(CPU)
    options: dict[str, Any] = {"k": 5, "temperature": 0.05, "radius": TOY.radius}
    whole = rivals.knn_dense(*tensors, **options)
    torch.testing.assert_close(rivals.knn_dense(*tensors, **options, max_scores=5000), whole)


@pytest.mark.parametrize("way", READOUT_WAYS)
def test_every_way_to_read_out_agrees(way: str) -> None:
    tensors = TOY.inputs(CPU)
    options: dict[str, Any] = {"radius": TOY.radius, "temperature": 0.05}
    eager = {"compiled": False} if way.startswith("flex") else {}
    got = READOUT_WAYS[way](*tensors, **options, **eager)
    assert_same_readout(got, windowed_readout(*tensors, **options))


def test_pairs_are_counted_as_the_definition_counts_them() -> None:
    assert TOY.pairs() == TOY.T * int(candidates(TOY.h, TOY.w, TOY.radius, "square").sum())


def test_the_cases_are_the_sizes_of_real_use() -> None:
    sizes = {name: (case.h, case.w, case.T, case.C) for name, case in {**READOUT_CASES, **KNN_CASES}.items()}
    assert sizes["480p-C256"] == (60, 107, 20, 256)
    assert sizes["train-T5"] == (96, 96, 5, 256)


def test_the_results_say_on_what_they_were_measured() -> None:
    facts = describe()
    assert facts["torch"] == torch.__version__
    assert facts["cpu_backend"]


def test_peak_memory_sees_a_large_temporary() -> None:
    extra = peak_extra_bytes(lambda: torch.ones(64 * 2**20).sum(), CPU)
    if extra is None:
        pytest.skip("this system does not tell a process its high-water mark")
    assert extra > 200 * 2**20
