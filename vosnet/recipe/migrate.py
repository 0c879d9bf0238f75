"""Recipes of older versions: renamed keys are carried over with a warning, removed ones are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vosnet.recipe.schema import RECIPE_VERSION

# Nothing was ever released with version 1: these renames keep the way for the first real one open and tested.
RENAMED_IN_2 = {
    ("training", "ema"): ("training", "ema_decay"),
    ("training", "grad_clip"): ("training", "clip_grad_norm"),
    ("optimizer", "learning_rate"): ("optimizer", "lr"),
    ("schedule", "warmup"): ("schedule", "warmup_steps"),
}
REMOVED_IN_2 = {
    ("training", "amp"): "training.precision (float32 or bfloat16)",
}


def migrate(values: dict[str, Any], complain: Callable[[tuple[str | int, ...], str], None]) -> list[str]:
    """Bring `values` to the current version in place.

    Args:
        values: the recipe as parsed.
        complain: called with a key's path and a message for what cannot be carried over.

    Returns:
        One warning per renamed key.
    """
    version = values.get("version", RECIPE_VERSION)
    if version == RECIPE_VERSION or not isinstance(version, int):
        return []
    if version != 1:
        complain(("version",), f"version {version} is newer than this program understands ({RECIPE_VERSION})")
        values["version"] = RECIPE_VERSION
        return []
    warnings = []
    for old, new in RENAMED_IN_2.items():
        section = values.get(old[0])
        if isinstance(section, dict) and old[1] in section:
            section.setdefault(new[1], section.pop(old[1]))
            warnings.append(f"{'.'.join(old)} (recipe version 1) is now {'.'.join(new)}; carried over")
    for old, replacement in REMOVED_IN_2.items():
        section = values.get(old[0])
        if isinstance(section, dict) and old[1] in section:
            complain(old, f"{'.'.join(old)} was removed in version 2; use {replacement}")
            section.pop(old[1])
    values["version"] = RECIPE_VERSION
    return warnings
