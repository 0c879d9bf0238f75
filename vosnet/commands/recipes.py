"""`recipes`: list, show, copy, validate and compare recipes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from vosnet import files
from vosnet.commands.cli import make_parser
from vosnet.errors import InputError, UsageError

EXAMPLES = (
    "list",
    "show dul_ytvos seed=1 --resolved",
    "copy dul_clips my.yaml",
    "validate my.yaml optimizer.lr=1e-3",
    "diff dul_ytvos dul_oxuva",
)


def make_recipes_parser() -> argparse.ArgumentParser:
    """The parser of `recipes`."""
    parser = make_parser("recipes", "List, show, copy, validate and compare recipes.", EXAMPLES)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the recipes that come with the project")
    listing.add_argument("--json", action="store_true", help="one JSON object on stdout")
    show = actions.add_parser("show", help="print a recipe")
    show.add_argument("recipe", help="a name from `list`, or a file")
    show.add_argument("overrides", nargs="*", metavar="key=value")
    show.add_argument("--resolved", action="store_true", help="with every default written out")
    copy = actions.add_parser("copy", help="copy a recipe to start your own")
    copy.add_argument("recipe", help="a name from `list`, or a file")
    copy.add_argument("target", type=Path, help="a file that does not exist yet")
    validate = actions.add_parser("validate", help="check recipes; every problem with its line")
    validate.add_argument("recipe", help="a name from `list`, or a file")
    validate.add_argument("overrides", nargs="*", metavar="key=value")
    diff = actions.add_parser("diff", help="settings in which two recipes differ")
    diff.add_argument("first", help="a name from `list`, or a file")
    diff.add_argument("second", help="a name from `list`, or a file")
    diff.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `recipes`; returns the exit code."""
    options = make_recipes_parser().parse_args(argv)
    return int(
        {"list": _list, "show": _show, "copy": _copy, "validate": _validate, "diff": _diff}[options.action](
            options
        )
    )


def recipe_folder() -> Path:
    """Where the project's recipes lie: inside the package that a wheel brought, beside it in a checkout."""
    package = Path(str(resources.files("vosnet")))
    packed = package / "recipes"
    return packed if packed.is_dir() else package.parent / "recipes"


def find_recipe(name: str) -> Path:
    """The file that `name` means: a path, or the name of a recipe that comes with the project.

    `recipes/NAME.yaml` is such a name too, so that what messages and documents say works in any folder.

    Raises:
        UsageError: neither exists.
    """
    path = files.expand(name)
    if path.is_file():
        return path
    known = recipe_folder() / f"{path.name.removesuffix('.yaml')}.yaml"
    if path.parent in {Path(), Path("recipes")} and known.is_file():
        return known
    names = ", ".join(sorted(p.stem for p in recipe_folder().glob("*.yaml")))
    raise UsageError("E102", f"no recipe {name}", f"Give a file or one of: {names}.")


def _list(options: argparse.Namespace) -> int:
    rows = {path.stem: _headline(path) for path in sorted(recipe_folder().glob("*.yaml"))}
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        width = max(map(len, rows))
        for name, headline in rows.items():
            print(f"{name:{width}} {headline}")
    return 0


def _headline(path: Path) -> str:
    """The first comment line of a recipe, which says what it is."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").rstrip()


def _show(options: argparse.Namespace) -> int:
    path = find_recipe(options.recipe)
    if not options.resolved and not options.overrides:
        print(path.read_text(encoding="utf-8-sig"), end="")
        return 0
    from vosnet.recipe import load_recipe, resolved_text

    print(resolved_text(load_recipe(path, options.overrides).recipe), end="")
    return 0


def _copy(options: argparse.Namespace) -> int:
    source, target = find_recipe(options.recipe), files.expand(options.target)
    if target.exists():
        raise InputError("E206", f"{target} exists already", "Choose another name.")
    files.write_bytes(target, source.read_bytes())
    print(f"{target}: now `vosnet train {target}`")
    return 0


def _validate(options: argparse.Namespace) -> int:
    from vosnet.recipe import load_recipe

    path = find_recipe(options.recipe)
    load_recipe(path, options.overrides)
    print(f"{path}: valid")
    return 0


def _diff(options: argparse.Namespace) -> int:
    from vosnet.recipe import load_recipe, recipe_differences, resolved_values

    first, second = (
        resolved_values(load_recipe(find_recipe(name)).recipe) for name in (options.first, options.second)
    )
    differences = recipe_differences(first, second)
    if options.json:
        rows: dict[str, Any] = {key: [old, new] for key, old, new in differences}
        print(json.dumps(rows, indent=2))
    else:
        for key, old, new in differences:
            print(f"{key}: {old} -> {new}")
    return 0
