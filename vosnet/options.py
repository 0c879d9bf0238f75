"""Fields of options objects that are options of a command as well: declared once, with their help."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vosnet.errors import UsageError


def option(
    text: str,
    default: Any = None,
    *,
    group: str,
    flag: str = "",
    convert: Callable[[Any], Any] | None = None,
    **argument: Any,
) -> Any:
    """A dataclass field with what `argparse` needs to know about it.

    Args:
        text: help; a default that says something is added.
        default: of the field. A boolean option takes no value: it sets the other one.
        group: heading that it stands under in the help.
        flag: the option; `--` and the field's name unless given.
        convert: applied to what was parsed.
        **argument: for `add_argument`.
    """
    if isinstance(default, bool):
        argument["action"] = "store_false" if default else "store_true"
    elif default not in (None, (), {}):
        text += f" (default {' '.join(default) if isinstance(default, tuple) else default})"
    argument["help"] = text
    metadata = {"group": group, "flag": flag, "convert": convert, "argument": argument}
    return dataclasses.field(default_factory=lambda: default, metadata=metadata)


def switches(text: str, *, group: str, flag: str) -> Any:
    """A field for KEY=VALUE pairs; the option can be repeated."""
    argument = {"nargs": "+", "action": "extend", "metavar": "KEY=VALUE"}
    return option(text, {}, group=group, flag=flag, convert=parse_assignments, **argument)


def add_options(kind: type, groups: Mapping[str, argparse._ArgumentGroup]) -> None:
    """Add a dataclass's options to the groups of a parser."""
    for entry in dataclasses.fields(kind):
        if entry.metadata:
            flag = entry.metadata["flag"] or f"--{entry.name.replace('_', '-')}"
            argument = {"dest": entry.name, "default": argparse.SUPPRESS, **entry.metadata["argument"]}
            groups[entry.metadata["group"]].add_argument(flag, **argument)


def given_options(kind: type, arguments: argparse.Namespace) -> dict[str, Any]:
    """The values of a dataclass's options that were given, by field."""
    given = {}
    for entry in dataclasses.fields(kind):
        if entry.metadata and entry.name in arguments:
            value = getattr(arguments, entry.name)
            convert = entry.metadata["convert"]
            given[entry.name] = convert(value) if convert else value
    return given


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`["k=5", "layer=layer3"]` as `{"k": 5, "layer": "layer3"}`; values are read as YAML.

    Raises:
        UsageError: an assignment without `=`, or a value that is no YAML.
    """
    import yaml

    values = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals:
            raise UsageError("E136", f"--set takes KEY=VALUE, got {assignment!r}")
    return values
