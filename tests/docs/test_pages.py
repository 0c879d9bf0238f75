"""What README and docs/ say about files, keys, switches, codes and settings is what the code says."""

from __future__ import annotations

import ast
import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.documents import DOCS, PAGES, ROOT, anchors, blocks, code, links, prose, table, tables
from vosnet import errors
from vosnet.adaptation.settings import AdaptationSettings
from vosnet.commands.recipes import find_recipe
from vosnet.datasets.settings import ClipSettings
from vosnet.datasets.source import VideoSource
from vosnet.memory import context_frames, spaced_frames
from vosnet.objectives import OBJECTIVES
from vosnet.propagation import PRESETS, Protocol
from vosnet.propagation.protocol import make_protocol
from vosnet.recipe import load_recipe, parse_recipe, resolved_values, schema
from vosnet.recipe.schema import Recipe

README = ROOT / "README.md"
SOURCES = sorted((ROOT / "vosnet").rglob("*.py"))
PATH = re.compile(
    r"^(?:vosnet|kernels|recipes|tools|tests|docs)/(?!.*NAME)[\w./-]+\.\w+$"
)  # NAME is any name


def test_the_readme_is_short() -> None:
    assert README.stat().st_size <= 6000


def test_pictures_are_small() -> None:
    assert {p.name for p in (DOCS / "images").iterdir()} == {
        Path(link).name for page in PAGES for link in links(page) if "images/" in link
    }
    assert all(path.stat().st_size < 400_000 for path in (DOCS / "images").iterdir())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_holds(page: Path) -> None:
    for link in links(page):
        target, _, anchor = link.partition("#")
        if target.startswith("https://"):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.is_file(), link
        assert page.parent != DOCS or path.is_relative_to(DOCS), f"{link} would not hold in the built pages"
        assert not anchor or anchor in anchors(path), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_named_exists(page: Path) -> None:
    named = [name for name in code(prose(page)) if PATH.match(name)]
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_every_page_is_in_the_contents() -> None:
    contents = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert {page for entry in contents for page in entry.values()} == {p.name for p in DOCS.glob("*.md")}


