"""k-means over the cells of a video: against a plain float64 definition, and on a video of known objects."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vosnet.errors import InputError
from vosnet.objectives.clustering import (
    assign_clusters,
    cell_points,
    fill_empty,
    fit_clusters,
    mean_points,
    position_vector,
    seed_centroids,
)
from vosnet.synthetic import Scene

Array = NDArray[np.float64]


def blobs(n: int = 300, dim: int = 6, groups: int = 4, spread: float = 0.6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    centers = torch.randn(groups, dim, generator=generator)
    return centers[torch.arange(n) % groups] + spread * torch.randn(n, dim, generator=generator)


def plain_lloyd(points: Array, centroids: Array, tolerance: float) -> tuple[Array, float]:
    """Lloyd's iterations as they are written in textbooks."""
    before = math.inf
    while True:
        distance = ((points[:, None] - centroids[None]) ** 2).sum(2)
        label, inertia = distance.argmin(1), float(distance.min(1).mean())
        centroids = np.stack([points[label == m].mean(0) for m in range(len(centroids))])
        if before - inertia <= tolerance * inertia:
            return centroids, inertia
        before = inertia


@pytest.mark.parametrize("chunk_size", [70, 16384])
def test_centroids_are_those_of_plain_lloyd_iterations_in_float64(chunk_size: int) -> None:
    points = blobs()
    found = fit_clusters(points, 4, seed=1, restarts=1, chunk_size=chunk_size)
    seeds = seed_centroids(points, 4, torch.Generator().manual_seed(1))
    centroids, inertia = plain_lloyd(points.double().numpy(), seeds.double().numpy(), 1e-4)
    assert found.iterations > 2
    np.testing.assert_allclose(found.centroids.numpy(), centroids, atol=1e-5)
    assert found.inertia == pytest.approx(inertia, rel=1e-5)
    label, distance = assign_clusters(points, found.centroids, chunk_size=chunk_size)
    exact = ((points.double()[:, None] - found.centroids.double()) ** 2).sum(2)
    assert torch.equal(label, exact.argmin(1))
    torch.testing.assert_close(distance.double(), exact.min(1).values, rtol=1e-4, atol=1e-5)


def test_the_answer_depends_on_points_and_seed_alone() -> None:
    points = blobs(spread=2.0)
    first = fit_clusters(points, 5, seed=1, restarts=1)
    torch.rand(10)
    assert torch.equal(first.centroids, fit_clusters(points, 5, seed=1, restarts=1).centroids)
    assert not torch.equal(first.centroids, fit_clusters(points, 5, seed=2, restarts=1).centroids)
    more = [fit_clusters(points, 5, seed=1, restarts=n).inertia for n in (1, 2, 4, 8)]
    assert more == sorted(more, reverse=True)
    assert more[-1] < more[0]


def test_seeds_are_different_points_and_far_ones_are_preferred() -> None:
    points = torch.cat([torch.zeros(1000, 2), torch.tensor([[9.0, 0.0], [0.0, 9.0]])])
    draw = torch.Generator().manual_seed
    for seed in range(20):
        assert {tuple(row) for row in seed_centroids(points, 3, draw(seed)).tolist()} == {
            (0.0, 0.0),
            (9.0, 0.0),
            (0.0, 9.0),
        }


def test_an_empty_cluster_takes_the_farthest_point_that_its_own_cluster_can_spare() -> None:
    label, distance = torch.tensor([0, 0, 0, 2]), torch.tensor([1.0, 5.0, 3.0, 9.0])
    assert fill_empty(label, distance, 4).tolist() == [0, 1, 3, 2]  # the last point is all that 2 has


def test_clusters_that_starve_during_the_iterations_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.tensor([[0.0], [0.1], [0.2], [10.0], [10.1], [50.0]])
    lost = torch.tensor([[0.1], [200.0], [300.0]])  # nobody is nearest to the last two
    monkeypatch.setattr("vosnet.objectives.clustering.seed_centroids", lambda *_: lost)
    found = fit_clusters(points, 3, seed=0)
    assert sorted(found.centroids[:, 0].tolist()) == pytest.approx([0.1, 10.05, 50.0])


def test_fewer_distinct_points_than_clusters_is_an_error_with_both_numbers() -> None:
    points = torch.tensor([[0.1, 0.7], [0.3, 0.2]]).repeat(50, 1)
    assert fit_clusters(points, 2, seed=0).inertia == pytest.approx(0, abs=1e-12)
    with pytest.raises(InputError, match="E180 100 points have 2 distinct values, fewer than 3 clusters"):
        fit_clusters(points, 3, seed=0)
    with pytest.raises(InputError, match="E180 0 points have 0"):
        fit_clusters(points[:0], 3, seed=0)


def test_nearer_places_have_nearer_position_vectors() -> None:
    places = torch.zeros(11, 3)
    places[:, 1] = torch.linspace(0, 1, 11)
    vectors = position_vector(places, 24)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(11))
    distance = (vectors - vectors[0]).norm(dim=1)
    assert bool((distance.diff() > 0).all())
    with pytest.raises(ValueError, match="position_dim must be a positive multiple of 6, got 8"):
        position_vector(places, 8)


