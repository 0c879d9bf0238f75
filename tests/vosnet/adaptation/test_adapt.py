"""Online adaptation on small generated clips: it repairs, it falls back, it repeats itself."""

from typing import Any

import numpy as np
import pytest
import torch

from vosnet import Propagator
from vosnet.adaptation.adapt import Adaptation, PackedMasks, adapt
from vosnet.adaptation.settings import AdaptationSettings, make_settings
from vosnet.errors import InputError, OutOfMemoryError, UsageError
from vosnet.masks import object_ids
from vosnet.metrics import region_similarity
from vosnet.synthetic import make_clip

CLIP = make_clip(3, num_frames=12, size=(64, 96), num_objects=1, num_distractors=0)
TOY: dict[str, Any] = {
    "size": 64, "decoder_dims": (32, 16, 16, 16), "iterations": 25, "lr": 3e-3, "precision": "float32",
}  # fmt: skip


def noisy_masks() -> PackedMasks:
    """Masks with background patches that are wrong and holes, other ones in every frame but the first."""
    rng = np.random.default_rng(0)
    masks = PackedMasks()
    for t, true in enumerate(CLIP.masks):
        mask = true.copy()
        for _ in range(0 if t == 0 else 5):
            y, x = rng.integers(0, 56), rng.integers(0, 88)
            mask[y : y + 8, x : x + 8] = 1 - mask[y : y + 8, x : x + 8]
        masks[t] = mask
    return masks


def adapted(masks: Any = None, **settings: Any) -> Adaptation:
    return adapt(
        CLIP.frames,
        masks or noisy_masks(),
        {0: CLIP.masks[0]},
        make_settings(**{**TOY, **settings}),
        device="cpu",
    )


def mean_similarity(masks: Any) -> float:
    return float(np.mean([region_similarity(masks[t] == 1, CLIP.masks[t] == 1) for t in range(1, 12)]))


def test_noise_in_propagated_masks_is_repaired_and_the_first_mask_stays() -> None:
    noisy, adaptation = noisy_masks(), adapted()
    masks = dict(adaptation.masks(CLIP.frames))
    assert adaptation.report.kept_propagated == ""
    assert mean_similarity(masks) > mean_similarity(noisy) + 0.05
    assert np.array_equal(masks[0], CLIP.masks[0])
    assert adaptation.report.loss is not None
    assert adaptation.report.loss[1] < adaptation.report.loss[0]


def test_the_seed_decides_everything() -> None:
    one, same, other = (
        list(adapted(iterations=3, min_agreement=0.0, seed=seed).masks(CLIP.frames)) for seed in (0, 0, 1)
    )
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(one, same))
    assert not all(np.array_equal(a, b) for (_, a), (_, b) in zip(one, other))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"iterations": 1}, "lost object 1"), ({"lr": 1e30, "iterations": 3}, "the loss was nan")],
    ids=["learned-nothing", "diverged"],
)
def test_a_model_that_failed_leaves_the_propagated_masks_and_says_so(settings: Any, reason: str) -> None:
    noisy, adaptation = noisy_masks(), adapted(**settings)
    assert reason in adaptation.report.kept_propagated
    masks = dict(adaptation.masks(CLIP.frames))
    assert all(np.array_equal(masks[t], noisy[t]) for t in range(12))


def test_one_frame_gives_the_mask_itself_without_training() -> None:
    adaptation = adapt(CLIP.frames[:1], {0: CLIP.masks[0]}, {0: CLIP.masks[0]}, device="cpu")
    ((index, mask),) = adaptation.masks(CLIP.frames[:1])
    assert index == 0
    assert np.array_equal(mask, CLIP.masks[0])
    assert adaptation.report.iterations == 0


