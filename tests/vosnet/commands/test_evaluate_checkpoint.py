"""`evaluate --checkpoint`: propagate every sequence, then score; resumable, spread over torchrun's ranks."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.data_roots import moving_squares, write_davis_root, write_frames, write_youtube_vos_root
from vosnet import Propagator
from vosnet.commands.cli import run
from vosnet.commands.evaluate import main
from vosnet.evaluation.davis import DavisBenchmark
from vosnet.evaluation.evaluator import evaluate_in_memory
from vosnet.evaluation.spread import share
from vosnet.masks import read_mask, write_mask
from vosnet.models import build_encoder, save_encoder
from vosnet.runtime import Ranks

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sequences = {name: moving_squares(4) for name in ("ant", "bee")}
    return write_davis_root(tmp_path_factory.mktemp("data") / "davis", sequences)


def arguments(davis: Path, out: Path, *more: str) -> list[str]:
    return [
        "--root", str(davis), "--split", "val", "--checkpoint", "random", "--device", "cpu",
        "--out", str(out), "--workers", "1", "--set", "layer=layer2", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def result(davis: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of one run, shared because it takes the longest."""
    out = tmp_path_factory.mktemp("result") / "out"
    assert run(main, arguments(davis, out)) == 0
    return out


def test_masks_numbers_and_picture_are_kept_and_score_the_same_again(
    davis: Path, result: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = read_mask(result / "bee/00000.png")
    assert (first.kind, first.object_ids) == ("palette", [1, 2])
    files = {path.name for path in result.iterdir()}
    assert {"evaluation.json", "evaluation_worst.png", "global_results-val.csv"} <= files
    again = [
        "--root",
        str(davis),
        "--split",
        "val",
        "--results",
        str(result),
        "--workers",
        "1",
        "--json",
        "-",
    ]
    assert run(main, again) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((result / "evaluation.json").read_text())


def test_propagating_in_memory_gives_the_numbers_of_the_command(davis: Path, result: Path) -> None:
    propagator = Propagator.from_checkpoint("random", device="cpu", layer="layer2", empty_objects="lose")
    evaluation = evaluate_in_memory(propagator, DavisBenchmark(davis, "val"))
    assert evaluation.objects == json.loads((result / "evaluation.json").read_text())["objects"]


def test_f28_an_existing_result_is_refused_resumed_or_overwritten(
    davis: Path, result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(result, out)
    assert run(main, arguments(davis, out)) == 2
    assert "not empty" in capsys.readouterr().err
    whole = (out / "bee/00003.png").read_bytes()
    (out / "bee/00003.png").unlink()
    kept = (out / "ant/00003.png").stat().st_mtime_ns
    (out / "notes.txt").write_text("mine")
    assert run(main, arguments(davis, out, "--resume")) == 0
    assert capsys.readouterr().out.startswith("encoder: random")
    assert (out / "bee/00003.png").read_bytes() == whole
    assert (out / "ant/00003.png").stat().st_mtime_ns == kept
    assert run(main, [*arguments(davis, out, "--resume"), "--set", "k=3"]) == 2
    assert run(main, arguments(davis, out, "--overwrite")) == 0
    assert (out / "ant/00003.png").stat().st_mtime_ns > kept
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--set", "k=3"], "protocol was"),
        (["--checkpoint", "{tmp}/other.safetensors"], "encoder was 'random"),
        (["--split", "{tmp}/less.txt"], r"sequences was \['ant', 'bee'\], now \['bee'\]"),
        (["--root", "{tmp}/davis"], "root was"),
        (["--adapt", "--adapt-set", "iterations=1"], "adaptation was None"),
    ],
)
def test_a_result_is_not_resumed_with_other_settings(
    davis: Path,
    result: Path,
    tmp_path: Path,
    changed: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    shutil.copytree(result, out)
    shutil.copytree(davis, tmp_path / "davis")
    (tmp_path / "less.txt").write_text("bee")
    save_encoder(tmp_path / "other.safetensors", build_encoder(layer="layer2", seed=1), {})
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    options = [option.format(tmp=tmp_path) for option in changed]
    assert run(main, arguments(davis, out, "--resume", *options)) == 2
    assert re.search(f"E119 .*{message}", capsys.readouterr().err)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_switches_add_up_over_the_set_options_and_objects_stay_lost_by_default(
    davis: Path, result: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (tmp_path / "one.txt").write_text("ant")
    more = ["--split", str(tmp_path / "one.txt"), "--set", "k=3", "--set", "radius=2", "num_recent=1"]
    assert run(main, arguments(davis, out, *more)) == 0
    protocols = [
        json.loads((folder / ".vosnet-settings.json").read_text())["protocol"] for folder in (out, result)
    ]
    names = ("layer", "k", "radius", "num_recent", "empty_objects")
    assert [protocols[0][name] for name in names] == ["layer2", "3", "2", "1", "lose"]
    assert protocols[1]["empty_objects"] == "lose"


def test_an_object_that_is_lost_fails_its_sequence_when_asked(
    davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(davis, tmp_path / "davis")
    first = tmp_path / "davis/Annotations/480p/bee/00000.png"
    mask = read_mask(first).ids.copy()
    mask[mask == 2] = 0
    mask[1, 1] = 2  # one pixel, between the middles of the cells
    write_mask(first, mask)
    asked = ["--set", "empty_objects=refuse", "mask_down=nearest"]
    assert run(main, arguments(tmp_path / "davis", tmp_path / "out", *asked)) != 0
    assert re.search("bee: .*object 2 .*is empty on the feature grid", capsys.readouterr().err)


def test_one_broken_sequence_leaves_the_others_done_and_no_number_not_even_an_old_one(
    davis: Path, result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(davis, tmp_path / "davis")
    davis = tmp_path / "davis"
    for frame in (davis / "JPEGImages/480p/bee").iterdir():
        frame.write_bytes(b"no picture")
    out = tmp_path / "out"
    shutil.copytree(result, out)
    assert run(main, arguments(davis, out, "--overwrite")) == 3
    captured = capsys.readouterr()
    assert "1 of 2 sequences failed" in captured.err
    assert "bee:" in captured.err
    assert "overall" not in captured.out
    assert (out / "ant/00003.png").is_file()
    assert not (out / "evaluation.json").exists()


def test_old_numbers_do_not_stay_beside_masks_that_a_resumed_run_could_not_complete(
    davis: Path, tmp_path: Path
) -> None:
    shutil.copytree(davis, tmp_path / "davis")
    out = tmp_path / "out"
    assert run(main, arguments(tmp_path / "davis", out)) == 0
    reports = ["evaluation.json", "evaluation_worst.png", "global_results-val.csv"]
    assert all((out / name).is_file() for name in reports)
    (out / "bee/00003.png").unlink()
    for frame in (tmp_path / "davis/JPEGImages/480p/bee").iterdir():
        frame.write_bytes(b"no picture")
    assert run(main, arguments(tmp_path / "davis", out, "--resume")) == 3
    assert not any((out / name).exists() for name in reports)
    assert (out / "ant/00003.png").is_file()


def test_youtube_vos_objects_that_appear_later_are_propagated(tmp_path: Path) -> None:
    root = write_youtube_vos_root(tmp_path / "ytvos")
    write_frames(root / "valid_all_frames/JPEGImages/aa11", [f"{t:05d}" for t in range(26)])
    write_frames(root / "valid_all_frames/JPEGImages/bb22", [f"{t:05d}" for t in range(0, 26, 5)])
    out = tmp_path / "out"
    code = run(
        main,
        ["--dataset", "ytvos", "--root", str(root), "--split", "valid", "--checkpoint", "random",
         "--out", str(out), "--device", "cpu", "--set", "layer=layer2", "--workers", "1"],
    )  # fmt: skip
    assert code == 0
    given = read_mask(root / "valid/Annotations/aa11/00010.png").ids
    result = read_mask(out / "aa11/00010.png").ids
    assert np.array_equal(result == 2, given == 2)
    assert read_mask(out / "aa11/00005.png").object_ids == [1]
    assert not (out / "aa11/00003.png").exists()  # a frame of the video that is not asked for
    overall = json.loads((out / "evaluation.json").read_text())["overall"]
    assert {"J_seen", "F_seen", "J_unseen", "F_unseen", "overall"} <= set(overall)


def torchrun(davis: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """`evaluate` on two ranks, its progress as JSON."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, str(ROOT / "tools/evaluate.py"), *arguments(davis, out, "--progress", "json")],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_two_ranks_give_the_result_of_one(davis: Path, result: Path, tmp_path: Path) -> None:
    done = torchrun(davis, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("overall") == 1  # one rank reports
    shown = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    mine = next(row for row in shown if row["progress"] == "propagate, process 0 of 2")
    assert (mine["done"], mine["total"]) == (4, 4)  # frames of one of the two sequences
    for name in ("evaluation.json", "ant/00003.png", "bee/00003.png"):
        assert (tmp_path / "two" / name).read_bytes() == (result / name).read_bytes()


def test_what_fails_on_another_rank_is_reported_by_the_first(davis: Path, tmp_path: Path) -> None:
    shutil.copytree(davis, tmp_path / "davis")
    for frame in (tmp_path / "davis/JPEGImages/480p/bee").iterdir():
        frame.write_bytes(b"no picture")
    done = torchrun(tmp_path / "davis", tmp_path / "two")
    assert done.returncode != 0
    assert "E302 1 of 2 sequences failed" in done.stderr
    assert "E233" not in done.stderr  # the first rank does not go on to score what is incomplete
    assert "bee: " in done.stderr
    assert "overall" not in done.stdout
    assert (tmp_path / "two/ant/00003.png").is_file()


def test_ranks_share_sequences_by_length_without_loss() -> None:
    lengths = {"a": 90, "b": 10, "c": 50, "d": 45, "e": 5}
    parts = [share(list(lengths), lengths.__getitem__, Ranks(rank, 2)) for rank in (0, 1)]
    assert sorted(parts[0] + parts[1]) == sorted(lengths)
    assert abs(sum(map(lengths.__getitem__, parts[0])) - 100) <= 5
