"""The paired bootstrap: what two results on the same objects say about their difference."""

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vosnet.errors import InputError
from vosnet.evaluation import evaluate
from vosnet.evaluation.compare import compare_scores
from vosnet.evaluation.options import EvaluateOptions
from vosnet.metrics.summary import STATISTICS
from vosnet.runtime import Ranks

Objects = dict[str, dict[str, float]]


def with_gains(*gains: float) -> tuple[Objects, Objects]:
    """Two results whose J&F differs by `gains`, split unevenly between J and F."""
    base = {f"o{i}": {"J_mean": 0.5, "F_mean": 0.5} for i in range(len(gains))}
    other = {f"o{i}": {"J_mean": 0.5 + 1.5 * g, "F_mean": 0.5 + 0.5 * g} for i, g in enumerate(gains)}
    return base, other


def test_comparison_sees_a_consistent_gain_and_no_gain_in_noise() -> None:
    rng = np.random.default_rng(1)
    base = {f"o{i}": {"J_mean": float(v), "F_mean": float(v)} for i, v in enumerate(rng.random(30))}
    better = {k: {m: v + 0.02 for m, v in s.items()} for k, s in base.items()}
    noisy = {k: {m: v + float(rng.normal(0, 0.1)) for m, v in s.items()} for k, s in base.items()}
    gain = compare_scores(base, better)
    assert gain.difference == pytest.approx(0.02)
    assert gain.low > 0
    assert gain.p_value < 0.001
    assert compare_scores(base, noisy).low < 0 < compare_scores(base, noisy).high
    with pytest.raises(InputError, match="only in one: o0"):
        compare_scores(base, {k: v for k, v in better.items() if k != "o0"})


@pytest.mark.parametrize("gains", [(0.1, 0.08, -0.03, 0.05, -0.02), (-0.1, 0.04, -0.05, 0.03, -0.06)])
def test_interval_and_p_value_are_those_of_all_resamples(gains: tuple[float, ...]) -> None:
    means = np.array([np.mean(draw) for draw in itertools.product(gains, repeat=len(gains))])
    exact = 2 * min((means <= 0).mean(), (means >= 0).mean())  # two-sided
    assert 0.05 < exact < 0.5
    got = compare_scores(*with_gains(*gains))
    assert got.p_value == pytest.approx(exact, abs=4 * (2 * exact / 10_000) ** 0.5)
    assert [got.low, got.high] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.003)


def test_the_p_value_does_not_depend_on_which_result_comes_first() -> None:
    first, second = with_gains(0.1, 0.08, -0.03, 0.05, -0.02)
    forth, back = compare_scores(first, second), compare_scores(second, first)
    assert forth.p_value == back.p_value
    assert (forth.first, forth.second, forth.difference) == (back.second, back.first, -back.difference)
    assert [forth.low, forth.high] == pytest.approx([-back.high, -back.low])


def test_equal_results_have_a_p_value_of_one() -> None:
    got = compare_scores(*with_gains(0.0, 0.0, 0.0))
    assert (got.p_value, got.low, got.high) == (1.0, 0.0, 0.0)


def test_objects_are_listed_with_the_largest_loss_first() -> None:
    got = compare_scores(*with_gains(0.1, -0.2, 0.0, -0.3))
    assert list(got.per_object) == ["o3", "o1", "o2", "o0"]
    assert list(got.per_object.values()) == pytest.approx([-0.3, -0.2, 0.0, 0.1])
    assert (got.first, got.second) == pytest.approx((0.5, 0.4))


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_rank_reports(rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def joined(backend: str, timeout_s: float) -> Iterator[Ranks]:
        yield Ranks(rank, 2)

    monkeypatch.setattr(evaluate, "joined_ranks", joined)
    files = tmp_path / "a.json", tmp_path / "b.json"
    for file, objects in zip(files, with_gains(0.1, -0.2)):
        whole = {name: dict.fromkeys(STATISTICS, 0.5) | scores for name, scores in objects.items()}
        file.write_text(json.dumps({"objects": whole}))
    said: list[str] = []
    report = tmp_path / "report.json"
    got = evaluate.compare(EvaluateOptions(compare=files, json=report), said.append)
    assert (got is not None, bool(said), report.exists()) == ((rank == 0),) * 3
