"""README and docs/ as data: fenced blocks, command lines, tables, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *sorted(DOCS.glob("*.md")),
    ROOT / "kernels/README.md",
    ROOT / "vosnet/weights/README.md",
]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block: where it stands, its language, its text."""

    place: str
    language: str
    text: str


def blocks(language: str) -> list[Block]:
    """Every fenced block of a language, with `page:line`."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in _FENCE.finditer(text):
            line = text[: match.start()].count("\n") + 1
            place = f"{page.relative_to(ROOT)}:{line}"
            if match.group(1) == language:
                found.append(Block(place, language, match.group(2)))
    return found


def commands() -> list[tuple[str, list[str]]]:
    """Every command line of the bash blocks as `page:line` and words, without the environment's folder."""
    found = []
    for block in blocks("bash"):
        page, line = block.place.rsplit(":", 1)
        start = int(line) + 1
        number, parts = start, []
        for offset, text in enumerate(block.text.splitlines()):
            parts.append(text.removesuffix("\\"))
            if text.endswith("\\"):
                continue
            words = shlex.split(" ".join(parts), comments=True)
            if words:
                found.append((f"{page}:{number}", [words[0].removeprefix(".venv/bin/"), *words[1:]]))
            number, parts = start + offset + 1, []
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def links(page: Path) -> list[str]:
    """Targets of the links and pictures of a page."""
    return _LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts and mkdocs make them."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def tables(page: Path) -> Iterator[tuple[str, list[list[str]]]]:
    """(heading above it, rows of cells with the header first) of every table of a page."""
    heading, rows = "", []
    for line in [*prose(page).splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))])
            continue
        if rows:
            yield heading, [rows[0], *rows[2:]]
            rows = []
        if line.startswith("#"):
            heading = line.lstrip("# ")


def table(page: Path, heading: str) -> list[list[str]]:
    """Rows of the first table below a heading, without the header."""
    for name, rows in tables(page):
        if name == heading:
            return rows[1:]
    raise AssertionError(f"{page} has no table below {heading!r}")


def code(cell: str) -> list[str]:
    """What stands in code type in a cell."""
    return re.findall(r"`([^`]+)`", cell)
