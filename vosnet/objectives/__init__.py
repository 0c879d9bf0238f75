"""What is minimized: one file per objective, a closed table of them, and the parts they share."""

from vosnet.objectives.base import Objective, ObjectiveOutput, RefreshInterval, RefreshJob
from vosnet.objectives.cycle_walk import CycleWalk
from vosnet.objectives.dense_correspondence import DenseCorrespondence
from vosnet.objectives.settings import ObjectiveSettings
from vosnet.objectives.table import OBJECTIVES, Listed, build_objective, objective_settings
from vosnet.objectives.unified import Unified

__all__ = [
    "OBJECTIVES",
    "CycleWalk",
    "DenseCorrespondence",
    "Listed",
    "Objective",
    "ObjectiveOutput",
    "ObjectiveSettings",
    "RefreshInterval",
    "RefreshJob",
    "Unified",
    "build_objective",
    "objective_settings",
]
