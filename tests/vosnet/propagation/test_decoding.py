"""Mask decoding at inference: planes in memory, rounds, late objects, resume, and clear refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.vosnet.models.test_segmenter import TINY
from tests.vosnet.propagation.helpers import make_mask, make_propagator, make_scene
from vosnet import matching
from vosnet.errors import InputError, UsageError
from vosnet.models import MaskSegmenter, build_encoder, save_encoder
from vosnet.models.segmenter import soft_aggregate
from vosnet.propagation import Propagator

BOXES = {1: (8, 8, 30, 30), 2: (20, 40, 44, 60)}


def decoding_propagator(seed: int = 0, **options: Any) -> Propagator:
    torch.manual_seed(seed)
    segmenter = MaskSegmenter(**TINY)
    torch.nn.init.normal_(segmenter.mask_decoder.logit.weight, std=0.5)  # as decided as a trained one
    return make_propagator("unified", segmenter=segmenter, **{"num_recent": 3, **options})


def run(propagator: Propagator, masks: dict[int, np.ndarray], num_frames: int = 6) -> list[np.ndarray]:
    return [result.probs for result in propagator.propagate(make_scene(num_frames), masks)]


def test_the_answer_is_a_distribution_over_background_and_objects_on_a_quarter_of_the_image() -> None:
    tracker = decoding_propagator().tracker()
    frames = make_scene(3)
    tracker.step(frames[0], make_mask(BOXES))
    probs = tracker.step(frames[1])
    assert probs.shape == (3, 12, 18)
    torch.testing.assert_close(probs.sum(0), torch.ones(12, 18))


def test_a_sliced_mask_takes_the_top_left_pixel_of_each_cell_of_the_answer() -> None:
    tracker = decoding_propagator(mask_down="slice").tracker()
    mask = make_mask({1: (9, 10, 30, 31), 2: BOXES[2]})
    probs = tracker.step(make_scene(1)[0], mask)
    assert torch.equal(probs, torch.from_numpy(np.stack([mask[::4, ::4] == i for i in (0, 1, 2)])).float())


def test_rounds_follow_one_another() -> None:
    answers = [run(decoding_propagator(rounds=rounds), {0: make_mask(BOXES)}, 2)[1] for rounds in (1, 2, 3)]
    assert not np.allclose(answers[0], answers[1])
    assert not np.allclose(answers[1], answers[2])


def test_no_round_is_plain_label_copy() -> None:
    masks = {0: make_mask(BOXES)}
    for got, expected in zip(
        run(decoding_propagator(rounds=0), masks), run(make_propagator("crw", num_recent=3), masks)
    ):
        assert np.array_equal(got, expected)


def test_decoding_follows_the_equations() -> None:
    propagator = decoding_propagator(rounds=1)
    tracker, frames = propagator.tracker(), make_scene(2)
    given = tracker.step(frames[0], make_mask({1: BOXES[1]}))
    got = tracker.step(frames[1])
    segmenter, extractor = propagator.segmenter, propagator.extractor
    assert segmenter is not None
    copied = run_planes(propagator, frames, given)
    image = extractor.images(frames[1:])
    with torch.no_grad():
        logits = segmenter.refine(image, copied[None, None, 1:], copied[None, :1], copied[None, :1])
    torch.testing.assert_close(got, soft_aggregate(logits).softmax(1)[0], rtol=1e-3, atol=1e-4)


def test_all_planes_are_copied_by_one_search(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    search = matching.knn_propagate
    monkeypatch.setattr(
        matching, "knn_propagate", lambda *a, **k: counted.append(a[2].shape[2]) or search(*a, **k)
    )
    query, memory = (matching.normalize_features(torch.randn(*n, 4, 5, 6)) for n in ((), (2,)))
    near, value = matching.Neighborhood("disc", 3), torch.rand(2, 70, 5, 6)
    given = {"k": 3, "temperature": 0.1, "neighborhood": near}
    whole = matching.nearest_readout(query, memory, value, **given)
    parts = matching.nearest_readout(query, memory, value, chunks=matching.Chunks(channels=20), **given)
    assert counted == [70, 20, 20, 20, 10]
    torch.testing.assert_close(whole, parts)


def run_planes(propagator: Propagator, frames: np.ndarray, given: torch.Tensor) -> torch.Tensor:
    """Mask and V features of the only object, copied as if each were a mask."""
    protocol, extractor, segmenter = propagator.protocol, propagator.extractor, propagator.segmenter
    assert segmenter is not None
    assert protocol.k is not None
    with torch.no_grad():
        planes = segmenter.embed(extractor.images(frames[:1]), given[None, 1:]).features[0]
    mask = torch.nn.functional.interpolate(given[None, 1:], (6, 9), mode="area")[0]
    memory, query = matching.normalize_features(extractor(frames))
    return matching.nearest_readout(
        query,
        memory.expand(4, -1, -1, -1),
        torch.cat([mask, planes]).expand(4, -1, -1, -1),
        k=protocol.k,
        temperature=0.05,
        neighborhood=protocol.neighborhood,
    )


def test_copied_memory_does_not_feel_the_decoder_and_other_memory_does() -> None:
    kept: dict[str, list[torch.Tensor]] = {"copied": [], "soft": []}
    frames = make_scene(5)
    for memory_values, found in kept.items():
        for seed in (0, 1):
            tracker = decoding_propagator(seed, memory_values=memory_values, rounds=1).tracker()
            tracker.step(frames[0], make_mask(BOXES))
            for frame in frames[1:]:
                tracker.step(frame)
            values = tracker.bank.read(tracker.bank.contexts[0]).values
            masks = [tracker.strategy.planes([channel])[0] for channel in (0, 1, 2)]
            found.append(values[:, masks])
    assert torch.equal(*kept["copied"])
    assert not torch.allclose(*kept["soft"])


@pytest.mark.parametrize("memory_values", ["soft", "hard", "copied"])
def test_an_object_that_appears_later_joins_and_is_decoded(memory_values: str) -> None:
    propagator = decoding_propagator(memory_values=memory_values)
    masks = {0: make_mask({1: BOXES[1]}), 3: make_mask({2: BOXES[2]})}
    answers = run(propagator, masks)
    assert [len(answer) for answer in answers] == [2, 2, 2, 3, 3, 3]
    assert answers[3][2, 22:42, 42:58].min() > 0.5
    assert 0 < answers[5][2].max() <= 1


def test_fewer_objects_at_once_give_the_same_masks() -> None:
    masks = make_mask({**BOXES, 3: (0, 0, 7, 7)})
    frames, whole, split = make_scene(3), decoding_propagator().tracker(), decoding_propagator().tracker()
    split.chunks.channels = 1
    for index, frame in enumerate(frames):
        mask = masks if index == 0 else None
        torch.testing.assert_close(whole.step(frame, mask), split.step(frame, mask), rtol=1e-4, atol=1e-5)


def test_a_tracker_goes_on_from_its_state_and_holds_as_much_as_before() -> None:
    frames, tracker = make_scene(9), decoding_propagator().tracker()
    tracker.step(frames[0], make_mask(BOXES))
    for frame in frames[1:5]:
        tracker.step(frame)
    other = decoding_propagator().tracker()
    other.load_state_dict(tracker.state_dict())
    held = tracker.bank.num_bytes
    for frame in frames[5:]:
        assert torch.equal(tracker.step(frame), other.step(frame))
    assert tracker.bank.num_bytes == held


@pytest.mark.parametrize("preset", ["dul", "crw_decoded", "mast_decoded"])
def test_a_frame_is_prepared_once(preset: str) -> None:
    """Uploaded, resized and normalized once, and encoded once, whatever becomes of it."""
    propagator = make_propagator(preset, segmenter=MaskSegmenter(**TINY), radius=3, short_side=40)
    images, prepared = propagator.extractor.images, []
    propagator.extractor.images = lambda *given: prepared.append(given) or images(*given)
    masks = {0: make_mask({1: BOXES[1]}), 2: make_mask({2: BOXES[2]})}
    assert len(list(propagator.propagate(make_scene(4), masks))) == 4
    assert len(prepared) == 4
    assert propagator.extractor.encoder.function.calls == 4


def test_streamed_frames_get_the_masks_of_listed_ones() -> None:
    frames, masks = make_scene(5), {0: make_mask(BOXES)}
    listed = [r.mask for r in decoding_propagator().propagate(list(frames), masks)]
    streamed = [r.mask for r in decoding_propagator().propagate(iter(frames), masks)]
    assert np.array_equal(np.stack(listed), np.stack(streamed))


def test_planes_keep_their_place_when_objects_come() -> None:
    strategy = decoding_propagator().tracker().strategy
    assert strategy.planes([0, 1]) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert strategy.planes([2]) == [8, 9, 10, 11, 12, 13, 14]


def save(path: Path, segmenter: MaskSegmenter | None) -> Path:
    encoder = build_encoder(layer="layer2", output_stride=8)
    save_encoder(path / "model.safetensors", encoder, {"preset": "unified"}, half=False, segmenter=segmenter)
    return path


def test_a_checkpoint_decodes_by_itself(tmp_path: Path) -> None:
    propagator = Propagator.from_checkpoint(save(tmp_path, MaskSegmenter(**TINY)), device="cpu")
    assert (propagator.protocol.rounds, propagator.protocol.layer) == (3, "layer2")
    assert run(propagator, {0: make_mask(BOXES)}, 2)[1].shape == (3, 48, 72)


def test_without_mask_encoder_and_decoder_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rounds=0") as caught:
        Propagator.from_checkpoint(save(tmp_path, None), device="cpu")
    assert caught.value.code == "E185"
    copying = Propagator.from_checkpoint(tmp_path, device="cpu", rounds=0)
    assert len(run(copying, {0: make_mask(BOXES)}, 2)) == 2
    with pytest.raises(InputError) as caught:
        Propagator.from_checkpoint("random", "unified", "cpu")
    assert caught.value.code == "E185"


def test_any_encoder_needs_a_segmenter_for_rounds() -> None:
    with pytest.raises(UsageError) as caught:
        make_propagator("unified").tracker()
    assert caught.value.code == "E186"
