"""`demo`: train, propagate and evaluate with a clip of four frames."""

from pathlib import Path

import numpy as np
import pytest

from vosnet.commands.cli import run
from vosnet.commands.demo import main
from vosnet.evaluation.results import Truth, score_folder
from vosnet.evaluation.tables import collect
from vosnet.synthetic import make_clip

QUICK = [
    "data.sources.0.count=2", "data.sources.0.num_frames=16", "data.sources.0.size=[48, 64]",
    "data.crop_size=32", "data.short_side=[32, 49]", "objective.grid_size=2",
    "objective.cross_view_grid_size=2", "schedule={steps: 1}", "training.batch_size=2", "training.workers=0",
]  # fmt: skip


def test_the_demo_says_how_good_both_results_are_and_where_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(main, [*QUICK, "--frames", "4"]) == 0
    printed = capsys.readouterr().out
    for name in (
        "clip.mp4",
        "first.png",
        "trained/overlay.mp4",
        "trained/sheet.jpg",
        "random/masks/00003.png",
    ):
        assert (tmp_path / "demo" / name).is_file(), name
    true = make_clip(7, num_frames=4).masks
    stems = tuple(f"{t:05d}" for t in range(4))
    truth = Truth("clip", stems, tuple(np.asarray(mask) for mask in true), frozenset(stems))
    for name in ("random", "trained"):
        means = collect([score_folder(truth, tmp_path / "demo" / name / "masks")]).overall
        row = f"J&F {means['JF_mean']:.3f}, J {means['J_mean']:.3f}, F {means['F_mean']:.3f}"
        assert f"{name:8} {row}" in printed
    assert "encoder: random encoder" in printed
    assert "against random weights" in printed


def test_a_training_that_fails_ends_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(main, ["schedule={steps: none}"]) == 2
    assert not (tmp_path / "demo/clip.mp4").exists()
