"""Pseudo masks: cut like the frames, made of every frame, and never of the wrong video."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from tests.support.streams import stream_of
from vosnet.datasets.frames import FrameStore, StoredVideo
from vosnet.datasets.index import VideoEntry
from vosnet.datasets.source import VideoSource
from vosnet.errors import InputError
from vosnet.objectives import RefreshJob
from vosnet.objectives.clustering import cell_points, fit_clusters
from vosnet.objectives.label_maps import VideoMaps, cut_map
from vosnet.objectives.pseudo_masks import PseudoMasks, write_pseudo_masks
from vosnet.objectives.video_clusters import ClusterSettings, cluster_video
from vosnet.synthetic import Scene
from vosnet.transforms import Clip, Cut, assemble_clip, crop_frames, encoder_input

SETTINGS = ClusterSettings(num_clusters=3, short_side=None)


class Colors(nn.Module):
    """Mean color of squares of `output_stride` pixels."""

    def __init__(self, output_stride: int = 4) -> None:
        super().__init__()
        self.output_stride = output_stride
        self.norm = nn.BatchNorm2d(3, affine=False)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(functional.avg_pool2d(images, self.output_stride, ceil_mode=True)) * self.scale


def generated(seed: int, num_frames: int = 6, size: tuple[int, int] = (50, 66)) -> StoredVideo:
    entry = VideoEntry(f"generated/{seed:05d}", "", num_frames, size, generator_seed=seed)
    return StoredVideo(entry, FrameStore(budget_bytes=10**7))


def fill(folder: Path, videos: list[StoredVideo], settings: ClusterSettings = SETTINGS) -> PseudoMasks:
    names = list(write_pseudo_masks(RefreshJob(folder, videos), Colors(), settings))
    assert names == [video.name for video in videos]
    return PseudoMasks(folder)


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_and_flips_cut_maps_exactly_as_they_cut_frames(
    flip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.arange(7 * 20 * 30, dtype=np.uint8).reshape(7, 20, 30) % 251  # one cell per pixel
    maps = VideoMaps(pixels, (1 / 20, 1 / 30))
    boxes, ids = torch.tensor([[3, 9, 16], [4, 14, 16]]), torch.tensor([5, 2])
    frames = np.repeat(pixels[ids][..., None], 3, axis=3)
    crops = crop_frames(frames, boxes, 16, flip=flip)[..., 0].long()
    cut = Cut(ids[None], boxes[None], torch.tensor([flip]), torch.tensor([[20, 30]]))
    blank = torch.zeros(1, 2, 3, 16, 16)
    clip = Clip(blank, blank, torch.zeros(1, 2, 3), torch.zeros(1, 4), torch.zeros(1), ("a",), cut)
    monkeypatch.setattr(PseudoMasks, "video", lambda *_: maps)
    store = PseudoMasks(Path())
    assert torch.equal(store.labels(clip, (16, 16))[0], crops)
    middle = store.labels(clip, (4, 4))[0]  # pixel under the middle of each of the 4 x 4 cells
    assert torch.equal(middle, crops[:, 2::4, 2::4] if not flip else crops[:, 2::4, 1::4])


def test_cells_that_stick_out_of_the_frame_are_read_by_their_true_size() -> None:
    maps = VideoMaps(np.arange(6, dtype=np.uint8).reshape(1, 2, 3), (8 / 10, 8 / 20))  # frames of 10 x 20
    assert cut_map(maps, 0, (0, 0, 10), (10, 20), (5, 5))[:, 0].tolist() == [0, 0, 0, 0, 3]
    assert cut_map(maps, 0, (0, 10, 10), (10, 20), (1, 5))[0].tolist() == [1, 1, 1, 2, 2]
    twice = cut_map(maps, 0, (0, 20, 20), (20, 40), (1, 5))  # the same frame, read at twice the size
    assert twice[0].tolist() == [1, 1, 1, 2, 2]


def test_every_frame_is_assigned_however_few_the_centroids_come_from() -> None:
    video = generated(1, num_frames=11)
    all_frames = cluster_video(video, Colors(), ClusterSettings(3, short_side=None, centroid_every=1))
    few = cluster_video(video, Colors(), ClusterSettings(3, short_side=None, centroid_every=5))
    fewer = cluster_video(video, Colors(), ClusterSettings(3, short_side=None, max_points=300))
    for maps in (all_frames, few, fewer):
        assert maps.labels.shape == (11, 13, 17)
        assert sorted(np.unique(maps.labels)) == [0, 1, 2]
    small = cluster_video(video, Colors(), ClusterSettings(3, short_side=25))
    assert small.labels.shape == (11, 7, 9)
    again = cluster_video(video, Colors(), ClusterSettings(3, short_side=25))
    np.testing.assert_array_equal(small.labels, again.labels)


@pytest.mark.parametrize("is_flat", [True, False], ids=["one-color", "generated"])
@pytest.mark.parametrize(("every", "upsample"), [(1, 1), (4, 1), (4, 2)])
def test_clusters_are_those_of_features_and_places_counted_over_the_whole_video(
    every: int, upsample: int, is_flat: bool
) -> None:
    """In a video of one color the clusters are places alone: labels tell how time is counted."""
    settings = ClusterSettings(
        4,
        short_side=None,
        centroid_every=every,
        position_dim=12,
        position_weight=1.5,
        upsample=upsample,
        seed=3,
    )
    entry = VideoEntry("flat", "", 11, (50, 66))
    video = Flat(entry, FrameStore()) if is_flat else generated(1, num_frames=11)
    maps = cluster_video(video, Colors(), settings)
    images = torch.from_numpy(video.read(range(11))).permute(0, 3, 1, 2)
    weights = {"position_dim": 12, "position_weight": 1.5}
    with torch.no_grad():
        features, time = Colors().eval()(encoder_input(images, "rgb")), torch.arange(11) / 10
    points = cell_points(features[::every], time[::every], **weights)  # type: ignore[arg-type]
    centroids = fit_clusters(points, 4, seed=3).centroids
    every_point = cell_points(features, time, **weights, upsample=upsample)  # type: ignore[arg-type]
    expected = (every_point[:, None] - centroids).square().sum(2).argmin(1)
    assert float((torch.from_numpy(maps.labels).flatten() == expected).float().mean()) > 0.999
    assert maps.cell == pytest.approx((4 / upsample / 50, 4 / upsample / 66))


def test_ranks_share_the_videos_in_turns(tmp_path: Path) -> None:
    videos = [generated(seed, num_frames=2) for seed in range(5)]
    shares = [[v.name[-1] for v in RefreshJob(tmp_path, videos, part, 2).share()] for part in range(2)]
    assert shares == [["0", "2", "4"], ["1", "3"]]


def test_every_clip_is_cut_from_its_own_video_frames_and_box(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    stored = {
        name: VideoMaps(generator.integers(0, 5, (6, 20, 30), dtype=np.uint8), (1 / 20, 1 / 30))
        for name in ("a", "b", "c")
    }
    monkeypatch.setattr(PseudoMasks, "video", lambda _, name: stored[name])
    ids, flip = torch.tensor([[5, 2], [0, 3], [1, 1]]), torch.tensor([True, False, True])
    boxes = torch.tensor([[[3, 9, 16], [4, 14, 16]], [[0, 0, 20], [0, 10, 20]], [[1, 2, 8], [2, 3, 8]]])
    cut = Cut(ids, boxes, flip, torch.tensor([[20, 30]] * 3))
    blank = torch.zeros(3, 2, 3, 16, 16)
    clip = Clip(blank, blank, torch.zeros(3, 2, 3), torch.zeros(3, 4), torch.zeros(3), ("b", "a", "c"), cut)
    label = PseudoMasks(Path()).labels(clip, (4, 4))
    for b, name in enumerate(("b", "a", "c")):
        for t in range(2):
            top, left, side = boxes[b, t].tolist()
            middles = [int((i + 0.5) * side / 4) for i in range(4)]
            rows, columns = [top + m for m in middles], [left + m for m in middles]
            expected = stored[name].labels[ids[b, t]][np.ix_(rows, columns)]
            np.testing.assert_array_equal(
                label[b, t].numpy(), expected[:, ::-1] if bool(flip[b]) else expected
            )


def test_finer_maps_show_the_same_clusters_with_finer_borders() -> None:
    video = generated(1)
    plain, fine = (
        cluster_video(video, Colors(), ClusterSettings(3, short_side=None, upsample=n)) for n in (1, 3)
    )
    assert fine.labels.shape == (6, 39, 51)
    assert fine.cell == pytest.approx((plain.cell[0] / 3, plain.cell[1] / 3))
    np.testing.assert_array_equal(fine.labels[:, 1::3, 1::3], plain.labels)
    blocks = plain.labels.repeat(3, 1).repeat(3, 2)
    assert 0.8 < (fine.labels == blocks).mean() < 1


def test_clusters_of_stored_maps_lie_where_the_clips_show_them(tmp_path: Path) -> None:
    stream = stream_of(
        "",
        batch_size=3,
        sources=[VideoSource(layout="generated", count=3, num_frames=6, size=(50, 66))],
        clip_len=2,
        crop_size=32,
        short_side=(32, 45),
        cache_mb=10,
    )
    store = fill(tmp_path, list(stream.videos()))
    clip = assemble_clip(stream.batch(0))
    label = store.labels(clip, (16, 16))
    assert label.shape == (3, 2, 16, 16)
    assert label.min() >= 0
    colors = functional.adaptive_avg_pool2d(clip.frames.flatten(0, 1), 16).view(3, 2, 3, 16, 16)
    for b in range(3):
        values = colors[b].permute(0, 2, 3, 1)
        within = sum(
            float(values[label[b] == m].var(0).sum()) * int((label[b] == m).sum()) for m in label[b].unique()
        )
        shifted = label[b].roll((5, 7), (1, 2))
        moved = sum(
            float(values[shifted == m].var(0).sum()) * int((shifted == m).sum()) for m in shifted.unique()
        )
        assert within < 0.8 * moved


def test_the_encoder_is_left_as_it_was_and_so_is_chance(tmp_path: Path) -> None:
    encoder = Colors().train()
    state = torch.get_rng_state()
    mean = encoder.norm.running_mean.clone()  # type: ignore[union-attr]
    list(write_pseudo_masks(RefreshJob(tmp_path, [generated(0)]), encoder, SETTINGS))
    assert encoder.training
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(encoder.norm.running_mean, mean)  # type: ignore[arg-type]


def test_a_picture_shows_a_few_videos_under_their_clusters(tmp_path: Path) -> None:
    fill(tmp_path, [generated(seed) for seed in range(5)])
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (4 * 108, 6 * 192, 3)
    first = np.asarray(Image.fromarray(Scene(0, size=(50, 66)).render(0)[0]).resize((192, 108)))
    tint = sheet[:108, :192].astype(int) - first // 2
    assert len(np.unique(tint.reshape(-1, 3), axis=0)) == 3  # the colors of three clusters
    parts = tmp_path / "part1"
    parts.mkdir()
    list(write_pseudo_masks(RefreshJob(parts, [generated(0), generated(1)], 1, 2), Colors(), SETTINGS))
    assert not (parts / "sheet.png").exists()
    assert len(list(parts.glob("*.npz"))) == 1


class Flat(StoredVideo):
    """A video of one color."""

    def read(self, indices: object) -> np.ndarray:
        return np.full((len(list(indices)), 50, 66, 3), 90, np.uint8)  # type: ignore[call-overload]


def flat() -> Flat:
    return Flat(VideoEntry("flat", "", 6, (50, 66)), FrameStore())


def test_a_video_of_one_color_gets_no_labels_and_too_many_of_them_are_an_error(tmp_path: Path) -> None:
    settings = ClusterSettings(3, short_side=None, position_weight=0.0)
    store = fill(tmp_path, [*(generated(seed, 1) for seed in range(20)), flat()], settings)
    assert (
        "distinct values, fewer than 3 clusters"
        in json.loads((tmp_path / "without.0.json").read_text())["flat"]
    )
    ids, boxes = torch.zeros(2, 1, dtype=torch.int64), torch.tensor([[[0, 0, 32]]] * 2)
    cut = Cut(ids, boxes, torch.tensor([True, False]), torch.tensor([[50, 66]] * 2))
    blank = torch.zeros(2, 1, 3, 32, 32)
    names = ("flat", "generated/00003")
    clip = Clip(blank, blank, torch.zeros(2, 2, 3), torch.zeros(2, 4), torch.zeros(2), names, cut)
    label = store.labels(clip, (8, 8))
    assert bool((label[0] == -1).all())
    assert bool((label[1] >= 0).all())
    with pytest.raises(InputError, match=r"E182 1 of 2 videos get no pseudo masks .* such as flat: E180"):
        fill(tmp_path, [generated(0), flat()], settings)


def test_maps_of_other_videos_are_refused(tmp_path: Path) -> None:
    store = fill(tmp_path, [generated(0)])
    with pytest.raises(InputError, match="E183 no pseudo masks of video other in"):
        store.video("other")
    blank = torch.zeros(1, 1, 3, 32, 32)
    box, size = torch.tensor([[[0, 0, 32]]]), torch.tensor([[50, 66]])
    cut = Cut(torch.tensor([[9]]), box, torch.tensor([False]), size)
    clip = Clip(
        blank, blank, torch.zeros(1, 2, 3), torch.zeros(1, 4), torch.zeros(1), ("generated/00000",), cut
    )
    with pytest.raises(
        InputError, match="E183 no pseudo mask of frame 9 of video generated/00000, only of 6"
    ):
        store.labels(clip, (4, 4))
    with pytest.raises(ValueError, match="does not say where it was cut from"):
        store.labels(Clip(blank, blank, torch.zeros(1, 2, 3), torch.zeros(1, 4), torch.zeros(1)), (4, 4))
    (path,) = tmp_path.glob("*.npz")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="E183 .* are damaged"):
        PseudoMasks(tmp_path).video("generated/00000")


def test_a_small_memory_for_maps_changes_nothing_but_its_size(tmp_path: Path) -> None:
    fill(tmp_path, [generated(seed) for seed in range(3)])
    store = PseudoMasks(tmp_path, cache_bytes=2 * 6 * 13 * 17)
    for seed in (0, 1, 2, 0):
        maps = store.video(f"generated/{seed:05d}")
        assert maps is not None
        assert maps.labels.shape == (6, 13, 17)
    assert len(store._cache) == 2


@pytest.mark.parametrize(
    "wrong", [{"num_clusters": 1}, {"num_clusters": 255}, {"position_dim": 8}, {"centroid_every": 0}]
)
def test_settings_out_of_range_are_named(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ClusterSettings(**wrong)  # type: ignore[arg-type]


class Recording(Colors):
    """Notes what it sees."""

    color_space = "lab"

    def forward(self, images: Tensor) -> Tensor:
        self.seen = (images.detach().float(), torch.is_autocast_enabled("cpu"), self.training)
        return super().forward(images)


@pytest.mark.parametrize("bfloat16", [True, False])
def test_the_encoder_sees_frames_as_in_training_in_its_colors_and_precision(
    tmp_path: Path, bfloat16: bool
) -> None:
    encoder, video = Recording().train(), generated(0, num_frames=1)
    list(write_pseudo_masks(RefreshJob(tmp_path, [video], bfloat16=bfloat16), encoder, SETTINGS))
    images, autocast, training = encoder.seen
    expected = encoder_input(torch.from_numpy(video.read([0])).permute(0, 3, 1, 2), "lab")
    torch.testing.assert_close(images, expected)
    assert (autocast, training) == (bfloat16, False)


def test_the_maps_read_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, [generated(seed) for seed in range(3)])
    store = PseudoMasks(tmp_path, cache_bytes=2 * 6 * 13 * 17)
    for seed in (0, 1, 0, 2):  # 1 is the one not read for longest
        store.video(f"generated/{seed:05d}")
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("read again"))
    for seed in (0, 2):
        assert store.video(f"generated/{seed:05d}") is not None
