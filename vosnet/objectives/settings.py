"""Options of objectives: frozen dataclasses, made from the keys of a recipe's section."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from vosnet.errors import SettingError

S = TypeVar("S")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """The options of one objective: each field is a key of the recipe's section, checked when it is made.

    Raises:
        SettingError: a value is out of range.
    """

    def __post_init__(self) -> None:
        check_choices(self)

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
        SettingError: a key is unknown or a value out of range; dots lead into sections.
    """
    types, values = typing.get_type_hints(cls), dict(keys)
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key, value in keys.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
            raise SettingError(key, f"unknown key. {hint}")
        if dataclasses.is_dataclass(types[key]) and not dataclasses.is_dataclass(value):
            try:
                values[key] = settings_from(types[key], value or {})
            except SettingError as error:
                raise error.under(key) from error
    return cls(**values)


def check_choices(settings: Any) -> None:
    """Check every text in a dataclass of options against the texts that its annotation names."""
    for name, annotation in typing.get_type_hints(type(settings)).items():
        kinds = [k for k in (annotation, *typing.get_args(annotation)) if typing.get_origin(k) is Literal]
        allowed = [text for kind in kinds for text in typing.get_args(kind)]
        value = getattr(settings, name)
        if allowed and isinstance(value, str) and value not in allowed:
            raise SettingError(name, f"must be one of {', '.join(allowed)}, got {value!r}")


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
