"""`tools/train.py` and `tools/recipes.py` as people call them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.toy_training import TOY, losses, train_toy
from vosnet.commands import recipes, train
from vosnet.commands.cli import run
from vosnet.commands.recipes import find_recipe
from vosnet.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(TOY)
    return path


def tool(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]


@pytest.mark.parametrize("command", ["train", "recipes"])
def test_help_has_examples_fits_the_screen_and_does_not_import_torch(command: str) -> None:
    script = (
        "import sys\n"
        f"from vosnet.commands.{command} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**ENVIRONMENT, "COLUMNS": "100"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"python tools/{command}.py") >= 3
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_f01_a_typo_ends_with_2_and_leaves_nothing_on_disk(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.write_text(TOY.replace("  lr:", "  learning_rate:"))
    out = toy.parent / "run"
    assert run(train.main, [str(toy), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert f"{toy}:23: unknown key 'learning_rate' in section 'optimizer'; did you mean 'lr'?" in error
    assert "Traceback" not in error
    assert not out.exists()


def test_without_the_data_set_it_says_what_is_missing_and_what_to_run_instead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "ytvos"
    argv = [
        str(ROOT / "recipes" / "dul_ytvos.yaml"),
        f"data.sources.0.root={missing}",
        "--out",
        str(tmp_path / "run"),
    ]
    assert run(train.main, argv) == 4
    error = capsys.readouterr().err
    assert str(missing) in error
    assert "train/JPEGImages/VIDEO/00000.jpg" in error
    assert "recipes/dul_clips.yaml" in error
    assert "recipes/demo.yaml" in error
    assert len(error.splitlines()) < 10
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()  # somebody's own folder stays, empty as it was
    assert run(train.main, argv) == 4
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_ends_with_2_and_leaves_nothing_on_disk(
    toy: Path, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    out = toy.parent / "run"
    assert run(train.main, [str(toy), "--out", str(out), "--device", device]) == 2
    error = capsys.readouterr().err
    assert f"E162 device {device!r}" in error
    assert "bug" not in error
    assert not out.exists()


def test_torchrun_trains_with_two_ranks(tmp_path: Path) -> None:
    overrides = [
        "data.sources.0.count=4", "data.sources.0.num_frames=16", "data.sources.0.size=[48, 64]",
        "data.crop_size=32", "data.short_side=[32, 49]", "encoder.layer=layer2", "objective.grid_size=2",
        "objective.cross_view_grid_size=2", "schedule={steps: 2}", "training.batch_size=4",
        "training.workers=0", "training.log_steps=1",
    ]  # fmt: skip
    out = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [
        *launcher,
        *tool("train", "recipes/demo.yaml", *overrides, "--out", out, "--device", "cpu")[1:],
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "on cpu x 2 ranks" in done.stderr
    assert json.loads((out / "env.json").read_text())["ranks"] == 2
    assert list(losses(out)) == [1, 2]
    assert (out / "checkpoints" / "last" / "model.safetensors").is_file()


def test_f37_interrupt_saves_within_seconds_ends_with_130_and_leaves_no_process(toy: Path) -> None:
    out = toy.parent / "run"
    overrides = ["schedule={steps: 100000}", "training.workers=2", "data.cache_mb=0"]
    process = subprocess.Popen(
        tool("train", toy, *overrides, "--out", out, "--progress", "json"),
        env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not ((out / "metrics.jsonl").exists() and len(losses(out)) >= 2):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert time.monotonic() - began < 30
    assert "--resume auto continues" in error
    assert any(
        json.loads(line)["progress"] == "training" for line in error.splitlines() if line.startswith("{")
    )
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    done = len(losses(out))
    steps = f"schedule={{steps: {done + 1}}}"
    argv = [str(toy), steps, "data.cache_mb=0", "--out", str(out), "--resume", "auto", "--device", "cpu"]
    assert run(train.main, argv) == 0
    assert len(losses(out)) == done + 1
    whole = ["schedule={steps: 2}"]
    train_toy(toy.parent / "whole", *whole)
    assert losses(toy.parent / "whole") == dict(list(losses(out).items())[:2])


def test_recipes_lists_shows_validates_and_compares(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(recipes.main, ["list", "--json"]) == 0
    assert "dul_ytvos" in json.loads(capsys.readouterr().out)
    assert run(recipes.main, ["show", "demo"]) == 0
    assert capsys.readouterr().out == (ROOT / "recipes" / "demo.yaml").read_text()
    assert run(recipes.main, ["show", "demo", "seed=9", "--resolved"]) == 0
    assert "seed: 9\n" in capsys.readouterr().out
    assert run(recipes.main, ["validate", "demo"]) == 0
    assert capsys.readouterr().out.endswith("valid\n")
    assert run(recipes.main, ["validate", "demo", "optimizer.lr=fast"]) == 2
    assert "optimizer.lr must be a number" in capsys.readouterr().err
    assert run(recipes.main, ["diff", "dul_ytvos", "dul_kinetics", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data.order"] == ["permuted", "kept"]


def test_recipes_are_found_by_name_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [find_recipe(name) for name in ("demo", "demo.yaml", "recipes/demo.yaml")] == 3 * [
        ROOT / "recipes" / "demo.yaml"
    ]
    with pytest.raises(UsageError, match="E102"):
        find_recipe("elsewhere/demo.yaml")
    (tmp_path / "demo.yaml").write_text("title: mine")
    assert find_recipe("demo.yaml") == Path("demo.yaml")


def test_a_wheel_carries_the_recipes_where_an_installed_package_looks_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (ROOT / "pyproject.toml").read_text()
    section = settings.partition("[tool.hatch.build.targets.wheel.force-include]")[2]
    assert section.splitlines()[1].startswith('"recipes" = "vosnet/recipes"')
    (tmp_path / "vosnet" / "recipes").mkdir(parents=True)
    monkeypatch.setattr(recipes.resources, "files", lambda package: tmp_path / package)
    assert recipes.recipe_folder() == tmp_path / "vosnet" / "recipes"


def test_recipes_copies_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "mine.yaml"
    assert run(recipes.main, ["copy", "dul_clips", str(target)]) == 0
    assert target.read_text() == (ROOT / "recipes" / "dul_clips.yaml").read_text()
    assert run(recipes.main, ["copy", "demo", str(target)]) == 4
    assert "exists already" in capsys.readouterr().err
    assert run(recipes.main, ["show", "nonsense"]) == 2
    assert "dul_ytvos" in capsys.readouterr().err
