"""Every setting of the clips reaches what is drawn, and no draw depends on another sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.support.frame_folders import write_frames
from tests.support.streams import same, stream_of
from vosnet.datasets.sampling import sample_boxes, sample_generator
from vosnet.datasets.settings import ClipSettings
from vosnet.datasets.source import VideoSource
from vosnet.datasets.stream import ClipStream
from vosnet.errors import SettingError
from vosnet.transforms import Crops, Cut, random_similarity


def cut_of(crops: Crops) -> Cut:
    assert crops.cut is not None
    return crops.cut


def epochs(stream: ClipStream, count: int) -> list[Crops]:
    return [stream.batch(step) for step in range(count * stream.steps_per_epoch)]


def gaps(stream: ClipStream, count: int = 6) -> set[int]:
    """Distances between neighboring frames of the clips, put in the order of time."""
    ids = torch.cat([cut_of(crops).frame_ids for crops in epochs(stream, count)])
    return set(ids.sort(1).values.diff().flatten().tolist())


def test_clips_of_one_batch_differ_in_every_draw(videos: Path) -> None:
    crops = stream_of(videos, batch_size=6, clip_len=5).batch(0)
    for drawn in (crops.draws, crops.theta.flatten(1), crops.frames.flatten(1), cut_of(crops).boxes[:, 0]):
        assert len(drawn.unique(dim=0)) == 6
    assert len(cut_of(crops).frame_ids.unique(dim=0)) > 3
    assert crops.draws.unique().numel() == 24
    assert (crops.draws >= 0).all()
    assert (crops.draws < 1).all()


def test_a_clip_of_an_epoch_is_the_same_however_many_are_drawn_at_once(videos: Path) -> None:
    whole = stream_of(videos, batch_size=6).batch(1)
    pairs = [stream_of(videos, batch_size=2).batch(step) for step in (3, 4, 5)]
    assert torch.equal(torch.cat([crops.frames for crops in pairs]), whole.frames)
    assert torch.equal(torch.cat([crops.draws for crops in pairs]), whole.draws)
    assert sum((crops.names for crops in pairs), ()) == whole.names


def test_ranks_take_disjoint_parts_of_every_batch(videos: Path) -> None:
    for step in range(4):
        parts = [stream_of(videos, batch_size=6).batch(step, rank, 3) for rank in range(3)]
        assert [len(part.names) for part in parts] == [2, 2, 2]
        assert sorted(name for part in parts for name in part.names) == [f"video{i}" for i in range(6)]
        assert torch.cat([part.ids for part in parts]).tolist() == list(range(6))


def test_ids_count_the_samples_of_an_epoch_from_zero(videos: Path) -> None:
    stream = stream_of(videos, batch_size=2)
    assert [stream.batch(step).ids.tolist() for step in range(4)] == [[0, 1], [2, 3], [4, 5], [0, 1]]


def test_the_last_incomplete_batch_is_dropped_and_epochs_are_shuffled_apart(videos: Path) -> None:
    stream = stream_of(videos, batch_size=4)
    assert stream.steps_per_epoch == 1
    orders = [stream.batch(step).names for step in range(5)]
    assert len(set(orders)) == 5
    assert all(len(set(names)) == 4 for names in orders)
    assert stream.batch(0).names == orders[0]  # also after later epochs were drawn


def test_another_seed_gives_other_clips(videos: Path) -> None:
    assert same(stream_of(videos, seed=4).batch(2), stream_of(videos, seed=4).batch(2))
    assert not same(stream_of(videos, seed=4).batch(2), stream_of(videos, seed=5).batch(2))


def test_the_fingerprint_tells_data_sets_apart(videos: Path) -> None:
    whole = stream_of(videos).fingerprint
    assert stream_of(videos, seed=9, batch_size=3).fingerprint == whole
    part = stream_of("", sources=[VideoSource(root=str(videos), pattern="video[0-4]")])
    twice = stream_of("", sources=[VideoSource(root=str(videos), repeat=2)])
    assert len({whole, part.fingerprint, twice.fingerprint}) == 3
    write_frames(videos / "video0", 13)
    assert stream_of(videos).fingerprint != whole


def test_the_frame_gap_and_its_choices_reach_the_clips(videos: Path) -> None:
    assert gaps(stream_of(videos, frame_gap=1)) == {1}
    assert gaps(stream_of(videos, frame_gap=3)) == {3}
    assert gaps(stream_of(videos, frame_gap=3, gap_choices=(1, 4))) == {1, 4}
    heavy = stream_of(videos, gap_choices=(1, 4), gap_weights=(1e-6, 1.0))
    assert gaps(heavy) == {4}


def test_paired_clips_obey_the_recipes_gaps(videos: Path) -> None:
    stream = stream_of(videos, order="paired", clip_len=4, frame_gap=2, distant_gap=(4, 7))
    ids = torch.cat([cut_of(crops).frame_ids for crops in epochs(stream, 10)])
    offsets = ids - ids[:, :1]
    assert set(offsets[:, 1].tolist()) == {2}
    assert set(offsets[:, 2:].flatten().tolist()) == {4, 5, 6, 7}
    assert (offsets[:, 3] > offsets[:, 2]).all()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"order": "paired", "frame_gap": 1, "gap_choices": (1, 2)}, "gap_choices"),
        ({"gap_choices": (0, 2)}, "gap_choices"),
        ({"gap_choices": (1, 2), "gap_weights": (1.0,)}, "gap_weights"),
        ({"gap_choices": (1, 2), "gap_weights": (1.0, 0.0)}, "gap_weights"),
        ({"gap_weights": (1.0,)}, "gap_weights"),
        ({"order": "paired", "clip_len": 5, "frame_gap": 1, "distant_gap": (5, 6)}, "distant_gap"),
        ({"clip_len": 1}, "clip_len"),
        ({"frame_gap": 0}, "frame_gap"),
        ({"short_side": (15, 33)}, "short_side"),
        ({"short_side": (16, 16)}, "short_side"),
        ({"zoom": (0.0, 1.0)}, "zoom"),
        ({"zoom": (0.8, 0.5)}, "zoom"),
        ({"zoom": (0.5, 1.1)}, "zoom"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(
    videos: Path, wrong: dict[str, object], named: str
) -> None:
    with pytest.raises(SettingError, match=named) as caught:
        stream_of(videos, **wrong)
    assert caught.value.key == named


def test_flips_come_as_often_as_asked_in_both_views(videos: Path) -> None:
    for probability in (0.0, 1.0):
        for crops in epochs(stream_of(videos, batch_size=6, flip_probability=probability), 3):
            assert set(cut_of(crops).flip.tolist()) == {probability == 1}
            assert ((crops.theta[:, 0, 0] < 0) == (probability == 1)).all()
    both = epochs(stream_of(videos, batch_size=6), 30)
    main = torch.cat([cut_of(crops).flip for crops in both])
    view = torch.cat([crops.theta[:, 0, 0] < 0 for crops in both])
    assert 0.35 < main.float().mean() < 0.65
    assert 0.35 < view.float().mean() < 0.65
    assert 0.35 < (main == view).float().mean() < 0.65  # one does not follow the other


def test_the_zoom_of_the_view_spans_the_asked_range(videos: Path) -> None:
    crops = epochs(stream_of(videos, batch_size=6, zoom=(0.3, 0.4)), 20)
    scale = torch.cat([c.theta[:, 1, 1] for c in crops])
    assert 0.3 <= scale.min() < 0.31
    assert 0.39 < scale.max() <= 0.4
    shift = torch.cat([c.theta[:, :, 2].abs() for c in crops])
    assert (shift <= (1 - scale)[:, None] + 1e-6).all()
    assert (shift.amax(0) > 0.5).all()  # horizontally and vertically


def test_flip_then_zoom_maps_output_to_input() -> None:
    """x_in = flip * (scale * x_out + shift_x), section A of Araslanov et al. 2021's supplement."""
    kinds = set()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        flip, size, x, y = torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        theta = random_similarity(generator, zoom=(0.5, 0.9), flip_probability=0.5).double()
        scale, sign = 0.5 + 0.4 * size, -1.0 if flip < 0.5 else 1.0
        expected = [
            [sign * scale, 0, sign * (2 * x - 1) * (1 - scale)],
            [0, scale, (2 * y - 1) * (1 - scale)],
        ]
        torch.testing.assert_close(theta, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)
        kinds.add(sign)
    assert kinds == {-1.0, 1.0}


