"""Whole clips: directions, streaming, bounded memory, sources, and the ways in."""

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.vosnet.propagation.helpers import make_mask, make_propagator, make_scene
from vosnet.errors import InputError, UsageError
from vosnet.models import build_encoder, save_encoder
from vosnet.propagation import PRESETS, Propagator

BOX = (8, 8, 32, 32)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_carries_a_mask_through_a_clip(preset: str) -> None:
    frames = make_scene(6, size=(64, 96))
    mask = make_mask({1: BOX, 5: (32, 48, 64, 96)}, (64, 96))
    propagator = make_propagator(preset, short_side=None, multiple=1, rounds=0)  # decoding: test_mask_rounds
    results = list(propagator.propagate(frames, {0: mask}))
    assert [result.index for result in results] == list(range(6))
    assert np.array_equal(results[0].mask, mask)
    for result in results:
        assert result.mask.shape == (64, 96)
        assert set(np.unique(result.mask)) == {0, 1, 5}


def test_short_side_and_multiple_resize_what_the_network_sees_not_the_answer() -> None:
    frames = make_scene(3, size=(50, 81))
    mask = make_mask({1: BOX}, (50, 81))
    for preset in ("vfs", "dino"):
        results = list(make_propagator(preset, short_side=32).propagate(frames, {0: mask}))
        assert results[-1].mask.shape == (50, 81)
        assert (results[-1].mask == 1).any()


def test_odd_sizes_come_back_exactly() -> None:
    for size in ((31, 45), (9, 200), (16, 16)):
        mask = make_mask({1: (0, 0, 9, 12)}, size)
        results = list(make_propagator().propagate(make_scene(3, size=size), {0: mask}))
        assert {result.mask.shape for result in results} == {size}
        assert results[-1].probs.shape == (2, *size)


@pytest.mark.filterwarnings("error")
def test_views_and_read_only_arrays_are_fine() -> None:
    frames, mask = make_scene(3), make_mask({1: BOX})
    plain = [
        r.mask for r in make_propagator().propagate(frames[:, :, ::-1].copy(), {0: mask[:, ::-1].copy()})
    ]
    frames.flags.writeable = mask.flags.writeable = False
    views = [r.mask for r in make_propagator().propagate(frames[:, :, ::-1], {0: mask[:, ::-1]})]
    assert np.array_equal(plain, views)


def test_probs_at_full_size_decide_the_mask() -> None:
    result = list(make_propagator().propagate(make_scene(4), {0: make_mask({4: BOX, 9: (24, 40, 48, 72)})}))[
        -1
    ]
    ids = np.array([0, *result.ids])
    assert np.array_equal(ids[result.probs.argmax(0)], result.mask)
    np.testing.assert_allclose(result.probs.sum(0), 1, atol=1e-5)


def test_annotated_frames_are_answered_with_the_given_pixels_unless_asked_otherwise() -> None:
    mask = make_mask({1: (9, 11, 30, 29)})
    kept = next(iter(make_propagator().propagate(make_scene(2), {0: mask}))).mask
    resampled = next(iter(make_propagator().propagate(make_scene(2), {0: mask}, keep_annotations=False))).mask
    assert np.array_equal(kept, mask)
    assert not np.array_equal(resampled, mask)


def test_f08_a_clip_of_one_frame_gives_the_mask_itself() -> None:
    mask = make_mask({3: BOX})
    for direction in ("forward", "backward", "both"):
        results = list(make_propagator().propagate(make_scene(1), {0: mask}, direction=direction))
        assert len(results) == 1
        assert np.array_equal(results[0].mask, mask)


def test_backward_is_forward_on_the_reversed_clip() -> None:
    frames, masks = make_scene(7), {6: make_mask({1: BOX}), 3: make_mask({2: (16, 40, 48, 64)})}
    backward = list(make_propagator().propagate(frames, masks, direction="backward"))
    mirrored = {6 - index: mask for index, mask in masks.items()}
    forward = list(make_propagator().propagate(frames[::-1], mirrored))
    assert [result.index for result in backward] == [6, 5, 4, 3, 2, 1, 0]
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(backward, forward))


def test_both_directions_answer_every_frame_once() -> None:
    frames, mask = make_scene(7), make_mask({1: BOX})
    results = list(make_propagator().propagate(frames, {3: mask}, direction="both"))
    assert [result.index for result in results] == [3, 4, 5, 6, 2, 1, 0]
    backward = list(make_propagator().propagate(frames, {3: mask}, direction="backward"))
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(results[4:], backward[1:]))


