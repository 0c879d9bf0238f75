"""Every switch that published propagations differ in, against FACTS about each of them."""

import dataclasses

import pytest

from vosnet.errors import UsageError
from vosnet.matching import Neighborhood
from vosnet.propagation import PRESETS, Protocol, make_protocol

# Every switch of every preset. Ours, because no paper or code says: whatever a mask needs on its way for
# `memory_tracker` and `unified` (see the comments at the presets).
ALL = {
    "readout": "nearest", "normalize": True, "outside": "exclude", "references": None, "far_after": None,
    "max_dilation": 4, "empty_objects": "refuse", "short_side": None, "multiple": 1, "rounding": "floor",
    "decide_at": "source", "std": None, "rounds": 0, "mask_up": "bilinear",
}  # fmt: skip
CRW = {
    **ALL, "layer": "layer3", "shape": "disc", "radius": 12, "strict": True, "first_frame": "global",
    "context": "replicate", "num_recent": 20, "k": 10, "temperature": 0.05, "mask_down": "bilinear",
    "down_align_corners": False, "up_align_corners": False, "min_max": False, "memory_values": "soft",
}  # fmt: skip
MAST = {
    **ALL, "layer": "layer4", "shape": "square", "radius": 12, "strict": False, "first_frame": "local",
    "context": "mast", "num_recent": 0, "references": 5, "far_after": 15, "max_dilation": 4, "k": None,
    "readout": "window", "normalize": False, "temperature": "sqrt_dim", "outside": "zero",
    "mask_down": "slice", "down_align_corners": False, "up_align_corners": False, "min_max": False,
    "memory_values": "hard",
}  # fmt: skip
PUBLISHED = {
    "dul": {**CRW, "layer": "layer4", "down_align_corners": True, "up_align_corners": True},
    "crw": CRW,
    "vfs": {
        **CRW, "first_frame": "local", "context": "clamp", "temperature": 0.07, "mask_down": "nearest",
        "min_max": True, "short_side": 480,
    },
    "dino": {
        **CRW, "layer": "layer4", "shape": "square", "strict": False, "first_frame": "local",
        "context": "queue", "num_recent": 7, "k": 5, "temperature": 0.1, "mask_down": "nearest",
        "min_max": True, "short_side": 480, "multiple": 64, "decide_at": "input",
        "std": (0.228, 0.224, 0.225),
    },
    "mast": MAST,
    "memory_tracker": {**MAST, "mask_down": "nearest"},
    "unified": {**CRW, "layer": "layer4", "rounds": 3, "memory_values": "copied"},
    "crw_decoded": {**CRW, "rounds": 3, "memory_values": "copied"},
    "mast_decoded": {**MAST, "rounds": 3},
}  # fmt: skip


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_hold_the_published_switches(preset: str) -> None:
    assert dataclasses.asdict(PRESETS[preset]) == PUBLISHED[preset]


def test_a_strict_square_is_one_cell_smaller_for_the_kernels() -> None:
    assert make_protocol("dino").neighborhood == Neighborhood("square", 12, 0)
    assert make_protocol("dino", strict=True).neighborhood == Neighborhood("square", 11, 0)
    assert make_protocol("dul").neighborhood == Neighborhood("disc", 12, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": "diamond"}, {"context": "all"}, {"first_frame": "none"}, {"mask_down": "area"},
        {"radius": 0}, {"radius": 2.5}, {"k": 0}, {"num_recent": -1}, {"num_recent": None}, {"rounds": -1},
        {"far_after": 0}, {"temperature": 0.0},
        {"temperature": float("nan")}, {"temperature": float("inf")}, {"short_side": 0}, {"strict": False},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_values_are_refused_by_name(wrong: dict[str, object]) -> None:
    name = "closed" if "strict" in wrong else next(iter(wrong))
    with pytest.raises(UsageError, match=f"E164 .*{name}"):
        make_protocol("dul", **wrong)


WINDOW = {"readout": "window", "k": None, "shape": "square", "strict": False, "first_frame": "local"}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        pytest.param({"k": None}, "'nearest' needs k", id="nearest-without-k"),
        pytest.param({"outside": "zero"}, "outside belongs to readout 'window'", id="nearest-outside"),
        pytest.param({**WINDOW, "k": 10}, "weighs every cell, but k is 10", id="window-with-k"),
        pytest.param({**WINDOW, "shape": "disc", "strict": True}, "got shape 'disc'", id="window-disc"),
        pytest.param({**WINDOW, "first_frame": "global"}, "first_frame 'global'", id="window-global"),
    ],
)
def test_switches_that_do_not_go_together_are_refused(wrong: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=f"E170 .*{reason}"):
        make_protocol("dul", **wrong)


@pytest.mark.parametrize(
    ("preset", "wrong", "reason"),
    [
        pytest.param("dul", {"references": 5}, "references belongs to context 'mast'", id="references"),
        pytest.param("dul", {"far_after": 15}, "far_after belongs to context 'mast'", id="far-after"),
        pytest.param("mast", {"references": 4}, r"one of \(1, 3, 5, 'all'\), got 4", id="four"),
        pytest.param("mast", {"references": True}, "got True", id="true"),
        pytest.param("mast", {"num_recent": 20}, "takes references, not num_recent", id="num-recent"),
        pytest.param(
            "mast",
            {"readout": "nearest", "k": 9, "outside": "exclude"},
            "far_after needs readout",
            id="nearest",
        ),
    ],
)
def test_switches_of_another_context_are_refused(preset: str, wrong: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=f"E171 .*{reason}"):
        make_protocol(preset, **wrong)


@pytest.mark.parametrize(
    ("gap", "dilation"), [(1, 1), (15, 1), (16, 2), (29, 2), (30, 3), (44, 3), (45, 4), (500, 4)]
)
def test_mast_searches_farther_the_older_a_frame_is(gap: int, dilation: int) -> None:
    assert make_protocol("mast").dilation(gap) == dilation
    assert make_protocol("mast", far_after=None).dilation(gap) == 1


def test_a_temperature_may_follow_the_number_of_channels() -> None:
    assert make_protocol("dul").temperature_for(64) == 0.05
    assert make_protocol("dul", temperature="sqrt_dim").temperature_for(64) == 8.0
    with pytest.raises(UsageError, match="E164 temperature must be a number or 'sqrt_dim', got 'sqrt'"):
        make_protocol("dul", temperature="sqrt")


def test_every_switch_can_be_overridden() -> None:
    protocol = make_protocol("dul", layer="layer3", shape="square", strict=False, first_frame="local")
    assert isinstance(protocol, Protocol)
    assert protocol.neighborhood == Neighborhood("square", 12, 0)
    assert PRESETS["dul"].layer == "layer4"
