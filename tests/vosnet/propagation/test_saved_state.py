"""An interrupted clip goes on where it was, with the same result."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.vosnet.propagation.helpers import make_mask, make_propagator, make_scene
from vosnet.errors import InputError

MASKS = {2: make_mask({1: (8, 8, 32, 32)}), 5: make_mask({9: (16, 40, 40, 64)})}
FRAMES = make_scene(12)


def masks_of(results: Any) -> dict[int, np.ndarray]:
    return {result.index: result.mask for result in results}


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
@pytest.mark.parametrize("stop", [3, 6, 11])
def test_a_resumed_clip_equals_the_uninterrupted_one(tmp_path: Path, direction: str, stop: int) -> None:
    spill, propagator = tmp_path / "state.safetensors", make_propagator(num_recent=3)
    expected = masks_of(propagator.propagate(FRAMES, MASKS, direction=direction))
    options: dict[str, Any] = {"direction": direction, "spill": spill, "spill_every": 2}
    first: dict[int, np.ndarray] = {}
    for result in propagator.propagate(FRAMES, MASKS, **options):
        first[result.index] = result.mask
        if len(first) == min(stop, len(expected) - 1):
            break
    propagator.extractor.encoder.function.calls = 0
    second = masks_of(propagator.propagate(FRAMES, MASKS, **options))
    assert propagator.extractor.encoder.function.calls < len(expected)
    assert {**first, **second}.keys() == expected.keys()
    assert all(np.array_equal(mask, expected[index]) for index, mask in {**first, **second}.items())
    assert not spill.exists()


def interrupt(spill: Path) -> None:
    for result in make_propagator().propagate(FRAMES, MASKS, spill=spill, spill_every=2):
        if result.index == 7:
            return


def test_a_frame_counts_as_done_only_after_the_caller_came_back_for_the_next(tmp_path: Path) -> None:
    spill = tmp_path / "state"
    results = make_propagator().propagate(FRAMES, MASKS, spill=spill, spill_every=1)
    next(results)
    assert not spill.exists()
    next(results)
    assert spill.exists()


def test_a_state_of_other_masks_or_settings_is_refused(tmp_path: Path) -> None:
    spill = tmp_path / "state"
    interrupt(spill)
    other = {**MASKS, 5: MASKS[2] * 3}
    with pytest.raises(InputError, match=r"E285 .*other masks, settings or weights\. Delete it"):
        list(make_propagator().propagate(FRAMES, other, spill=spill))
    with pytest.raises(InputError, match="E285"):
        list(make_propagator(k=9).propagate(FRAMES, MASKS, spill=spill))
    with pytest.raises(InputError, match="E285"):
        list(make_propagator().propagate(FRAMES, {**MASKS, 6: MASKS[5]}, spill=spill))
    renamed = make_propagator()
    renamed.source = "other weights"
    with pytest.raises(InputError, match="E285"):
        list(renamed.propagate(FRAMES, MASKS, spill=spill))


def test_a_state_of_another_direction_is_refused(tmp_path: Path) -> None:
    spill = tmp_path / "state"
    interrupt(spill)  # forward from frame 2; "both" begins with the same frames
    for direction in ("both", "backward"):
        with pytest.raises(InputError, match="E285"):
            list(make_propagator().propagate(FRAMES, MASKS, spill=spill, direction=direction))
    assert next(make_propagator().propagate(FRAMES, MASKS, spill=spill)).index > 2


@pytest.mark.parametrize("keep", [0, 100, -7])
def test_f24_a_damaged_state_is_refused(tmp_path: Path, keep: int) -> None:
    spill = tmp_path / "state"
    interrupt(spill)
    spill.write_bytes(spill.read_bytes()[:keep])
    with pytest.raises(InputError, match="E285 .*damaged"):
        list(make_propagator().propagate(FRAMES, MASKS, spill=spill))
