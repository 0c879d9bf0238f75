"""Label maps down to the feature grid and back up."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.vosnet.propagation.helpers import make_mask
from vosnet.propagation import make_protocol
from vosnet.propagation.masks import decide, input_size, mask_to_values, stretch, upsample

SIZE, GRID = (50, 83), (7, 11)
MASK = make_mask({3: (5, 7, 31, 44), 8: (20, 40, 50, 83)}, SIZE)


def test_nearest_is_the_nearest_of_pillow() -> None:
    values = mask_to_values(MASK, [0, 3, 8], GRID, make_protocol("vfs", short_side=None), 8)
    expected = np.asarray(Image.fromarray(MASK).resize(GRID[::-1], Image.Resampling.NEAREST))
    assert np.array_equal(np.array([0, 3, 8])[values.argmax(0)], expected)
    assert set(values.unique().tolist()) == {0.0, 1.0}


def test_slice_takes_the_top_left_pixel_of_each_cell() -> None:
    values = mask_to_values(MASK, [0, 3, 8], GRID, make_protocol("crw", mask_down="slice"), 8)
    assert np.array_equal(np.array([0, 3, 8])[values.argmax(0)], MASK[::8, ::8])


def test_aligned_corners_keep_the_corner_pixels() -> None:
    mask = np.zeros(SIZE, np.uint8)
    mask[0, 0] = mask[-1, -1] = 1
    aligned = mask_to_values(mask, [1], GRID, make_protocol("dul"), 8)[0]
    assert (aligned[0, 0], aligned[-1, -1]) == (1.0, 1.0)
    centered = mask_to_values(mask, [1], GRID, make_protocol("crw"), 8)[0]
    assert (centered[0, 0], centered[-1, -1]) == (0.0, 0.0)


def test_half_pixel_centers_are_those_of_opencv() -> None:
    cv2 = pytest.importorskip("cv2")
    values = mask_to_values(MASK, [3], GRID, make_protocol("crw"), 8)[0]
    expected = cv2.resize((MASK == 3).astype(np.float32), GRID[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(values.numpy(), expected, atol=1e-5)
    large = upsample(values[None], SIZE, make_protocol("crw"))[0]
    expected = cv2.resize(values.numpy(), SIZE[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(large.numpy(), expected, atol=1e-5)


def test_soft_values_of_all_ids_sum_to_one() -> None:
    values = mask_to_values(MASK, [0, 3, 8], GRID, make_protocol("dul"), 8)
    torch.testing.assert_close(values.sum(0), torch.ones(GRID))


def test_stretching_reaches_0_and_1_and_survives_a_constant_channel() -> None:
    probs = torch.tensor([[[0.2, 0.2]], [[0.1, 0.3]], [[0.0, 1.0]]])
    assert stretch(probs).tolist() == [[[0.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]]]


def test_stretching_lets_a_weak_object_win() -> None:
    probs = torch.full((2, 4, 4), 0.6)
    probs[0, 0, 0] = 0.9
    probs[1] = 0.1
    probs[1, 2:, 2:] = 0.4
    assert not decide(probs, [5], (32, 32), make_protocol("crw")).any()
    assert (decide(probs, [5], (32, 32), make_protocol("crw", min_max=True))[-8:, -8:] == 5).all()


@pytest.mark.parametrize("min_max", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 32])
def test_chunks_of_channels_decide_the_same(channels: int, min_max: bool) -> None:
    probs = torch.rand(8, *GRID, generator=torch.Generator().manual_seed(2))
    protocol = make_protocol("crw", min_max=min_max)
    ids = [2, 4, 6, 8, 10, 12, 255]
    expected = np.array([0, *ids])[upsample(probs, SIZE, protocol).argmax(0)]
    assert np.array_equal(decide(probs, ids, SIZE, protocol, channels), expected)


def test_equal_probabilities_go_to_the_lowest_channel() -> None:
    assert not decide(torch.full((40, 2, 2), 0.5), list(range(1, 40)), (4, 4), make_protocol("dul")).any()


@pytest.mark.parametrize(
    ("switches", "size", "expected"),
    [
        pytest.param({}, (480, 854), (480, 854), id="as-it-is"),
        pytest.param({"short_side": 480}, (1080, 1920), (480, 853), id="short-side"),
        pytest.param({"short_side": 480}, (854, 480), (854, 480), id="portrait"),
        pytest.param({"short_side": 480, "multiple": 64}, (480, 854), (448, 832), id="floor"),
        pytest.param({"multiple": 16, "rounding": "up"}, (481, 854), (496, 864), id="up"),
        pytest.param({"multiple": 64}, (30, 100), (64, 64), id="never-empty"),
    ],
)
def test_what_the_network_sees(switches: dict[str, object], size: tuple[int, int], expected: object) -> None:
    assert input_size(size, make_protocol("crw", **switches)) == expected


def test_a_large_reduction_averages_instead_of_skipping_pixels() -> None:
    mask = (np.indices((400, 640)).sum(0) // 2 % 2).astype(np.uint8)
    values = mask_to_values(mask, [1], (5, 8), make_protocol("crw", short_side=40), 8)
    torch.testing.assert_close(values, torch.full((1, 5, 8), 0.5), rtol=0, atol=0.05)