def test_forty_objects_and_one_that_joins_later() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (3, 40, 56, 3), np.uint8)
    first = np.arange(40 * 56).reshape(40, 56) // 56 + 1
    late = np.zeros_like(first)
    late[5:9, 5:9] = 200
    given = {0: first.astype(np.uint8), 1: late.astype(np.uint8)}
    masks = {0: given[0], 1: np.where(late, late, first).astype(np.uint8), 2: given[0]}
    settings = make_settings(**{**TOY, "iterations": 1, "min_agreement": 0.0})
    found = dict(adapt(frames, masks, given, settings, device="cpu").masks(frames))
    assert set(found) == {0, 1, 2}
    assert set(object_ids(found[2])) <= {*range(1, 41), 200}
    assert (found[1][5:9, 5:9] == 200).all()
    assert np.array_equal(found[0], given[0])


def test_frames_without_a_propagated_mask_are_left_out() -> None:
    noisy = noisy_masks()
    part = {t: noisy[t] for t in range(4, 12)}
    settings = make_settings(**{**TOY, "iterations": 1, "min_agreement": 0.0})
    adaptation = adapt(CLIP.frames, part, {4: CLIP.masks[4]}, settings, device="cpu")
    assert [index for index, _ in adaptation.masks(CLIP.frames)] == list(range(4, 12))


def test_training_frames_are_bounded() -> None:
    assert adapted(iterations=1, max_frames=4).report.frames <= 5


def test_steps_are_reported_and_the_global_random_state_is_left() -> None:
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    steps: list[tuple[int, float]] = []
    settings = make_settings(**{**TOY, "iterations": 3})
    adapt(
        CLIP.frames, noisy_masks(), {0: CLIP.masks[0]}, settings, device="cpu",
        on_step=lambda iteration, loss, model: steps.append((iteration, loss)),
    )  # fmt: skip
    assert [iteration for iteration, _ in steps] == [1, 2, 3]
    assert torch.equal(torch.rand(2), expected)


def test_packed_masks_come_back_and_are_small() -> None:
    packed = PackedMasks()
    packed[3] = CLIP.masks[3]
    assert np.array_equal(packed[3], CLIP.masks[3])
    assert list(packed) == [3]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"iteratoins": 3}, "Did you mean iterations"),
        ({"iterations": 0}, "iterations must be"),
        ({"lr": -1.0}, "lr must be positive"),
        ({"given_share": 2}, "given_share must lie"),
        ({"decay": "cubic"}, "decay must be one of"),
        ({"zoom": [0.5, 2]}, "zoom must be"),
        ({"lr": "fast"}, "wrong type"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_settings(**values)


def test_inputs_that_do_not_fit_are_refused() -> None:
    masks, given = noisy_masks(), {0: CLIP.masks[0]}
    with pytest.raises(UsageError, match="twice"):
        adapt(iter(CLIP.frames), masks, given, AdaptationSettings())
    with pytest.raises(InputError, match="48x32, but the frame is 96x64"):
        adapt(CLIP.frames, {1: np.zeros((32, 48), np.uint8)}, given, AdaptationSettings())
    with pytest.raises(InputError, match="annotated object"):
        adapt(CLIP.frames, masks, {0: np.zeros((64, 96), np.uint8)}, AdaptationSettings())


def test_a_propagator_adapts_what_it_propagated() -> None:
    propagator = Propagator.from_checkpoint("random", device="cpu", layer="layer2", num_recent=2)
    settings = make_settings(**{**TOY, "iterations": 1, "min_agreement": 0.0})
    frames = list(CLIP.frames[:4])
    adaptation = propagator.adapt(frames, {0: CLIP.masks[0]}, settings)
    masks = dict(adaptation.masks(frames))
    assert list(masks) == [0, 1, 2, 3]
    assert np.array_equal(masks[0], CLIP.masks[0])
    with pytest.raises(UsageError, match="twice"):
        propagator.adapt(iter(frames), {0: CLIP.masks[0]}, settings)


def test_a_batch_that_does_not_fit_names_the_way_out() -> None:
    def run_out(iteration: int, loss: float, model: Any) -> None:
        raise MemoryError

    settings = make_settings(**{**TOY, "iterations": 1})
    with pytest.raises(OutOfMemoryError, match="smaller batch_size"):
        adapt(CLIP.frames, noisy_masks(), {0: CLIP.masks[0]}, settings, device="cpu", on_step=run_out)