def test_forward_starts_at_the_first_annotated_frame() -> None:
    results = list(make_propagator().propagate(make_scene(6), {4: make_mask({1: BOX})}))
    assert [result.index for result in results] == [4, 5]
    results = list(make_propagator().propagate(iter(make_scene(6)), {4: make_mask({1: BOX})}))
    assert [result.index for result in results] == [4, 5]


def test_backward_needs_frames_that_can_be_indexed() -> None:
    with pytest.raises(UsageError, match=r"E165 .*only streams\. Give a list"):
        make_propagator().propagate(iter(make_scene(3)), {2: make_mask({1: BOX})}, direction="backward")


def test_masks_must_name_frames_of_the_clip() -> None:
    propagator, mask = make_propagator(), make_mask({1: BOX})
    with pytest.raises(InputError, match="E284 mask for frame 9, but the clip has 3 frames"):
        propagator.propagate(make_scene(3), {9: mask})
    with pytest.raises(InputError, match="E284"):
        list(propagator.propagate(iter(make_scene(3)), {0: mask, 9: mask}))
    with pytest.raises(InputError, match="E284"):
        list(propagator.propagate(iter(make_scene(3)), {9: mask}))
    with pytest.raises(InputError, match="E284 mask for frame -1"):
        propagator.propagate(make_scene(3), {-1: mask})
    with pytest.raises(UsageError, match="E165 no mask"):
        propagator.propagate(make_scene(3), {})
    with pytest.raises(UsageError, match="E165 direction"):
        propagator.propagate(make_scene(3), {0: mask}, direction="sideways")


def test_results_come_while_frames_stream_in() -> None:
    taken = []

    def stream() -> Iterator[np.ndarray]:
        for t, frame in enumerate(make_scene(5)):
            taken.append(t)
            yield frame

    for result in make_propagator().propagate(stream(), {0: make_mask({1: BOX})}):
        assert taken == list(range(result.index + 1))


def live_tensor_bytes() -> int:
    gc.collect()
    tensors = {t.untyped_storage().data_ptr(): t for t in gc.get_objects() if type(t) is torch.Tensor}
    return sum(t.untyped_storage().nbytes() for t in tensors.values())


def test_f13_memory_does_not_grow_with_the_length_of_the_clip() -> None:
    size = (16, 24)
    frame = make_scene(1, size=size)[0]
    frames = (np.roll(frame, t, axis=1) for t in range(200))
    mask = make_mask({1: (0, 0, 8, 16)}, size)
    held = {}
    for result in make_propagator(radius=8, k=3, first_frame="local", num_recent=9).propagate(
        frames, {0: mask}
    ):
        if result.index in {20, 199}:
            held[result.index] = live_tensor_bytes()
    assert held[199] <= 1.2 * held[20]


def test_the_random_encoder_is_named(tmp_path: Path) -> None:
    propagator = Propagator.from_checkpoint("random", "crw", "cpu", seed=2)
    assert propagator.source == "random encoder (seed 2)"
    assert propagator.protocol.layer == "layer3"
    assert propagator.device == "cpu"


def test_a_checkpoint_names_its_preset_and_layer(tmp_path: Path) -> None:
    file = tmp_path / "ours.safetensors"
    save_encoder(file, build_encoder(layer="layer3"), {"preset": "vfs"})
    own = Propagator.from_checkpoint(file, device="cpu")
    assert (own.protocol.temperature, own.protocol.layer) == (0.07, "layer3")
    assert str(file) in own.source
    other = Propagator.from_checkpoint(file, "dul", "cpu", layer="layer2", num_recent=4)
    assert (other.protocol.context, other.protocol.layer, other.protocol.num_recent) == (
        "replicate",
        "layer2",
        4,
    )
    with pytest.raises(InputError, match="missing layer4"):
        Propagator.from_checkpoint(file, layer="layer4", device="cpu")


def test_wrong_settings_are_named_before_anything_is_read() -> None:
    with pytest.raises(UsageError, match=r"'temprature' .*Did you mean temperature\?"):
        Propagator.from_checkpoint("missing.pth", temprature=0.1)
    with pytest.raises(UsageError, match="preset 'dull' is unknown"):
        Propagator.from_checkpoint("missing.pth", "dull")


def test_f40_without_a_gpu_auto_means_the_cpu_and_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert Propagator.from_checkpoint("random", "crw").device == "cpu"
    with pytest.raises(UsageError, match=r"E162 .*0 CUDA devices\. Use --device auto or cpu"):
        Propagator.from_checkpoint("random", device="cuda")
    for name in ("cuda:x", "mps", "tpu"):
        with pytest.raises(UsageError, match="E162"):
            Propagator.from_checkpoint("random", device=name)


def test_importing_the_package_does_not_import_torch() -> None:
    script = "import sys, vosnet; assert 'torch' not in sys.modules; vosnet.Propagator.propagate"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
