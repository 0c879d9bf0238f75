"""The sections `objective` and `data`: keys are the keyword arguments of what they configure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from vosnet.datasets.frames import FrameStore
from vosnet.datasets.index import VideoEntry
from vosnet.datasets.stream import ClipStream, build_stream
from vosnet.errors import SettingError, UsageError
from vosnet.objectives import OBJECTIVES, objective_settings
from vosnet.recipe.problems import suggest
from vosnet.recipe.schema import Recipe, Section
from vosnet.recipe.signatures import section_of
from vosnet.recipe.source import KeyPath

_NO_KEYS = ("seed", "batch_size", "store")  # arguments of `build_stream` that are no keys of the section


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
    checked = findings.validate(section_of(OBJECTIVES[name].settings), arguments, ("objective",))
    if checked is None:
        return dict(section)
    try:
        objective_settings(name, **checked.model_dump())
    except SettingError as error:
        findings.add(("objective", *error.key.split(".")), f"objective.{error}")
    return {"name": name, **checked.model_dump()}


def data_section(section: Mapping[str, Any], findings: Findings) -> dict[str, Any]:
    """The keyword arguments of `build_stream` without seed and batch size, defaults filled in."""
    model = section_of(build_stream, _NO_KEYS)
    checked = findings.validate(model, dict(section), ("data",))
    if checked is None:
        return dict(section)
    _try(lambda: _dry_stream(checked), "data", section, findings)
    values: dict[str, Any] = checked.model_dump()
    return values


def open_stream(recipe: Recipe, before: ClipStream | None = None) -> ClipStream:
    """The clips that the recipe's data section describes.

    Args:
        recipe: of the run, or of one phase.
        before: the stream of the phase before, whose decoded frames are kept where they fit.

    Raises:
        InputError: data is missing, or more than 5 % of it is unreadable.
    """
    arguments = section_of(build_stream, _NO_KEYS).model_validate(recipe.data)
    values = {name: getattr(arguments, name) for name in type(arguments).model_fields}
    store = None if before is None else before.store
    return build_stream(seed=recipe.seed, batch_size=recipe.training.batch_size, store=store, **values)


def check_fit(values: Mapping[str, Any], findings: Findings) -> None:
    """Note what the objective asks of the clips or the encoder and does not get; sections must be valid."""
    settings = objective_settings(**values["objective"])
    color_space = (values.get("encoder") or {}).get("color_space", "rgb")
    for key, message in settings.conflicts(clip_len=values["data"]["clip_len"], color_space=color_space):
        findings.add(("objective", *key.split(".")), f"objective.{key}: {message}")


def _dry_stream(section: Section) -> ClipStream:
    """A stream over a video that is never opened, so that wrong sizes are found before any data is."""
    values = {name: getattr(section, name) for name in type(section).model_fields}
    values.pop("sources")
    step, _, budget = (values.pop(name) for name in ("frame_step", "decode_short_side", "cache_mb"))
    entry = VideoEntry("any", "", 1_000_000 * step, (4096, 4096), generator_seed=0)
    return ClipStream(
        [entry], seed=0, batch_size=1, store=FrameStore(frame_step=step, budget_bytes=budget), **values
    )


def _try(build: Callable[[], object], section: str, keys: Iterable[str], findings: Findings) -> None:
    """Note what a constructor says about its arguments, at the line of the argument it names first."""
    try:
        build()
    except (ValueError, UsageError) as error:
        message = error.message if isinstance(error, UsageError) else str(error)
        named = next((key for key in keys if message.startswith(key)), None)
        findings.add((section,) if named is None else (section, named), f"{section}.{message}")
