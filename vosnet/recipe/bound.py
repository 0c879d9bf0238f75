"""The sections `objective` and `data`: keys are the keyword arguments of what they configure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from vosnet.datasets.stream import ClipStream, build_stream
from vosnet.objectives import OBJECTIVES
from vosnet.recipe.problems import suggest
from vosnet.recipe.schema import Recipe, Section
from vosnet.recipe.signatures import section_of
from vosnet.recipe.source import KeyPath


class Findings(Protocol):
    """Where problems are noted; see `vosnet.recipe.load`."""

    def add(self, path: KeyPath, message: str) -> None: ...

    def validate(self, model: type[Section], values: Any, path: KeyPath) -> Any: ...


def objective_section(section: Mapping[str, Any], findings: Findings) -> dict[str, Any]:
    """The objective's name and its constructor's keyword arguments, defaults filled in."""
    arguments = dict(section)
    name = arguments.pop("name", None)
    if name not in OBJECTIVES:
        guess = suggest(str(name), OBJECTIVES) if name is not None else None
        hint = f"did you mean {guess!r}?" if guess else f"allowed: {', '.join(OBJECTIVES)}"
        what = "objective.name is missing" if name is None else f"unknown objective {name!r}"
        findings.add(("objective", "name") if name is not None else ("objective",), f"{what}; {hint}")
        return dict(section)
    checked = findings.validate(section_of(OBJECTIVES[name]), arguments, ("objective",))
    return dict(section) if checked is None else {"name": name, **checked.model_dump()}


def data_section(section: Mapping[str, Any], findings: Findings) -> dict[str, Any]:
    """The keyword arguments of `build_stream` without seed and batch size, defaults filled in."""
    model = section_of(build_stream, ("seed", "batch_size"))
    checked = findings.validate(model, dict(section), ("data",))
    return dict(section) if checked is None else checked.model_dump()


def open_stream(recipe: Recipe) -> ClipStream:
    """The clips that the recipe's data section describes.

    Raises:
        InputError: data is missing, or more than 5 % of it is unreadable.
    """
    arguments = section_of(build_stream, ("seed", "batch_size")).model_validate(recipe.data)
    values = {name: getattr(arguments, name) for name in type(arguments).model_fields}
    return build_stream(seed=recipe.seed, batch_size=recipe.training.batch_size, **values)