def boxes_of(count: int, *, random_crop: bool = True) -> Tensor:
    clips = ClipSettings(crop_size=32, short_side=(32, 65), random_crop=random_crop)
    drawn = [sample_boxes((100, 300), 2, sample_generator(0, 0, i), clips) for i in range(count)]
    return torch.stack(drawn)


def test_crops_reach_every_border_and_no_further() -> None:
    top, left, side = boxes_of(2000)[:, 0].unbind(1)
    assert (int(side.min()), int(side.max())) == (50, 100)  # the shorter side becomes 32 to 64 pixels
    assert int((top + side).max()) == 100
    assert int((left + side).max()) > 290
    assert (int(top.min()), int(left.min())) == (0, 0)
    small = side < 60
    assert float((top[small] / (100 - side[small])).mean()) == pytest.approx(0.5, abs=0.05)
    assert float((left[small] / (300 - side[small])).mean()) == pytest.approx(0.5, abs=0.05)


def test_a_centered_crop_keeps_its_random_size() -> None:
    top, left, side = boxes_of(200, random_crop=False)[:, 0].unbind(1)
    assert side.unique().numel() > 20
    assert ((2 * top + side - 100).abs() <= 1).all()
    assert ((2 * left + side - 300).abs() <= 1).all()


def test_random_crop_and_short_side_reach_the_stream(videos: Path) -> None:
    still = {"short_side": (16, 17), "batch_size": 6}
    middle = cut_of(stream_of(videos, random_crop=False, **still).batch(0)).boxes
    assert middle.flatten(0, 1).unique(dim=0).tolist() == [[0, 8, 40]]
    moved = cut_of(stream_of(videos, **still).batch(0)).boxes
    assert moved[:, 0, 1].unique().numel() > 3
    sizes = torch.cat([cut_of(c).boxes[:, 0, 2] for c in epochs(stream_of(videos, short_side=(16, 33)), 20)])
    assert (int(sizes.min()), int(sizes.max())) == (20, 40)


