"""`evaluate` from the command line."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.data_roots import moving_squares, write_davis_root, write_results, write_youtube_vos_root
from vosnet.commands.cli import run
from vosnet.commands.evaluate import main
from vosnet.masks import write_mask

ROOT = Path(__file__).resolve().parents[3]
GOLDEN, DATA = os.environ.get("VOSNET_GOLDEN"), os.environ.get("VOSNET_DATA")


def evaluate(*arguments: object) -> int:
    """The exit code; one process, because starting others takes longer than these small jobs."""
    workers = [] if "--workers" in arguments else ["--workers", "1"]
    return run(main, [str(argument) for argument in [*arguments, *workers]])


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    return write_davis_root(tmp_path / "davis", {"dog": moving_squares(), "cat": moving_squares(objects=1)})


@pytest.fixture
def shifted(tmp_path: Path) -> Path:
    """Every object two pixels too far right."""
    sequences = {
        name: [np.roll(mask, 2, axis=1) for mask in moving_squares(objects=count)]
        for name, count in (("dog", 2), ("cat", 1))
    }
    return write_results(tmp_path / "shifted", sequences)


def test_table_json_csv_and_picture(
    davis: Path, shifted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "report/numbers.json"
    code = evaluate(
        "--dataset", "davis", "--root", davis, "--split", "val", "--results", shifted,
        "--json", target, "--csv", tmp_path / "csv", "--workers", 2,
    )  # fmt: skip
    assert code == 0
    numbers = json.loads(target.read_text())
    assert set(numbers) == {"objects", "overall"}
    assert set(numbers["objects"]) == {"dog_1", "dog_2", "cat_1"}
    keys = {"J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay"}
    assert set(numbers["objects"]["dog_1"]) == keys
    assert set(numbers["overall"]) == keys | {"JF_mean"}
    assert numbers["objects"]["cat_1"]["J_mean"] == pytest.approx(13 / 17)
    assert numbers["overall"]["J_mean"] == pytest.approx(
        np.mean([scores["J_mean"] for scores in numbers["objects"].values()])
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["sequence", "dog", "cat", "overall"]
    assert lines[3].split()[3:] == [f"{numbers['overall'][k]:.3f}" for k in ("JF_mean", "J_mean", "F_mean")]
    total = (tmp_path / "csv/global_results-val.csv").read_text().splitlines()
    assert total[0] == "J&F-Mean,J-Mean,J-Recall,J-Decay,F-Mean,F-Recall,F-Decay"
    assert total[1].split(",")[0] == f"{numbers['overall']['JF_mean']:.3f}"
    rows = (tmp_path / "csv/per-sequence_results-val.csv").read_text().splitlines()
    assert rows[1] == f"dog_1,{13 / 17:.3f},{numbers['objects']['dog_1']['F_mean']:.3f}"
    with Image.open(tmp_path / "report/numbers_worst.png") as picture:
        assert picture.width == 960


@pytest.mark.skipif(not (GOLDEN and DATA), reason="VOSNET_GOLDEN and VOSNET_DATA are not set")
def test_official_numbers_of_osvos(tmp_path: Path) -> None:
    code = evaluate(
        "--root", Path(DATA or "") / "davis", "--split", "2016/dev",
        "--results", Path(GOLDEN or "") / "osvos",
        "--annotations", "Annotations_2017", "--annotations", "Annotations", "--json", tmp_path / "n.json",
    )  # fmt: skip
    assert code == 0
    official = json.loads((Path(GOLDEN or "") / "metrics_dev.json").read_text())
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert numbers["overall"] == pytest.approx(official["overall"], abs=1e-9)
    assert numbers["objects"].keys() == official["objects"].keys()


def test_f42_all_problems_of_all_sequences_and_no_number(
    davis: Path, shifted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shifted / "dog/00002.png").unlink()
    write_mask(shifted / "cat/00003.png", np.zeros((10, 10), np.uint8))
    target = tmp_path / "n.json"
    assert evaluate("--root", davis, "--split", "val", "--results", shifted, "--json", target) == 4
    captured = capsys.readouterr()
    assert "dog: no result for 1 frame(s): 00002" in captured.err
    assert "cat: size 10x10 where the annotation has 64x48" in captured.err
    assert captured.out == ""
    assert not target.exists()


def test_f42_missing_frames_that_are_allowed_mark_the_table(
    davis: Path, shifted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shifted / "cat/00002.png").unlink()
    code = evaluate(
        "--root", davis, "--split", "val", "--results", shifted, "--allow-missing", "--json", "-"
    )  # fmt: skip
    captured = capsys.readouterr()
    assert code == 0
    assert "INCOMPLETE: 1 missing frames were counted as 0" in captured.err
    numbers = json.loads(captured.out)
    assert numbers["missing"] == {"cat": ["00002"]}
    assert numbers["objects"]["cat_1"]["J_mean"] == pytest.approx(13 / 17 * 3 / 4)


def test_f42_an_old_csv_is_never_read(davis: Path, shifted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shifted / "global_results-val.csv").write_text("J&F-Mean\n0.999\n")
    (shifted / "per-sequence_results-val.csv").write_text("Sequence,J-Mean,F-Mean\nold_1,0.999,0.999\n")
    assert evaluate("--root", davis, "--split", "val", "--results", shifted) == 0
    assert "0.999" not in capsys.readouterr().out


def test_compare_two_folders_and_two_json_files(
    davis: Path, shifted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    perfect = write_results(tmp_path / "p", {"dog": moving_squares(), "cat": moving_squares(objects=1)})
    for side in (shifted, perfect):
        evaluate("--root", davis, "--split", "val", "--results", side, "--json", side.with_suffix(".json"))
    capsys.readouterr()
    assert evaluate("--root", davis, "--split", "val", "--compare", shifted, perfect) == 0
    folders = capsys.readouterr().out
    jsons = [shifted.with_suffix(".json"), perfect.with_suffix(".json")]
    assert evaluate("--compare", *jsons, "--json", tmp_path / "c.json") == 0
    assert folders.splitlines()[2:] == capsys.readouterr().out.splitlines()[2:]
    comparison = json.loads((tmp_path / "c.json").read_text())
    assert comparison["second"] == 1
    assert comparison["low"] > 0
    jsons[0].write_text("{}")
    assert evaluate("--compare", *jsons) == 4


def test_youtube_vos_four_way_mean_and_submission(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_youtube_vos_root(tmp_path / "ytvos")
    common = [
        "--dataset",
        "ytvos",
        "--root",
        root,
        "--split",
        "valid",
        "--results",
        root / "valid/Annotations",
    ]
    assert evaluate(*common) == 0
    assert (
        "J_seen 1.000, F_seen 1.000, J_unseen 1.000, F_unseen 1.000, overall 1.000" in capsys.readouterr().out
    )
    assert evaluate(*common, "--submission", tmp_path / "s.zip") == 0
    names = zipfile.ZipFile(tmp_path / "s.zip").namelist()
    assert names[0] == "Annotations/aa11/00000.png"
    assert len(names) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--results", "r"], "--root and --split"),
        (["--root", ".", "--split", "x", "--results", "r", "--out", "o"], "--out goes with --checkpoint"),
        (["--root", ".", "--split", "x", "--results", "r", "--workers", "0"], "--workers"),
        (["--root", ".", "--split", "x", "--checkpoint", "random", "--resume", "--overwrite"], "exclude"),
    ],
)
def test_wrong_options_exit_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(*arguments) == 2
    assert message in capsys.readouterr().err


def test_help_is_quick_and_imports_no_torch() -> None:
    script = (
        "import sys; from vosnet.commands.cli import run; from vosnet.commands.evaluate import main\n"
        "code = run(main, ['--help'])\n"
        "sys.exit(code or str({'torch', 'numpy', 'cv2'} & set(sys.modules) or '') or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "."},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("python tools/evaluate.py") >= 3
    assert max(map(len, done.stdout.splitlines())) <= 100
