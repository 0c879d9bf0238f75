"""Options of objectives: frozen dataclasses, made from the keys of a recipe's section."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from vosnet.errors import SettingError

S = TypeVar("S")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """The options of one objective: each field is a key of the recipe's section, checked when it is made.

    Raises:
        SettingError: a value is out of range.
    """

    def __post_init__(self) -> None:
        """Check the values; a subclass checks its own after those of its bases."""

    def conflicts(self, *, clip_len: int, color_space: str) -> Iterable[tuple[str, str]]:
        """Settings incompatible with the rest of the recipe, as (key, message).

        Args:
            clip_len: frames per clip.
            color_space: what the encoder sees.
        """
        del clip_len, color_space
        return ()


def settings_from(cls: type[S], keys: Mapping[str, Any]) -> S:
    """`cls`, a dataclass of options, from plain keys; sections within become dataclasses of their own.

    Raises:
        SettingError: a key is unknown, or a value of the wrong type or out of range; dots lead into sections.
    """
    types, values = typing.get_type_hints(cls), dict(keys)
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key, value in keys.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
            raise SettingError(key, f"unknown key. {hint}")
        if not dataclasses.is_dataclass(types[key]):
            _check_type(key, types[key], value)
        elif value is None or isinstance(value, Mapping):
            try:
                values[key] = settings_from(types[key], value or {})
            except SettingError as error:
                raise error.under(key) from error
        elif not isinstance(value, types[key]):
            raise SettingError(key, f"must be a section with keys of its own, got {value!r}")
    return cls(**values)


def _check_type(key: str, annotation: Any, value: Any) -> None:
    try:
        given = tuple(value) if isinstance(value, list) else value  # a YAML list where a tuple is meant
        TypeAdapter(annotation).validate_python(given, strict=True)
    except ValidationError as error:
        message = error.errors()[0]["msg"].replace("Input should be", "must be")
        raise SettingError(key, f"{message}, got {value!r}") from error


def check_at_least(least: float, settings: Any, *names: str) -> None:
    """Check that options are at least `least`, where they are numbers."""
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, int | float) and value < least:
            raise SettingError(name, f"must be at least {least}, got {value}")


def check_positive(settings: Any, *names: str) -> None:
    """Check that options are above 0, where they are numbers."""
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, int | float) and not value > 0:
            raise SettingError(name, f"must be positive, got {value}")
