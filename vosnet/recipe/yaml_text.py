"""YAML text -> plain values that remember their lines; hostile or ambiguous text is refused with a reason."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import yaml

from vosnet.errors import UsageError
from vosnet.recipe.problems import Problem, RecipeError

MAX_BYTES = 1_000_000
MAX_NODES = 10_000
MAX_DEPTH = 20
KeyPath = tuple[str | int, ...]

_BOOL = {"true": True, "false": False}
_NULL = {"", "~", "null"}
_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_FLOAT = re.compile(
    r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")}


@dataclasses.dataclass(frozen=True)
class RecipeText:
    """A parsed recipe file.

    Args:
        name: what messages call it: the file's path as given.
        values: nested dicts, lists and scalars.
        lines: 1-based line of every value, by its path of keys and list indices.
        problems: findings that do not stop the parse, such as duplicate keys.
        content: the text itself.
    """

    name: str
    values: dict[str, Any]
    lines: dict[KeyPath, int]
    problems: tuple[Problem, ...]
    content: str

    def line(self, path: KeyPath) -> int:
        """The line of `path`, or of the nearest enclosing section in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read_text(path: str | Path) -> RecipeText:
    """Read and parse a recipe file.

    Raises:
        RecipeError: not a recipe: too large, not UTF-8, no YAML mapping, or built to exhaust memory.
        UsageError: no such file, or it cannot be read.
    """
    name = str(path)
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)  # never more, whatever the size on disk claims
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        hint = "`vosnet recipes list` shows the recipes that come with the project."
        raise UsageError("E102", f"cannot read recipe {name}: {reason}", hint) from error
    if len(content) > MAX_BYTES:
        raise RecipeError([Problem(name, f"larger than {MAX_BYTES // 1000} kB: this is no recipe")])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        message = f"byte {content[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        raise RecipeError([Problem(f"{name}:{line}", message)]) from error
    return parse(text, name)


def parse(text: str, name: str = "recipe") -> RecipeText:
    """Parse recipe text; see `read_text`."""
    try:
        node = _BoundedLoader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        raise RecipeError([_syntax_problem(error, name)]) from error
    except yaml.YAMLError as error:  # a control character: PyYAML gives the position, not a mark
        raise RecipeError([Problem(name, f"no YAML: {' '.join(str(error).split())}")]) from error
    if node is None:
        raise RecipeError([Problem(name, "the file is empty")])
    builder = _Builder(name)
    values = builder.value(node, ())
    if not isinstance(values, dict):
        raise RecipeError([Problem(f"{name}:1", "a recipe is a mapping: `key: value` lines")])
    return RecipeText(name, values, builder.lines, tuple(builder.problems), text)


def scalar(text: str) -> Any:
    """The value of a plain (unquoted) YAML scalar: true/false, null, number, else text.

    Differs from YAML 1.1: `1e-4` is a number, and `yes`, `no`, `on`, `off` stay text, so that a boolean key
    refuses them instead of a text key silently receiving a boolean.
    """
    if text.lower() in _BOOL:
        return _BOOL[text.lower()]
    if text.lower() in _NULL:
        return None
    if _INT.fullmatch(text):
        return int(text.replace("_", ""))
    if _FLOAT.fullmatch(text) and not _LEADING_ZERO.fullmatch(text):
        return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


class _BoundedLoader(yaml.SafeLoader):
    """Composes nodes and counts them; aliases are refused, because their expansion is what explodes."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._count = 0
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not used in recipes: write the value out",
                problem_mark=mark,
            )
        self._count += 1
        self._depth += 1
        if self._count > MAX_NODES or self._depth > MAX_DEPTH:
            limit = f"{MAX_NODES} values" if self._count > MAX_NODES else f"{MAX_DEPTH} levels"
            raise yaml.MarkedYAMLError(problem=f"more than {limit}", problem_mark=mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


class _Builder:
    """Turns nodes into values, remembering lines and collecting findings."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if node.tag not in _PLAIN_TAGS and not isinstance(node, yaml.ScalarNode):
            self.complain(node, f"the tag {node.tag!r} is not allowed: recipes hold plain values only")
            return None
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*path, index)) for index, child in enumerate(node.value)]
        return self.scalar(node)

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        first_line: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.complain(key_node, "a key must be a plain word")
                continue
            key = str(key_node.value)
            if key in first_line:
                self.complain(key_node, f"key {key!r} is given twice: lines {first_line[key]} and {line}")
                continue
            first_line[key] = line
            self.lines[(*path, key)] = line
            result[key] = self.value(value_node, (*path, key))
        return result

    def scalar(self, node: Any) -> Any:
        text = str(node.value)
        if node.tag.startswith("tag:yaml.org,2002:python") or node.tag.startswith("!"):
            self.complain(node, f"the tag {node.tag!r} is not allowed: recipes hold plain values only")
            return None
        if node.style is not None:  # quoted or block text
            return text
        if _LEADING_ZERO.fullmatch(text):
            plain = text.replace("_", "").lstrip("+-0") or "0"
            self.complain(node, f"{text} starts with a zero, which YAML reads as octal; write {plain}")
            return int(plain)  # what is meant, so that this stays the only finding
        return scalar(text)

    def complain(self, node: yaml.Node, message: str) -> None:
        line = node.start_mark.line + 1
        self.problems.append(Problem(f"{self.name}:{line}", message, line))


def _syntax_problem(error: yaml.MarkedYAMLError, name: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark is not None else 1
    message = error.problem or "no YAML"
    if "\\t" in message:
        message = "a tab is used for indentation; YAML allows only spaces there"
    elif "expected a single document" in str(error.context):
        message = "`---` starts a second document; a recipe is one"
    return Problem(f"{name}:{line}", message, line)
