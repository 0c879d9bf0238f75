"""Collects what is wrong with a recipe, each finding with the line or the override it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from vosnet.errors import SettingError
from vosnet.recipe.problems import Problem, unknown_key
from vosnet.recipe.schema import Section
from vosnet.recipe.yaml_text import KeyPath, RecipeText

COMMAND_LINE = "command line"


class Findings:
    """Problems found so far; knows on which line a key stands and which keys came from the command line."""

    def __init__(self, text: RecipeText) -> None:
        self.text = text
        self.problems = list(text.problems)
        self.overridden: set[KeyPath] = set()

    def add(self, path: KeyPath, message: str) -> None:
        """Note a problem at `path`."""
        if any(path[: len(o)] == o for o in self.overridden):
            self.add_override(".".join(map(str, path)), message)
            return
        line = self.text.line(path)
        self.problems.append(Problem(f"{self.text.name}:{line}", message, line))

    def add_override(self, name: str, message: str) -> None:
        """Note a problem of the override `name`; these come last."""
        self.problems.append(Problem(COMMAND_LINE, f"{name}: {message}", 1 << 30))

    def add_setting(self, section: KeyPath, error: SettingError) -> None:
        """Note what is wrong with one of a section's values."""
        path = (*section, *error.key.split("."))
        self.add(path, f"{'.'.join(map(str, path))}: {error.message}")

    def validate(self, model: type[Section], values: Any, path: KeyPath) -> Any:
        """`values` as `model`, or None after noting every problem."""
        try:
            return model.model_validate(values)
        except ValidationError as error:
            for details in error.errors():
                where = (*path, *details["loc"])
                self.add(where, _explain(details, where, model, len(path)))
            return None


class PhaseFindings(Findings):
    """Findings about a phase: each at the phase's own key, or at the phase when the recipe gave the value."""

    def __init__(self, whole: Findings, index: int, phase: Mapping[str, Any]) -> None:
        super().__init__(whole.text)
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
    shown = repr(value)
    return f"{name} {message}, got {shown if len(shown) <= 60 else shown[:57] + '...'}"


def _keys_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys of the section at `path` below `model`; an item of a list has its list's model."""
    for key in (key for key in path if isinstance(key, str)):
        field = model.model_fields.get(key)
        annotation = field.annotation if field is not None else None
        kinds = [annotation, *getattr(annotation, "__args__", ())]
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)
