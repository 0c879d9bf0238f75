"""When the trained model is not trusted."""

import pytest

from vosnet.adaptation.agreement import lost_objects


@pytest.mark.parametrize(
    ("annotated", "clip", "lost"),
    [
        pytest.param(0.51, 0.26, "", id="just-enough"),
        pytest.param(0.49, 0.9, "lost object 3 (0.49): J with its annotation below 0.5", id="annotation"),
        pytest.param(0.9, 0.24, "lost object 3 (0.24): J with the propagated masks below 0.25", id="clip"),
    ],
)
def test_half_the_agreement_is_asked_against_propagated_masks(
    annotated: float, clip: float, lost: str
) -> None:
    reason = lost_objects({"annotated": {2: 0.8, 3: annotated}, "clip": {2: 0.8, 3: clip}}, 0.5)
    assert lost in reason
    assert bool(lost) == bool(reason)
