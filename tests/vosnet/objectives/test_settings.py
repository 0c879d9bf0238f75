"""Options of objectives, made of a recipe's keys."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from vosnet.errors import SettingError
from vosnet.objectives import OBJECTIVES, objective_settings


def test_options_cannot_change_after_they_were_checked() -> None:
    for row in OBJECTIVES.values():
        assert row.settings.__dataclass_params__.frozen  # type: ignore[attr-defined]
    settings = objective_settings("cycle_walk")
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.temperature = 0.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"temperature": "warm"}, "temperature"),
        ({"grid_size": 2.5}, "grid_size"),
        ({"clustering": {"upsample": 0}}, "clustering.upsample"),
        ({"mask_embedding": {"arch": "vit"}}, "mask_embedding.arch"),
        ({"mask_embedding": {"depth": 0}}, "mask_embedding.depth"),
        ({"refresh_steps": 0}, "refresh_steps"),
        ({"affinity_temperature": -1.0}, "affinity_temperature"),
    ],
)
def test_an_error_carries_the_key_it_is_about(keys: dict[str, Any], key: str) -> None:
    with pytest.raises(SettingError) as caught:
        objective_settings("unified", **keys)
    assert caught.value.key == key
    with pytest.raises(SettingError) as caught:
        objective_settings("plus_segmentation", base={"name": "cycle_walk", "edge_dropout": 1.0})
    assert caught.value.key == "base.edge_dropout"


def test_what_the_unified_paper_states_is_the_default() -> None:
    settings: Any = objective_settings("unified")
    assert (settings.clustering.num_clusters, settings.refresh_interval.epochs) == (5, 10)
    weights = (settings.short_term_weight, settings.long_term_weight, settings.segmentation_weight)
    assert weights == (1, 1, 1)  # ours: the paper adds the terms up
    assert (settings.loss, settings.alignment, settings.stop_gradient) == ("infonce", "hard", "target")
    assert settings.mask_embedding.encoder_gradient
