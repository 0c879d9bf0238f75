"""Sequences spread over ranks and processes."""

import os
import time
from pathlib import Path

import pytest

from vosnet.errors import OutOfMemoryError
from vosnet.evaluation.spread import map_processes, share
from vosnet.progress import Progress
from vosnet.runtime import Ranks


def shares(lengths: dict[str, int], size: int) -> list[list[str]]:
    return [share(list(lengths), lengths.__getitem__, Ranks(rank, size)) for rank in range(size)]


def test_the_heaviest_goes_first_to_the_rank_with_the_least() -> None:
    lengths = {"a": 1, "b": 1, "c": 1, "d": 1, "e": 4}
    assert shares(lengths, 2) == [["e"], ["a", "b", "c", "d"]]
    assert shares({"a": 2, "b": 3, "c": 9}, 3) == [["c"], ["b"], ["a"]]
    assert shares({"a": 5}, 2) == [["a"], []]


def test_one_rank_takes_everything_and_gathers_itself() -> None:
    lengths = {"a": 1, "b": 2}
    assert sorted(shares(lengths, 1)[0]) == ["a", "b"]
    assert Ranks().gather({"x": 1}) == [{"x": 1}]


def slower_first(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_results_come_in_the_order_of_the_items_whatever_finishes_first() -> None:
    items = [0.4, 0.0, 0.1]
    for workers in (1, 2):
        with Progress(len(items), "score", mode="quiet") as progress:
            assert map_processes(slower_first, items, workers=workers, progress=progress) == items
            assert progress.done == 3


def killed(item: Path) -> None:
    os._exit(9)


def test_a_killed_process_is_told_as_short_memory() -> None:
    with (
        Progress(2, "score", mode="quiet") as progress,
        pytest.raises(OutOfMemoryError, match="E502"),
    ):
        map_processes(killed, [Path("a"), Path("b")], workers=2, progress=progress)
