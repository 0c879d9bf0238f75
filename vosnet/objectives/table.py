"""Objectives by name: a closed table, so that a recipe cannot import code."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from torch import nn

from vosnet.errors import UsageError
from vosnet.objectives.base import Objective
from vosnet.objectives.color_reconstruction import ColorReconstruction
from vosnet.objectives.cycle_walk import CycleWalk
from vosnet.objectives.dense_correspondence import DenseCorrespondence
from vosnet.objectives.plus_segmentation import PlusSegmentation
from vosnet.objectives.unified import Unified

OBJECTIVES: dict[str, type[Objective]] = {
    "color_reconstruction": ColorReconstruction,
    "cycle_walk": CycleWalk,
    "dense_correspondence": DenseCorrespondence,
    "plus_segmentation": PlusSegmentation,
    "unified": Unified,
}


def build_objective(name: str, encoder: nn.Module, **kwargs: Any) -> Objective:
    """The objective `name` around `encoder`; `kwargs` are its constructor's keyword arguments.

    Raises:
        UsageError: no objective of that name, or it does not take one of the arguments.
    """
    if name not in OBJECTIVES:
        raise UsageError("E150", f"unknown objective {name!r}", f"Known: {', '.join(OBJECTIVES)}.")
    known = [key for key in inspect.signature(OBJECTIVES[name]).parameters if key != "encoder"]
    for key in kwargs:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It takes: {', '.join(known)}."
            raise UsageError("E150", f"objective {name!r} takes no {key!r}", hint)
    return OBJECTIVES[name](encoder, **kwargs)