def test_all_frames_of_a_clip_share_the_square_and_the_flip(videos: Path) -> None:
    crops = stream_of(videos, batch_size=6).batch(0)
    boxes = cut_of(crops).boxes
    assert (boxes == boxes[:, :1]).all()
    # the fixture's frames differ by brightness alone: so do crops of one square
    spread = (crops.frames.float() - crops.frames.float().mean((2, 3, 4), keepdim=True)).std(1)
    assert spread.mean() < 4


@pytest.fixture
def ramp(tmp_path: Path) -> Path:
    """One still, 80 x 120, red rising to the right and green rising downwards."""
    y, x = np.mgrid[0:80, 0:120]
    picture = np.stack([2 * x, 3 * y, np.full_like(x, 60)], 2).astype(np.uint8)
    (tmp_path / "stills").mkdir()
    Image.fromarray(picture).save(tmp_path / "stills" / "ramp.png")
    return tmp_path / "stills"


STILL = {"clip_len": 6, "crop_size": 32, "short_side": (40, 41), "batch_size": 1, "order": "kept"}


def still_stream(root: Path, **settings: object) -> ClipStream:
    return stream_of("", sources=[VideoSource(layout="stills", root=str(root))], **{**STILL, **settings})


def test_jitter_moves_each_frame_of_a_still_by_up_to_its_share(ramp: Path) -> None:
    boxes = torch.cat([cut_of(still_stream(ramp, still_jitter=0.2).batch(i)).boxes for i in range(40)])
    side = boxes[..., 2].amax()
    assert side <= 64
    assert boxes[..., 2].amin() >= 0.8 * 64 - 1
    assert boxes[..., 2].amin() < 0.85 * 64
    reach = boxes[..., 1].amax(1) - boxes[..., 1].amin(1)
    assert reach.max() > 0.2 * 64
    assert reach.max() <= 0.6 * 64 + 2
    quiet = cut_of(still_stream(ramp, still_jitter=0.0).batch(0)).boxes
    assert (quiet == quiet[:, :1]).all()


def seen(frames: Tensor) -> Tensor:
    """Mean (x, y) of what a frame of the ramp shows, [T, 2] pixels."""
    means = frames.float().mean((1, 2))
    return torch.stack([means[:, 0] / 2, means[:, 1] / 3], 1)


@pytest.mark.parametrize("motion", ["jitter", "homography"])
def test_the_boxes_of_a_still_lie_where_the_frames_look(ramp: Path, motion: str) -> None:
    stream = still_stream(ramp, still_motion=motion, still_jitter=0.2)
    for step in range(8):
        crops = stream.batch(step)
        top, left, side = cut_of(crops).boxes[0].unbind(1)
        x, y = seen(crops.frames[0]).unbind(1)
        assert ((left + side / 2 - x).abs() < 5).all()
        assert ((top + side / 2 - y).abs() < 5).all()
        rises = bool(crops.frames[0, 0, 16, -1, 0] > crops.frames[0, 0, 16, 0, 0])
        assert rises != bool(cut_of(crops).flip[0])
        assert cut_of(crops).size.tolist() == [[80, 120]]
        assert cut_of(crops).frame_ids.tolist() == [[0] * 6]


def test_a_homography_moves_smoothly_and_by_the_asked_strength(ramp: Path) -> None:
    def traveled(strength: float) -> Tensor:
        stream = still_stream(ramp, still_motion="homography", still_jitter=strength)
        return torch.stack([seen(stream.batch(step).frames[0]).diff(dim=0) for step in range(6)])

    steps = traveled(0.2)
    jumps = steps.diff(dim=1).abs()
    assert jumps.max() < 0.7 * steps.abs().max()  # a parabola: the speed changes little from frame to frame
    assert traveled(0.0).abs().max() < 0.2
    assert traveled(0.05).abs().mean() < 0.5 * steps.abs().mean()


def test_without_random_crop_a_moving_still_stays_around_the_middle(ramp: Path) -> None:
    def middles(random_crop: bool) -> Tensor:
        stream = still_stream(ramp, still_motion="homography", still_jitter=0.05, random_crop=random_crop)
        return torch.stack([seen(stream.batch(step).frames[0]).mean(0) for step in range(8)])

    assert (middles(random_crop=False) - torch.tensor([59.5, 39.5])).abs().max() < 6
    assert middles(random_crop=True)[:, 0].std() > 6
