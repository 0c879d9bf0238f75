"""Every command line of README and docs/ runs, in a quick form where the real one takes long.

What is done with each is in the tables below; nothing is left out silently.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.documents import ROOT, commands
from vosnet.commands import train
from vosnet.commands.cli import COMMANDS
from vosnet.commands.recipes import find_recipe
from vosnet.recipe import load_recipe

# Added to a command so that it takes a second. Everything else about it is as printed.
QUICK: dict[str, list[str]] = {
    "demo": ["--frames", "4", "schedule.steps=1", "training.batch_size=2", "data.sources.0.count=2"],
    "doctor": ["--quick"],
    "evaluate": ["--workers", "1", "--progress", "quiet"],
    "prepare": [],
    "propagate": ["--progress", "quiet"],
    "recipes": [],
}
QUICK_ADAPTATION = ["--adapt-set", "iterations=2", "size=64", "precision=float32"]
# Training: `dul_clips` on `my_videos` takes one step, with these overrides. The others need long, or data
# that is not here: their options are parsed and their recipe is validated with their overrides.
TRAINED = ["dul_clips", "data.sources.0.root=my_videos"]
SMALL_RUN = [
    "encoder.layer=layer2",
    "objective.hidden_dim=16",
    "objective.embedding_dim=8",
    "objective.grid_size=2",
    "objective.cross_view_grid_size=2",
    "data.clip_len=2",
    "data.frame_step=1",
    "data.frame_gap=1",
    "data.crop_size=32",
    "data.short_side=[32,49]",
    "data.decode_short_side=48",
    "data.cache_mb=10",
    "schedule.minutes=null",
    "schedule.steps=1",
    "training.batch_size=2",
    "training.precision=float32",
    "training.workers=0",
]
# Folders that the pages name outside the current one.
MOVED = {"/data/": "data/"}
# pip install, python -m venv, make, python -m MODULE and torchrun's own options are only looked at: the file,
# extra, target or module named must exist.


def once() -> list[Any]:
    """Each different command once, under the place where it stands first."""
    first: dict[tuple[str, ...], str] = {}
    for place, words in commands():
        first.setdefault(tuple(words), place)
    return [pytest.param(place, list(words), id=place) for words, place in first.items()]


@pytest.mark.parametrize(("place", "words"), once())
def test_every_command_runs(place: str, words: list[str], workplace: Path) -> None:
    program, *arguments = words
    assert program in PROGRAMS, f"{place}: nothing is known about {program}; say here how it is tried"
    PROGRAMS[program](arguments)


def test_every_subcommand_is_shown_in_the_pages() -> None:
    shown = {words[1] for _, words in commands() if words[0] == "vosnet"}
    assert set(COMMANDS) <= shown, set(COMMANDS) - shown


def run_vosnet(arguments: list[str]) -> None:
    name, *rest = arguments
    if name == "train":
        run_train(rest)
        return
    rest = [_moved(word) for word in rest]
    main = importlib.import_module(f"vosnet.commands.{name}").main
    if "--help" in rest:
        with pytest.raises(SystemExit, match="^0$"):
            main(rest)
        return
    quick = QUICK[name] + (QUICK_ADAPTATION if "--adapt" in rest else [])
    _remove_target(rest)
    if "--resume" in rest:  # there must be something to continue
        assert main([*(word for word in rest if word != "--resume"), *quick]) == 0
    assert main([*rest, *quick]) == 0


def run_train(arguments: list[str]) -> None:
    options = train.make_train_parser().parse_intermixed_args(arguments)
    load_recipe(find_recipe(options.recipe), options.overrides)
    if arguments[:2] != TRAINED:
        return
    _remove_target(arguments)
    quick = [*SMALL_RUN, "--device", "cpu", "--progress", "quiet"]
    if options.resume != "never":  # there must be something to continue
        begun = str(options.out) if options.resume == "auto" else options.resume
        shutil.rmtree(begun, ignore_errors=True)
        assert train.main([*arguments[:2], "--out", begun, *quick]) == 0
    assert train.main([*arguments, *quick]) == 0


def run_torchrun(arguments: list[str]) -> None:
    """As one process, without torchrun."""
    script = next(word for word in arguments if word.startswith("tools/"))
    assert (ROOT / script).is_file()
    run_vosnet([Path(script).stem, *arguments[arguments.index(script) + 1 :]])


def run_python(arguments: list[str]) -> None:
    if arguments[0].startswith("tools/"):
        assert (ROOT / arguments[0]).is_file()
        done = subprocess.run(
            [sys.executable, str(ROOT / arguments[0]), "--help"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        known = set(re.findall(r"--[\w-]+", done.stdout))
        assert {word.partition("=")[0] for word in arguments[1:] if word.startswith("--")} <= known
        return
    assert arguments[0] == "-m", arguments
    assert arguments[1] == "venv" or importlib.util.find_spec(arguments[1]), arguments


def look_at_pip(arguments: list[str]) -> None:
    assert (ROOT / "constraints.txt").is_file()
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    for named in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
        assert set(named.split(",")) <= set(extras)


def look_at_make(arguments: list[str]) -> None:
    for target in arguments:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "vosnet": run_vosnet,
    "torchrun": run_torchrun,
    "python": run_python,
    "python3": run_python,
    "pip": look_at_pip,
    "make": look_at_make,
}


def _moved(word: str) -> str:
    for absolute, relative in MOVED.items():
        word = word.replace(absolute, relative)
    return word


def _remove_target(arguments: list[str]) -> None:
    """Nothing stands where the command writes, unless it says that something does."""
    if "--overwrite" in arguments:
        return
    if arguments[:1] == ["copy"]:
        Path(arguments[-1]).unlink()
    if "--out" in arguments:
        shutil.rmtree(arguments[arguments.index("--out") + 1], ignore_errors=True)