def test_every_make_target_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {target for page in PAGES for target in re.findall(r"`make ([\w-]+)`", page.read_text())}
    assert targets >= {"demo", "test", "lint", "docs", "bench", "gpu-check"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_every_recipe_is_listed() -> None:
    listed = {name for row in table(DOCS / "train.md", "Recipes") for name in code(row[3])}
    assert listed == {path.stem for path in (ROOT / "recipes").glob("*.yaml")}


# papers.md


def defined(path: Path) -> set[str]:
    """Functions and classes of a file, methods as Class.method."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_function_named_exists(page: Path) -> None:
    for name in code(prose(page)):
        if match := re.fullmatch(r"([\w/]+\.py):([\w.]+)", name):
            assert match.group(2) in defined(ROOT / match.group(1)), name


def paper_rows() -> list[Any]:
    rows = []
    for heading, (header, *body) in tables(DOCS / "papers.md"):
        if header[1:3] == ["recipe", "switches"]:
            rows += [pytest.param(row, id=f"{heading}, {row[0]}") for row in body]
    return rows


@pytest.mark.parametrize("row", paper_rows())
def test_every_row_of_the_papers_can_be_run(row: list[str]) -> None:
    (command,) = code(row[1])
    name, *overrides = command.split()
    recipe = load_recipe(find_recipe(name), [word.strip("'") for word in overrides]).recipe
    switches = dict(word.split("=") for word in code(row[2]) if "=" in word)
    make_protocol(recipe.preset, **{key: yaml.safe_load(value) for key, value in switches.items()})
    assert re.match(r"not yet run|\d", row[4])


# protocols.md


def written(value: object) -> str:
    """A value as the tables write it."""
    if value is None or value == "" or isinstance(value, bool):
        return {None: "null", "": '""', True: "true", False: "false"}[value]  # type: ignore[index]
    return str(value)


def test_every_switch_of_a_protocol_is_explained() -> None:
    explained = [code(row[0])[0] for row in table(DOCS / "protocols.md", "Switches")]
    assert explained == [field.name for field in dataclasses.fields(Protocol)]


def test_the_table_of_presets_is_right() -> None:
    (_, (header, *rows)) = next(t for t in tables(DOCS / "protocols.md") if t[0] == "Presets")
    presets = [code(cell)[0] for cell in header[1:]]
    assert presets == list(PRESETS)
    for row in rows:
        values = [written(getattr(PRESETS[name], code(row[0])[0])).strip("()") for name in presets]
        assert row[1:] == values, row[0]
    assert [code(row[0])[0] for row in rows] == [field.name for field in dataclasses.fields(Protocol)]


def test_every_preset_has_its_paper() -> None:
    named = [name for row in table(DOCS / "protocols.md", "Who set them so") for name in code(row[0])]
    assert named == list(PRESETS)


def test_the_frames_that_each_context_rule_reads_are_right() -> None:
    (block,) = (
        b for b in blocks("text") if b.place.startswith("docs/protocols.md") and "replicate" in b.text
    )
    assert len(block.text.splitlines()) == 7
    for line in block.text.splitlines():
        rule, key, value = re.match(r"(\w+), +(\w+)=(\w+)", line).groups()  # type: ignore[union-attr]
        for t, frames in re.findall(r"t=(\d): ([\d |.]+)", line):
            if rule == "mast":
                expected = spaced_frames(int(t), yaml.safe_load(value))
            else:
                assert key == "num_recent"
                expected = context_frames(int(t), int(value), rule)
            shown = [int(n) for n in re.findall(r"\d+", frames)]
            short = [*expected[:2], expected[-1]] if "..." in frames else expected
            assert shown == short, line


# propagate.md


def test_every_setting_of_online_adaptation_is_explained() -> None:
    rows = {code(row[0])[0]: row[1] for row in table(DOCS / "propagate.md", "Online adaptation")}
    assert rows == {f.name: written(f.default) for f in dataclasses.fields(AdaptationSettings)}


# train.md


def key_tables() -> dict[str, dict[str, str]]:
    """Heading -> key -> default, of the tables below "Keys"."""
    found = {}
    for heading, (header, *rows) in tables(DOCS / "train.md"):
        if header == ["key", "default", "meaning"]:
            found[heading] = {key: row[1] for row in rows for key in code(row[0])}
    return found


def model_keys(model: Any) -> dict[str, Any]:
    """Key -> default of a section; `...` where it must be given."""
    return {
        name: ... if field.is_required() else field.get_default(call_default_factory=True)
        for name, field in model.model_fields.items()
    }


def as_written(default: object) -> str:
    if default is ...:
        return "-"
    if isinstance(default, tuple | list):
        return str([float(f"{x:.4f}") if isinstance(x, float) else x for x in default])
    return "{}" if type(default).__name__.startswith("Phase") else written(default)


def settings_keys(settings: Any) -> dict[str, dict[str, Any]]:
    """Section -> key -> default of a dataclass of options; sections within have headings of their own."""
    hints, own, found = typing.get_type_hints(settings), {}, {}
    for field in dataclasses.fields(settings):
        kind, required = hints[field.name], field.default is field.default_factory is dataclasses.MISSING
        own[field.name] = ... if required else field.default
        if dataclasses.is_dataclass(kind) and not required:
            own[field.name] = None
            found[f"objective.{field.name}"] = settings_keys(kind)[""]
    return {"": own, **found}


def test_every_key_of_a_recipe_is_explained_with_its_default() -> None:
    expected = {name: model_keys(model) for name, model in typed_sections().items()}
    expected["data"] = {"sources": ..., **settings_keys(ClipSettings)[""]}
    for name, row in OBJECTIVES.items():
        sections = settings_keys(row.settings)
        expected |= {f"objective: {name}": sections.pop(""), **sections}
    shown = key_tables()
    assert set(shown.pop("recipe")) == set(Recipe.model_fields)
    assert set(shown) == set(expected)
    for heading, keys in expected.items():
        assert shown[heading] == {key: as_written(value) for key, value in keys.items()}, heading


def typed_sections() -> dict[str, Any]:
    return {
        "encoder": schema.EncoderSection,
        "data.sources": VideoSource,
        "optimizer": schema.OptimizerSection,
        "schedule": schema.ScheduleSection,
        "training": schema.TrainingSection,
        "validation": schema.ValidationSection,
        "phases": schema.PhaseSection,
    }


def test_every_key_that_a_recipe_sets_is_explained() -> None:
    explained = {key for keys in key_tables().values() for key in keys}
    for path in (ROOT / "recipes").glob("*.yaml"):
        assert keys_of(resolved_values(load_recipe(path).recipe)) <= explained, path


def keys_of(values: object) -> set[str]:
    if isinstance(values, dict):
        return set(values) | {key for value in values.values() for key in keys_of(value)}
    if isinstance(values, list | tuple):
        return {key for value in values for key in keys_of(value)}
    return set()


@pytest.mark.parametrize("block", [pytest.param(b, id=b.place) for b in blocks("yaml")])
def test_every_recipe_in_the_pages_is_valid(block: Any) -> None:
    parse_recipe(block.text, name=block.place)


# errors.md


def raised() -> dict[str, set[int]]:
    """Code -> exit codes of the error classes it is raised with."""
    found: dict[str, set[int]] = {}
    for path in SOURCES:
        text = path.read_text()
        for spelled in re.findall(r"\"(E\d{3})[\" ]", text):
            found.setdefault(spelled, set())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                kind, code_given = getattr(errors, node.func.id, None), node.args[0]
                if isinstance(code_given, ast.Constant) and hasattr(kind, "exit_code"):
                    found.setdefault(str(code_given.value), set()).add(kind.exit_code)
    return found


def test_every_error_code_is_explained_and_no_other() -> None:
    explained = {
        row[0] for _, rows in tables(DOCS / "errors.md") for row in rows if re.fullmatch(r"E\d{3}", row[0])
    }
    assert explained == set(raised())


def test_error_codes_stand_under_their_exit_code() -> None:
    exits = raised()
    for heading, rows in tables(DOCS / "errors.md"):
        if not (match := re.match(r"Exit (\d)(?: to (\d))?", heading)):
            continue
        allowed = set(range(int(match.group(1)), int(match.group(2) or match.group(1)) + 1))
        for row in rows[1:]:
            assert exits[row[0]] <= allowed, row[0]
