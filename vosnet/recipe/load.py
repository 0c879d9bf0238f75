"""A recipe file and overrides -> a validated `Recipe`; all findings are reported at once."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from vosnet.recipe.migrate import migrate
from vosnet.recipe.phases import phase_values
from vosnet.recipe.problems import Problem, RecipeError, unknown_key
from vosnet.recipe.schema import Recipe, Section
from vosnet.recipe.source import KeyPath, Source, parse, read_source

COMMAND_LINE = "command line"


@dataclasses.dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that can be run.

    Args:
        recipe: the validated settings.
        source: the text it was read from, for the run folder.
        warnings: notes for the user, such as renamed keys of older versions.
        phases: the recipe of each phase, as if it were alone; a recipe without phases is its only one.
    """

    recipe: Recipe
    source: str
    warnings: tuple[str, ...] = ()
    phases: tuple[Recipe, ...] = ()


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read, override, migrate and validate a recipe.

    Args:
        path: a YAML file.
        overrides: `section.key=value` strings, values written as in YAML.

    Raises:
        RecipeError: with every problem found, each with file and line.
        UsageError: no such file.
    """
    source = read_source(path)
    text = Path(path).read_text(encoding="utf-8-sig")
    return build_recipe(source, overrides, text)


def parse_recipe(text: str, overrides: Sequence[str] = (), name: str = "recipe") -> LoadedRecipe:
    """`load_recipe` for a text in memory."""
    return build_recipe(parse(text, name), overrides, text)


def build_recipe(source: Source, overrides: Sequence[str], text: str) -> LoadedRecipe:
    """Validate a parsed recipe; see `load_recipe`."""
    findings = _Findings(source)
    values = copy.deepcopy(source.values)
    warnings = migrate(values, findings.add)
    for override in overrides:
        _apply(values, override, findings)
    recipe = findings.validate(Recipe, values, ())
    _check_bound_sections(values, findings)
    if findings.problems or recipe is None:
        raise RecipeError(findings.problems)
    recipe = _with_bound_sections(recipe, values)
    phases = [_phase(values, index, findings) for index in range(len(recipe.phases))]
    if findings.problems:
        raise RecipeError(findings.problems)
    whole = tuple(phase for phase in phases if phase is not None) or (recipe,)
    return LoadedRecipe(recipe, text, tuple(warnings), whole)


def _phase(values: dict[str, Any], index: int, findings: _Findings) -> Recipe | None:
    """The recipe of one phase, or None after noting every problem of it."""
    phase = values["phases"][index]
    merged = phase_values(values, phase)
    own = _PhaseFindings(findings, index, phase)
    recipe = own.validate(Recipe, merged, ())
    _check_bound_sections(merged, own)
    findings.problems += own.problems
    return None if own.problems else _with_bound_sections(recipe, merged)


def _with_bound_sections(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    return recipe.model_copy(update={key: values[key] for key in ("objective", "data")})


def resolved_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values with every default written out."""
    values: dict[str, Any] = json.loads(recipe.model_dump_json())
    return values


