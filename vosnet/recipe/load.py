"""A recipe file and overrides -> a validated `Recipe`; all findings are reported at once."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vosnet.recipe.findings import COMMAND_LINE, Findings, PhaseFindings
from vosnet.recipe.phases import phase_values
from vosnet.recipe.problems import RecipeError
from vosnet.recipe.schema import Recipe
from vosnet.recipe.sections import check_sections
from vosnet.recipe.yaml_text import RecipeText, parse, read_text


@dataclasses.dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that can be run.

    Args:
        recipe: the validated settings.
        text: what it was read from, for the run folder.
        phases: the recipe of each phase, as if it were alone; a recipe without phases is its only one.
    """

    recipe: Recipe
    text: str
    phases: tuple[Recipe, ...]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read, override and validate a recipe.

    Args:
        path: a YAML file.
        overrides: `section.key=value` strings, values written as in YAML.

    Raises:
        RecipeError: with every problem found, each with file and line.
        UsageError: no such file.
    """
    return _build(read_text(path), overrides)


def parse_recipe(text: str, overrides: Sequence[str] = (), name: str = "recipe") -> LoadedRecipe:
    """`load_recipe` for a text in memory."""
    return _build(parse(text, name), overrides)


def _build(text: RecipeText, overrides: Sequence[str]) -> LoadedRecipe:
    findings = Findings(text)
    values = copy.deepcopy(text.values)
    for override in overrides:
        _apply(values, override, findings)
    recipe = _validated(values, findings)
    phases = []
    if recipe is not None:
        for index, phase in enumerate(values.get("phases") or ()):
            own = PhaseFindings(findings, index, phase)
            phases.append(_validated(phase_values(values, phase), own))
            findings.problems += own.problems
    if recipe is None or findings.problems:
        raise RecipeError(findings.problems)
    return LoadedRecipe(recipe, text.content, tuple(p for p in phases if p is not None) or (recipe,))


def _validated(values: dict[str, Any], findings: Findings) -> Recipe | None:
    """The recipe that `values` say, with the defaults of every section, or None after noting problems."""
    recipe: Recipe | None = findings.validate(Recipe, values, ())
    check_sections(values, findings)
    if findings.problems or recipe is None:
        return None
    return recipe.model_copy(update={key: values[key] for key in ("objective", "data")})


def _apply(values: dict[str, Any], override: str, findings: Findings) -> None:
    """Set one `section.key=value` in `values`."""
    name, equals, text = override.partition("=")
    path = tuple(name.strip().split("."))
    if not equals or not all(path):
        findings.add_override(repr(override), "this is no override; write section.key=value")
        return
    try:
        parsed = parse(f"value: {text}", COMMAND_LINE)
    except RecipeError as error:
        findings.add_override(name, error.problems[0].message)
        return
    findings.problems.extend(dataclasses.replace(p, where=COMMAND_LINE) for p in parsed.problems)
    try:
        _set(values, path, parsed.values["value"])
    except (IndexError, ValueError):
        findings.add_override(name, "no such item in the list")
        return
    findings.overridden.add(tuple(int(key) if key.isdecimal() else key for key in path))


def _set(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set `value` at `path`; sections on the way are made, items of lists are named by their number."""
    section: Any = values
    for key, following in itertools.pairwise(path):
        if isinstance(section, list):
            section = section[int(key)]
            continue
        inner = section.setdefault(key, {})
        if not (isinstance(inner, dict) or (isinstance(inner, list) and following.isdecimal())):
            inner = section[key] = {}
        section = inner
    section[int(path[-1]) if isinstance(section, list) else path[-1]] = value
