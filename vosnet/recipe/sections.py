"""The sections `objective` and `data`: their keys are the fields of the settings they describe."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from pydantic import BeforeValidator, create_model

from vosnet.datasets import stream as streams
from vosnet.datasets.settings import ClipSettings
from vosnet.datasets.source import VideoSource
from vosnet.errors import SettingError
from vosnet.objectives import OBJECTIVES, ObjectiveSettings, objective_settings
from vosnet.recipe.findings import Findings
from vosnet.recipe.problems import suggest
from vosnet.recipe.schema import Recipe, Section, tuple_from_list


def section_of(settings: type[Any], **first: Any) -> type[Section]:
    """A section model with one key per field of a dataclass.

    Args:
        settings: the dataclass; its annotations are the types, its defaults the defaults.
        **first: annotations of required keys that come before.
    """
    hints = typing.get_type_hints(settings, include_extras=True)
    fields: dict[str, Any] = {name: (_from_yaml(annotation), ...) for name, annotation in first.items()}
    for field in dataclasses.fields(settings):
        default, annotation = field.default, hints[field.name]
        if dataclasses.is_dataclass(annotation):  # a section of its own, which its dataclass checks
            is_required = field.default_factory is field.default is dataclasses.MISSING
            annotation, default = (dict[str, Any], ...) if is_required else (dict[str, Any] | None, None)
        fields[field.name] = (_from_yaml(annotation), ... if default is dataclasses.MISSING else default)
    return create_model(settings.__name__, __base__=Section, **fields)


def _from_yaml(annotation: Any) -> Any:
    """`annotation` with a YAML list accepted where a tuple is meant."""
    is_tuple = typing.get_origin(annotation) is tuple or annotation is tuple
    return typing.Annotated[annotation, BeforeValidator(tuple_from_list)] if is_tuple else annotation


DATA_SECTION = section_of(ClipSettings, sources=tuple[VideoSource, ...])


def check_sections(values: dict[str, Any], findings: Findings) -> None:
    """Check `objective` and `data`, each by itself and together, and fill in their defaults, in place."""
    objective = _check_objective(values, findings) if isinstance(values.get("objective"), dict) else None
    clips = _check_clips(values, findings) if isinstance(values.get("data"), dict) else None
    if objective is None or clips is None or findings.problems:
        return
    color_space = (values.get("encoder") or {}).get("color_space", "rgb")
    for key, message in objective.conflicts(clip_len=clips.clip_len, color_space=color_space):
        findings.add_setting(("objective",), SettingError(key, message))


def open_stream(recipe: Recipe, before: streams.ClipStream | None = None) -> streams.ClipStream:
    """The clips that the recipe's data section describes; see `vosnet.datasets.stream.open_stream`.

    Args:
        recipe: of the run, or of one phase.
        before: the stream of the phase before.
    """
    section = DATA_SECTION.model_validate(recipe.data)
    settings = {name: getattr(section, name) for name in type(section).model_fields}
    sources = settings.pop("sources")
    clips = ClipSettings(**settings)
    return streams.open_stream(
        sources, clips, seed=recipe.seed, batch_size=recipe.training.batch_size, before=before
    )


def _check_objective(values: dict[str, Any], findings: Findings) -> ObjectiveSettings | None:
    arguments = dict(values["objective"])
    name = arguments.pop("name", None)
    if name is None:
        findings.add(("objective",), f"objective.name is missing; allowed: {', '.join(OBJECTIVES)}")
        return None
    if name not in OBJECTIVES:
        guess = suggest(str(name), OBJECTIVES)
        hint = f"did you mean {guess!r}?" if guess else f"allowed: {', '.join(OBJECTIVES)}"
        findings.add(("objective", "name"), f"unknown objective {name!r}; {hint}")
        return None
    checked = findings.validate(section_of(OBJECTIVES[name].settings), arguments, ("objective",))
    if checked is None:
        return None
    values["objective"] = {"name": name, **checked.model_dump()}
    try:
        return objective_settings(**values["objective"])
    except SettingError as error:
        findings.add_setting(("objective",), error)
    return None


def _check_clips(values: dict[str, Any], findings: Findings) -> ClipSettings | None:
    checked = findings.validate(DATA_SECTION, values["data"], ("data",))
    if checked is None:
        return None
    values["data"] = checked.model_dump()
    try:
        return ClipSettings(**{k: v for k, v in values["data"].items() if k != "sources"})
    except SettingError as error:
        findings.add_setting(("data",), error)
    return None
