"""A recipe section whose keys are exactly the keyword arguments of a callable."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Any

from pydantic import BeforeValidator, create_model

from vosnet.recipe.schema import Section, tuple_from_list


def section_of(function: Callable[..., Any], given_by_code: tuple[str, ...] = ()) -> type[Section]:
    """A section model with one key per keyword-only parameter of `function`.

    Args:
        function: a function or class; its annotations are the types, its defaults the defaults.
        given_by_code: parameters that the program supplies, such as the seed: they are no recipe keys.
    """
    target = function.__init__ if inspect.isclass(function) else function
    owner = function if dataclasses.is_dataclass(function) else target  # fields may come from other modules
    hints = typing.get_type_hints(owner, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY or name in given_by_code:
            continue
        annotation = hints.get(name, Any)
        default = ... if parameter.default is parameter.empty else parameter.default
        if dataclasses.is_dataclass(annotation):  # a section of its own, which its dataclass checks
            annotation, default = (dict[str, Any], ...) if default is ... else (dict[str, Any] | None, None)
        fields[name] = (_relaxed(annotation), default)
    return create_model(f"{function.__name__}_section", __base__=Section, **fields)


def _relaxed(annotation: Any) -> Any:
    """`annotation` with a YAML list accepted where a tuple is meant."""
    is_tuple = typing.get_origin(annotation) is tuple or annotation is tuple
    return typing.Annotated[annotation, BeforeValidator(tuple_from_list)] if is_tuple else annotation