def resolved_text(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; reading it again gives the same recipe."""
    return yaml.safe_dump(resolved_values(recipe), sort_keys=False, allow_unicode=True)


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of the resolved recipe: equal on all ranks of a run, whatever order keys were written in."""
    return hashlib.sha256(json.dumps(resolved_values(recipe), sort_keys=True).encode()).hexdigest()


def recipe_differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Keys whose values differ, as (dotted key, value in a, value in b)."""
    found: list[tuple[str, Any, Any]] = []
    for key in [*a, *(k for k in b if k not in a)]:
        old, new = a.get(key), b.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += recipe_differences(old, new, f"{prefix}{key}.")
        elif key == "phases" and old and new and len(old) == len(new):
            for index, (before, after) in enumerate(zip(old, new, strict=True)):
                found += recipe_differences(before, after, f"{prefix}{key}.{index}.")
        elif old != new:
            found.append((prefix + key, old, new))
    return found


def _check_bound_sections(values: dict[str, Any], findings: _Findings) -> None:
    """Fill and check `objective` and `data`, whose keys are the arguments of what they configure."""
    from vosnet.recipe.bound import check_fit, data_section, objective_section

    for key, section_for in (("objective", objective_section), ("data", data_section)):
        section = values.get(key)
        if isinstance(section, Mapping):
            values[key] = section_for(section, findings)
    if not findings.problems:
        check_fit(values, findings)


class _Findings:
    """Collects problems; knows which line a path stands on and which paths came from the command line."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.problems = list(source.problems)
        self.overridden: set[KeyPath] = set()

    def add(self, path: KeyPath, message: str) -> None:
        """Note a problem at `path`."""
        if any(path[: len(o)] == o for o in self.overridden):
            shown = ".".join(map(str, path))
            self.problems.append(Problem(COMMAND_LINE, f"{shown}: {message}", 1 << 30))
            return
        line = self.source.line(path)
        self.problems.append(Problem(f"{self.source.name}:{line}", message, line))

    def validate(self, model: type[Section], values: Any, path: KeyPath) -> Any:
        """`values` as `model`, or None after noting every problem."""
        try:
            return model.model_validate(values)
        except ValidationError as error:
            for details in error.errors():
                where = (*path, *details["loc"])
                self.add(where, _explain(details, where, model, len(path)))
            return None


class _PhaseFindings(_Findings):
    """Findings about a phase: each at the phase's own key, or at the phase when the recipe gave the value."""

    def __init__(self, whole: _Findings, index: int, phase: Mapping[str, Any]) -> None:
        super().__init__(whole.source)
        self.problems, self.overridden = [], whole.overridden
        self._index, self._phase = index, phase

    def add(self, path: KeyPath, message: str) -> None:
        section = self._phase.get(str(path[0])) if path else None
        own = isinstance(section, Mapping) and (len(path) == 1 or path[1] in section)
        place: KeyPath = ("phases", self._index, *(path if own else ()))
        super().add(place, f"phase {self._phase.get('name')!r}: {message}")


def _explain(details: ErrorDetails, where: KeyPath, model: type[BaseModel], skip: int) -> str:
    """Pydantic's finding in the words of a recipe."""
    key = str(where[-1]) if where else ""
    name = ".".join(map(str, where))
    value = details.get("input")
    if details["type"] == "extra_forbidden":
        section = where[:-1]
        return unknown_key(key, ".".join(map(str, section)), _keys_at(model, section[skip:]))
    if details["type"] == "missing":
        return f"{name} is missing"
    if details["type"] == "value_error":
        message = str(details["ctx"]["error"])
        return f"{name}: {message}" if name else message
    if details["type"].startswith("bool") and isinstance(value, str):
        return f"{name}: write true or false, not {value}"
    message = details["msg"].replace("Input should be", "must be")
    message = message.replace("a valid integer", "a whole number").replace("a valid ", "a ")
    return f"{name} {message}, got {_shown(value)}"


def _keys_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    for key in path:
        if isinstance(key, int):  # an item of a list: the model is the same
            continue
        field = model.model_fields.get(str(key))
        inner = _model_in(field.annotation) if field is not None else None
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _apply(values: dict[str, Any], override: str, findings: _Findings) -> None:
    """Set one `section.key=value` in `values`."""
    name, equals, text = override.partition("=")
    path = tuple(name.strip().split("."))
    if not equals or not all(path):
        findings.problems.append(
            Problem(COMMAND_LINE, f"{override!r} is no override; write section.key=value", 1 << 30)
        )
        return
    try:
        parsed = parse(f"value: {text}", COMMAND_LINE)
    except RecipeError as error:
        reason = error.problems[0].message
        findings.problems.append(Problem(COMMAND_LINE, f"{name}: {reason}", 1 << 30))
        return
    findings.problems.extend(dataclasses.replace(p, where=COMMAND_LINE) for p in parsed.problems)
    try:
        _set(values, path, parsed.values["value"])
    except (IndexError, ValueError):
        findings.problems.append(Problem(COMMAND_LINE, f"{name}: no such item in the list", 1 << 30))
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
