"""A recipe with every default written out: as values, as YAML, as a hash, and compared with another."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import yaml

from vosnet.recipe.schema import Recipe


def resolved_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values with every default written out."""
    values: dict[str, Any] = json.loads(recipe.model_dump_json())
    return values


def resolved_text(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; reading it again gives the same recipe."""
    return yaml.safe_dump(resolved_values(recipe), sort_keys=False, allow_unicode=True)


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of the resolved recipe: equal on all ranks of a run, whatever order keys were written in."""
    return hashlib.sha256(json.dumps(resolved_values(recipe), sort_keys=True).encode()).hexdigest()


def recipe_differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Keys whose values differ, as (dotted key, value in a, value in b)."""
    found: list[tuple[str, Any, Any]] = []
    for key in [*a, *(k for k in b if k not in a)]:
        old, new = a.get(key), b.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += recipe_differences(old, new, f"{prefix}{key}.")
        elif key == "phases" and old and new and len(old) == len(new):
            for index, (before, after) in enumerate(zip(old, new, strict=True)):
                found += recipe_differences(before, after, f"{prefix}{key}.{index}.")
        elif old != new:
            found.append((prefix + key, old, new))
    return found
