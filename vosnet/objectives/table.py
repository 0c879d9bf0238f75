"""Objectives by name: a closed table, so that a recipe cannot import code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from vosnet.errors import SettingError, UsageError
from vosnet.objectives.base import Objective
from vosnet.objectives.color_reconstruction import ColorReconstruction, ColorReconstructionSettings
from vosnet.objectives.cycle_walk import CycleWalk, CycleWalkSettings
from vosnet.objectives.dense_correspondence import DenseCorrespondence, DenseCorrespondenceSettings
from vosnet.objectives.plus_segmentation import PlusSegmentation, PlusSegmentationSettings
from vosnet.objectives.settings import ObjectiveSettings, settings_from
from vosnet.objectives.unified import Unified, UnifiedSettings


class Listed(NamedTuple):
    """One row of the table.

    Args:
        settings: the keys of its recipe section.
        build: makes the objective from an encoder and the settings.
    """

    settings: type[ObjectiveSettings]
    build: Callable[[nn.Module, Any], Objective]


def _plus_segmentation(encoder: nn.Module, settings: PlusSegmentationSettings) -> Objective:
    return PlusSegmentation(_build(settings.base, encoder), settings)


OBJECTIVES: dict[str, Listed] = {
    "color_reconstruction": Listed(ColorReconstructionSettings, ColorReconstruction),
    "cycle_walk": Listed(CycleWalkSettings, CycleWalk),
    "dense_correspondence": Listed(DenseCorrespondenceSettings, DenseCorrespondence),
    "plus_segmentation": Listed(PlusSegmentationSettings, _plus_segmentation),
    "unified": Listed(UnifiedSettings, Unified),
}


def objective_settings(name: str, **keys: Any) -> ObjectiveSettings:
    """The checked settings of the objective `name` from the keys of its recipe section.

    Raises:
        UsageError: no objective of that name (E150).
        SettingError: a key is unknown or a value out of range.
    """
    if name not in OBJECTIVES:
        raise UsageError("E150", f"unknown objective {name!r}", f"Known: {', '.join(OBJECTIVES)}.")
    if isinstance(keys.get("base"), dict):
        keys["base"] = _base_settings(**keys["base"])
    return settings_from(OBJECTIVES[name].settings, keys)


def build_objective(name: str, encoder: nn.Module, **keys: Any) -> Objective:
    """The objective `name` around `encoder`; `keys` are those of its recipe section.

    Raises:
        UsageError: no objective of that name (E150).
        SettingError: a key is unknown or a value out of range.
    """
    return _build(objective_settings(name, **keys), encoder)


def _build(settings: ObjectiveSettings, encoder: nn.Module) -> Objective:
    row = next(row for row in OBJECTIVES.values() if row.settings is type(settings))
    return row.build(encoder, settings)


def _base_settings(name: Any = None, **keys: Any) -> ObjectiveSettings:
    """Settings of the objective inside another one; errors lead to its section, `base`."""
    try:
        return objective_settings(name, **keys)
    except SettingError as error:
        raise error.under("base") from error
    except UsageError as error:
        raise SettingError("base.name", f"{error.message}. {error.hint}") from error
