"""Options that are declared once: what the command line gives, and what Python gives."""

import argparse
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

import vosnet
from tests.support.data_roots import moving_squares, write_davis_root, write_results
from vosnet.commands import evaluate, propagate
from vosnet.errors import UsageError
from vosnet.evaluation.options import EvaluateOptions
from vosnet.export.options import ExportOptions, PropagateOptions
from vosnet.options import add_options, given_options, option, parse_assignments, switches


@dataclass(frozen=True, kw_only=True)
class Example:
    radius: int = option("cells", 3, group="a", type=int)
    quick_check: bool = option("less", False, group="a")
    overlay: bool = option("no picture", True, group="a", flag="--no-overlay")
    kinds: tuple[str, ...] = option("kinds", ("x",), group="a", nargs="+", convert=tuple)
    folders: tuple[str, ...] = option("folders", (), group="a", action="append")
    values: dict[str, Any] = switches("values", group="a", flag="--set")
    other: str = "not an option"


def parse(*argv: str) -> Example:
    parser = argparse.ArgumentParser()
    add_options(Example, {"a": parser.add_argument_group("a")})
    return Example(**given_options(Example, parser.parse_args(argv)))


def test_defaults_come_from_the_dataclass_alone() -> None:
    assert parse() == Example()
    assert (Example().radius, Example().quick_check, Example().overlay) == (3, False, True)
    assert (Example().kinds, Example().folders, Example().values) == (("x",), (), {})


def test_what_is_given_is_converted_and_repeated_options_add_up() -> None:
    got = parse(
        "--radius", "5", "--quick-check", "--no-overlay", "--kinds", "y", "z", "--folders", "a",
        "--folders", "b", "--set", "k=3", "--set", "name=x", "share=0.5",
    )  # fmt: skip
    assert (got.radius, got.quick_check, got.overlay, got.kinds) == (5, True, False, ("y", "z"))
    assert got.folders == ["a", "b"]
    assert got.values == {"k": 3, "name": "x", "share": 0.5}
    assert parse().values == {}, "what one command got must not stay"


@pytest.mark.parametrize("wrong", ["k", "k=["])
def test_an_assignment_that_is_none_is_named(wrong: str) -> None:
    with pytest.raises(UsageError, match="E136 --set takes KEY=VALUE"):
        parse_assignments([wrong])


DEFAULTS = {
    EvaluateOptions: {
        "preset": None, "switches": {}, "device": "auto", "adaptation": None, "existing": "refuse",
        "dataset": "davis", "root": None, "split": None, "annotations": (), "train_meta": None,
        "results": None, "checkpoint": None, "compare": None, "out": None, "curve_every": 0, "json": None,
        "csv": None, "picture": None, "allow_missing": False, "submission": None, "workers": None,
        "progress": "auto",
    },
    PropagateOptions: {
        "preset": None, "switches": {}, "device": "auto", "adaptation": None, "existing": "refuse",
        "start": 0, "end": None, "stride": 1, "direction": "auto", "resize_mask": "never",
        "mask_from_jpeg": False, "on_bad_frame": "hold", "decode_timeout_s": None, "checkpoint": None,
        "allow_degrade": False, "export": ExportOptions(),
    },
    ExportOptions: {
        "formats": ("palette",), "overlay": True, "colors": "davis", "opacity": 0.5, "contour": True,
        "progress": "auto", "save_every": 50,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", list(DEFAULTS))
def test_what_a_command_does_when_nothing_is_said(kind: type) -> None:
    needed = {"video": Path("v"), "masks": {}, "out": Path("o")} if kind is PropagateOptions else {}
    if kind is EvaluateOptions:
        needed = {"root": Path("r"), "split": "val", "checkpoint": "random"}
    made = kind(**needed)
    got = {entry.name: getattr(made, entry.name) for entry in fields(kind) if entry.name not in needed}
    assert got == {name: value for name, value in DEFAULTS[kind].items() if name not in needed}


@pytest.mark.parametrize("command", [evaluate, propagate])
def test_every_option_reaches_its_field(command: Any) -> None:
    """An option whose group or name is wrong would be dropped without a word."""
    done = subprocess.run(
        [sys.executable, "-c", f"from {command.__name__} import main; main(['--help'])"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    kinds = [EvaluateOptions] if command is evaluate else [PropagateOptions, ExportOptions]
    for entry in (entry for kind in kinds for entry in fields(kind) if entry.metadata):
        flag = entry.metadata["flag"] or "--" + entry.name.replace("_", "-")
        assert f"  {flag} " in done.stdout or f"  {flag}\n" in done.stdout


def test_python_evaluates_as_the_command_does(tmp_path: Path) -> None:
    root = write_davis_root(tmp_path / "davis", {"dog": moving_squares()})
    results = write_results(tmp_path / "results", {"dog": moving_squares()})
    said: list[str] = []
    options = vosnet.EvaluateOptions(
        root=root, split="val", results=results, json=tmp_path / "n.json", workers=1, progress="quiet"
    )
    evaluation = vosnet.evaluate(options, said.append)
    assert evaluation is not None
    assert evaluation.overall["JF_mean"] == 1
    assert said[0].startswith("sequence")
    assert (tmp_path / "n.json").is_file()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"results": Path("r"), "root": None}, "--root and --split"),
        ({}, "give one of"),
        ({"results": Path("r"), "checkpoint": "random"}, "give one of"),
        ({"results": Path("r"), "workers": 0}, "--workers"),
        ({"results": Path("r"), "curve_every": 5}, "go with --adapt only"),
        ({"results": Path("r"), "existing": "resume"}, "--resume goes with --checkpoint only"),
        ({"results": Path("r"), "existing": "overwrite"}, "--overwrite goes with --checkpoint only"),
        ({"results": Path("r"), "out": Path("o")}, "--out goes with --checkpoint only"),
        ({"results": Path("r"), "switches": {"k": 3}}, "--set goes with --checkpoint only"),
        ({"compare": (Path("a"), Path("b")), "submission": Path("z")}, "--submission and --compare"),
    ],
)
def test_options_that_exclude_each_other_are_refused_in_python_too(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=f"E140 .*{message}"):
        EvaluateOptions(**{"root": Path("x"), "split": "val", **values})


def test_ranks_need_a_folder_that_all_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="under torchrun masks need --out"):
        EvaluateOptions(root=Path("x"), split="val", checkpoint="random")
    EvaluateOptions(root=Path("x"), split="val", checkpoint="random", out=Path("o"))
