"""The README tells the truth about commands, files and error codes."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SOURCES = [path.read_text() for path in sorted((ROOT / "vosnet").rglob("*.py"))]


def listed_codes() -> set[int]:
    codes: set[int] = set()
    for first, last in re.findall(r"\bE(\d{3})(?:-E(\d{3}))?", README):
        codes |= set(range(int(first), int(last or first) + 1))
    return codes


def test_every_error_code_is_explained() -> None:
    used = {int(code) for text in SOURCES for code in re.findall(r'"E(\d{3})"', text)}
    assert used <= listed_codes(), sorted(used - listed_codes())


def test_every_file_named_exists() -> None:
    named = set(re.findall(r"`((?:vosnet|kernels|recipes|tools)/[\w/]+\.(?:py|md|yaml))`", README))
    named |= set(re.findall(r"python (tools/\w+\.py)", README)) | set(
        re.findall(r"recipes/\w+\.yaml", README)
    )
    assert named
    assert not [name for name in named if not (ROOT / name).is_file()]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make ([\w-]+)`", README))))
def test_every_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_recipe_is_listed() -> None:
    recipes = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    text = README.replace(
        "dul_{ytvos,oxuva,trackingnet,kinetics}", "dul_ytvos dul_oxuva dul_trackingnet dul_kinetics"
    )
    assert not [name for name in recipes if name not in text]
