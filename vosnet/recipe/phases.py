"""A recipe's phases, each as the recipe it would be alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LENGTHS = ("epochs", "steps", "minutes")
_OF_A_DECAY = ("step_epochs", "gamma", "milestones", "final_factor")


def phase_values(values: Mapping[str, Any], phase: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe with those of one of its phases in their places, and without phases.

    Args:
        values: a recipe.
        phase: one item of its `phases`; other keys than sections are left out.
    """
    merged = {key: value for key, value in values.items() if key != "phases"}
    for section in ("objective", "data", "optimizer", "schedule", "training"):
        own = {key: value for key, value in (phase.get(section) or {}).items() if value is not None}
        base = dict(merged.get(section) or {})
        if section == "objective" and own.get("name", base.get("name")) != base.get("name"):
            base = {}
        if section == "schedule":
            base = _without_replaced(base, own)
        merged[section] = {**base, **own}
    return merged


def _without_replaced(schedule: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A schedule without the length or the decay that `own` brings."""
    gone: set[str] = set()
    if any(key in own for key in _LENGTHS):
        gone |= set(_LENGTHS)
    if own.get("decay", schedule.get("decay")) != schedule.get("decay"):
        gone |= set(_OF_A_DECAY)
    return {key: value for key, value in schedule.items() if key not in gone}