def test_the_position_vector_is_that_of_the_waves_written_out() -> None:
    place = [0.3, 0.7, 0.1]
    sines, cosines = [], []
    for axis in place:
        for wave in range(4):
            angle = math.pi * axis / 10000 ** (wave / 4)
            sines.append(math.sin(angle) / 12**0.5)
            cosines.append(math.cos(angle) / 12**0.5)
    torch.testing.assert_close(position_vector(torch.tensor(place), 24), torch.tensor(sines + cosines))


def test_places_are_time_row_and_column_in_that_order() -> None:
    points = cell_points(
        torch.randn(3, 5, 3, 4), torch.tensor([0.0, 0.25, 1.0]), position_dim=6, position_weight=2.0
    )
    for t, y, x in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 2, 1)):
        place = torch.tensor([[0.0, 0.25, 1.0][t], y / 2, x / 3])
        torch.testing.assert_close(points[12 * t + 4 * y + x, 5:], 2 * position_vector(place, 6))


def test_several_empty_clusters_take_different_points_the_farthest_first() -> None:
    label, distance = torch.tensor([0, 0, 0, 0, 3]), torch.tensor([1.0, 5.0, 3.0, 4.0, 9.0])
    assert fill_empty(label, distance, 4).tolist() == [0, 1, 0, 2, 3]
    assert label.tolist() == [0, 0, 0, 0, 3]


def test_means_are_those_of_each_clusters_points() -> None:
    points, label = torch.randn(7, 3), torch.tensor([0, 1, 1, 2, 0, 2, 2])
    expected = torch.stack([points[label == m].mean(0) for m in range(3)])
    for chunk_size in (2, 100):
        torch.testing.assert_close(mean_points(points, label, 3, chunk_size=chunk_size), expected)


def test_points_hold_unit_features_and_weighted_places_in_row_major_order() -> None:
    features = torch.randn(2, 5, 3, 4)
    points = cell_points(features, torch.tensor([0.0, 1.0]), position_dim=6, position_weight=0.5)
    torch.testing.assert_close(points[:, :5].norm(dim=1), torch.ones(24))
    torch.testing.assert_close(points[:, 5:].norm(dim=1), torch.full((24,), 0.5))
    cell = torch.nn.functional.normalize(features[1, :, 2, 3], dim=0)
    torch.testing.assert_close(points[23, :5], cell)
    expected = 0.5 * position_vector(torch.tensor([1.0, 1.0, 1.0]), 6)
    torch.testing.assert_close(points[23, 5:], expected)


def test_points_between_cells_have_features_and_places_between() -> None:
    features, time = torch.randn(2, 5, 3, 4), torch.tensor([0.0, 1.0])
    settings = {"position_dim": 6, "position_weight": 0.5}
    plain = cell_points(features, time, **settings).view(2, 3, 4, 11)
    fine = cell_points(features, time, **settings, upsample=3).view(2, 9, 12, 11)
    torch.testing.assert_close(fine[:, 1::3, 1::3], plain)  # the middle point of a cell is the cell
    between = torch.nn.functional.normalize(2 * features[0, :, 0, 0] + features[0, :, 0, 1], dim=0)
    torch.testing.assert_close(fine[0, 1, 2, :5], between)
    place = 0.5 * position_vector(torch.tensor([0.0, 0.0, 1 / 9]), 6)
    torch.testing.assert_close(fine[0, 1, 2, 5:], place)
    torch.testing.assert_close(fine[0, 0, 0, 5:], plain[0, 0, 0, 5:])  # no place beyond the first cell's


def test_the_clusters_of_a_generated_video_are_its_objects() -> None:
    scene = Scene(2, size=(48, 80), num_objects=3, num_distractors=0)
    masks = torch.stack([torch.from_numpy(scene.render(4 * t)[1]) for t in range(6)]).long()[:, ::4, ::4]
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(4, 16, generator=generator)
    features = kinds[masks] + 0.3 * torch.randn(*masks.shape, 16, generator=generator)
    points = cell_points(
        features.permute(0, 3, 1, 2), torch.linspace(0, 1, 6), position_dim=24, position_weight=0.5
    )
    found = fit_clusters(points, 4, seed=0)
    label = assign_clusters(points, found.centroids)[0].view(masks.shape)
    for m in range(4):
        mine = masks[label == m]
        assert (mine == mine.mode().values).float().mean() > 0.95
    assert len({int(masks[label == m].mode().values) for m in range(4)}) == 4


def test_the_weight_of_the_place_makes_clusters_compact() -> None:
    noise = torch.Generator().manual_seed(1)
    features = torch.randn(4, 8, 6, 6, generator=noise)  # nothing to cluster but place
    apart = []
    for weight in (0.0, 3.0):
        points = cell_points(features, torch.linspace(0, 1, 4), position_dim=12, position_weight=weight)
        place = cell_points(features, torch.linspace(0, 1, 4), position_dim=12, position_weight=1.0)[:, 8:]
        label = assign_clusters(points, fit_clusters(points, 3, seed=0).centroids)[0]
        apart.append(sum(float(place[label == m].var(0).sum()) * int((label == m).sum()) for m in range(3)))
    assert apart[1] < 0.75 * apart[0]
