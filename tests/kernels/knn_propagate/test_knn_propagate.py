"""What `knn_propagate` copies, against its definition, on every device at hand."""

import pytest
import torch
from torch import Tensor

from tests.kernels.knn_propagate.cases import Run, Settings, inputs, reference, rounded_once, tied_inputs
from tests.support.accuracy import assert_as_accurate_as
from vosnet_kernels import workspace_limit

pytestmark = pytest.mark.usefixtures("poisoned_memory")

CASES = [
    pytest.param((1, 3, 8, 9, 11, 2), {"k": 5, "radius": 3}, id="ragged-tiles"),
    pytest.param((2, 4, 16, 17, 20, 3), {"k": 10, "radius": 4, "shape": "disc"}, id="disc"),
    pytest.param((1, 3, 24, 17, 20, 3), {"k": 10, "radius": 2, "global_frames": 1}, id="global-frame"),
    pytest.param((1, 3, 24, 17, 20, 3), {"k": 4, "radius": 2, "global_frames": 3}, id="all-frames-global"),
    pytest.param((1, 2, 4, 3, 2, 1), {"k": 30, "radius": 1}, id="fewer-candidates-than-k"),
    pytest.param((1, 2, 4, 6, 5, 1), {"k": 3, "radius": 0}, id="own-cell-only"),
    pytest.param((1, 2, 4, 6, 25, 2), {"k": 3, "radius": 40}, id="window-wider-than-frame"),
    pytest.param((1, 2, 4, 6, 25, 2), {"k": 3, "radius": 40, "shape": "disc"}, id="disc-wider-than-frame"),
    pytest.param((1, 64, 7, 9, 10, 32), {"k": 32, "radius": 3}, id="many-frames-neighbors-and-channels"),
    pytest.param((1, 2, 4, 11, 13, 40), {"k": 40, "radius": 2}, id="more-than-the-gpu-kernel-holds"),
    pytest.param((0, 2, 4, 6, 5, 2), {"k": 3, "radius": 1}, id="empty-batch"),
    pytest.param((1, 2, 4, 0, 5, 2), {"k": 3, "radius": 1}, id="empty-frame"),
]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def on(device: torch.device, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [tensor.to(device) for tensor in tensors]


@pytest.mark.parametrize(("shape", "settings"), CASES)
def test_f41_readout_is_as_exact_as_float32_allows(
    shape: tuple[int, ...], settings: Settings, run: Run
) -> None:
    tensors = inputs(shape)
    settings = {"temperature": 0.07, **settings}
    got = run(*on(run.device, tensors), **settings)
    assert_as_accurate_as(got, rounded_once(tensors, settings), reference(tensors, torch.float64, settings))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_f41_every_dtype_is_summed_in_float32(dtype: torch.dtype, run: Run) -> None:
    tensors = inputs((1, 3, 48, 13, 18, 3), dtype=dtype)
    settings: Settings = {"k": 6, "temperature": 0.05, "radius": 4, "global_frames": 1}
    got = run(*on(run.device, tensors), **settings)
    assert got.dtype == dtype
    exact = reference(tensors, torch.float64, settings)
    if dtype == torch.float64:
        assert_as_accurate_as(got.float(), rounded_once(tensors, settings).float(), exact)
    else:
        assert_as_accurate_as(got, rounded_once(tensors, settings), exact)


@pytest.mark.parametrize("layout", ["channels-last", "every-second-cell", "expanded", "flipped-axes"])
def test_f41_strides_do_not_matter(layout: str, run: Run) -> None:
    tensors = on(run.device, inputs((2, 3, 12, 14, 14, 3)))
    if layout == "channels-last":
        strided = [t.movedim(-3, -1).contiguous().movedim(-1, -3) for t in tensors]
    elif layout == "every-second-cell":
        strided = [t.repeat_interleave(2, -1).repeat_interleave(2, -2)[..., ::2, ::2] for t in tensors]
    elif layout == "expanded":
        tensors = [t[:1].expand(2, *t.shape[1:]) for t in tensors]
        strided, tensors = tensors, [t.contiguous() for t in tensors]
    else:
        tensors = [t.transpose(-1, -2) for t in tensors]
        strided, tensors = tensors, [t.contiguous() for t in tensors]
    assert not all(t.is_contiguous() for t in strided)
    settings: Settings = {"k": 5, "temperature": 0.07, "radius": 3, "global_frames": 1}
    torch.testing.assert_close(run(*strided, **settings), run(*tensors, **settings), rtol=0, atol=1e-6)


@pytest.mark.parametrize("global_frames", [0, 2])
def test_of_equal_neighbors_the_lowest_frame_row_and_column_wins(global_frames: int, run: Run) -> None:
    tensors = tied_inputs((1, 5, 3, 19, 21, 4))
    settings: Settings = {"k": 4, "temperature": 1.0, "radius": 5, "global_frames": global_frames}
    got = run(*on(run.device, tensors), **settings)
    exact = reference(tensors, torch.float64, settings)
    torch.testing.assert_close(got.cpu().double(), exact, rtol=0, atol=1e-6)


def test_minus_zero_ties_with_zero(run: Run) -> None:
    query = torch.ones(1, 1, 1, 3, device=run.device)
    memory = torch.tensor([-0.0, 0.0, -0.0], device=run.device).view(1, 1, 1, 1, 3)
    value = torch.tensor([1.0, 2.0, 3.0], device=run.device).view(1, 1, 1, 1, 3)
    got = run(query, memory, value, k=1, temperature=1.0, radius=2)
    assert got.flatten().tolist() == [1.0, 1.0, 1.0]


def test_copies_of_a_frame_are_neighbors_of_their_own(run: Run) -> None:
    query, memory, value = on(run.device, inputs((1, 1, 16, 9, 10, 2)))
    copies = [t.expand(1, 10, *t.shape[2:]) for t in (memory, value)]
    got = run(query, *copies, k=10, temperature=0.07, radius=3)
    nearest = run(query, memory, value, k=1, temperature=0.07, radius=3)
    torch.testing.assert_close(got, nearest, rtol=0, atol=1e-6)


def test_a_still_scene_keeps_its_mask(run: Run) -> None:
    query, _, value = on(run.device, inputs((1, 1, 32, 12, 15, 3)))
    got = run(query, query[:, None], value, k=5, temperature=0.01, radius=4)
    torch.testing.assert_close(got, value[:, 0], rtol=0, atol=1e-4)


def test_an_object_is_found_within_the_radius_and_not_beyond(run: Run) -> None:
    memory = torch.zeros(1, 1, 2, 1, 20, device=run.device)
    memory[:, :, 0] = 1
    memory[..., 5] = torch.tensor([0.0, 1.0], device=run.device).view(1, 1, 2, 1)
    query = torch.zeros(1, 2, 1, 20, device=run.device)
    query[:, 1] = 1  # every query looks for the object at column 5
    value = torch.zeros(1, 1, 1, 1, 20, device=run.device)
    value[..., 5] = 1
    settings: Settings = {"k": 1, "temperature": 0.01}
    square = run(query, memory, value, radius=3, **settings).flatten().nonzero().flatten()
    disc = run(query, memory, value, radius=3, shape="disc", **settings).flatten().nonzero().flatten()
    everywhere = run(query, memory, value, radius=3, global_frames=1, **settings)
    assert square.tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert disc.tolist() == [3, 4, 5, 6, 7]  # strictly nearer than the radius
    assert everywhere.sum() == 20


@pytest.mark.parametrize("limit_bytes", [1, 20_000, 10**9])
def test_a_smaller_workspace_gives_the_same_readout(limit_bytes: int, run: Run) -> None:
    tensors = on(run.device, inputs((1, 6, 16, 19, 21, 3)))
    settings: Settings = {"k": 7, "temperature": 0.07, "radius": 4, "global_frames": 2}
    with workspace_limit(limit_bytes):
        got = run(*tensors, **settings)
    torch.testing.assert_close(got, run(*tensors, **settings), rtol=0, atol=1e-6)


def test_the_same_call_gives_the_same_bits(run: Run) -> None:
    tensors = on(run.device, inputs((1, 4, 24, 18, 22, 3)))
    settings: Settings = {"k": 7, "temperature": 0.07, "radius": 5}
    assert torch.equal(run(*tensors, **settings), run(*tensors, **settings))
