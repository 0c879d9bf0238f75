"""Space-time clustering: the cells of a whole video in M compact groups (Li et al., CVPR 2023).

    min over C, S of sum_i |i - C s_i|,   s_i one-hot of length M

where i runs over the cells of all frames: the L2-normalized feature beside a sinusoidal vector of the
cell's place (t, y, x). Lloyd's iterations, on the squared distance, look for the minimum.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vosnet.errors import InputError

CHUNK_SIZE = 16384


class Clusters(NamedTuple):
    """Result of `fit_clusters`.

    Args:
        centroids: [M, D] float32.
        inertia: mean squared distance of the points from their centroid.
        iterations: of Lloyd's algorithm.
    """

    centroids: Tensor
    inertia: float
    iterations: int


def position_vector(place: Tensor, dim: int) -> Tensor:
    """Sinusoidal position encoding of (t, y, x), unit length.

    Every axis gets dim / 3 numbers: sines and cosines of pi * place / 10000 ** (k / (dim / 6)), the waves
    of Vaswani et al. 2017. The fastest makes half a turn over the video, so that nearer is always more alike.

    Args:
        place: t, y and x, each as a share of the video's length, height and width, [..., 3] in [0, 1].
        dim: length of the vector, a multiple of 6.

    Returns:
        [..., dim] float32.

    Raises:
        ValueError: dim is no positive multiple of 6.
    """
    if dim < 6 or dim % 6:
        raise ValueError(f"position_dim must be a positive multiple of 6, got {dim}")
    waves = dim // 6
    speed = 10000.0 ** -(torch.arange(waves, device=place.device) / waves)
    angle = (math.pi * place[..., None] * speed).flatten(-2)  # [..., 3 * waves]
    return torch.cat([angle.sin(), angle.cos()], dim=-1) / math.sqrt(3 * waves)


def cell_points(
    features: Tensor, time: Tensor, *, position_dim: int, position_weight: float, upsample: int = 1
) -> Tensor:
    """The points that are clustered: unit features beside weighted position vectors.

    Args:
        features: of some frames of a video, any length, [T, C, h, w].
        time: where those frames lie in the video, 0 its first frame and 1 its last, [T].
        position_dim: length of the position vector; see `position_vector`.
        position_weight: length of the position vector beside a feature of length 1.
        upsample: points per cell along each axis, with bilinear features between the cells' middles.

    Returns:
        [T * h * w, C + position_dim] float32, row-major in (t, y, x), with h and w times `upsample`.
    """
    dense = features.float()
    if upsample > 1:
        dense = F.interpolate(dense, scale_factor=upsample, mode="bilinear")
    unit = rearrange(F.normalize(dense, dim=1), "t c h w -> (t h w) c")
    y, x = (_middles(n, upsample).to(features.device) for n in features.shape[2:])
    place = torch.cartesian_prod(time.to(y), y, x)
    return torch.cat([unit, position_weight * position_vector(place, position_dim)], dim=1)


def _middles(count: int, upsample: int) -> Tensor:
    """Places of points along an axis of `count` cells: 0 is the first cell's middle, 1 the last cell's."""
    cells = (torch.arange(count * upsample) + 0.5) / upsample - 0.5
    return (cells / max(1, count - 1)).clamp(0, 1)


def fit_clusters(
    points: Tensor,
    num_clusters: int,
    *,
    seed: int,
    restarts: int = 3,
    max_iterations: int = 50,
    tolerance: float = 1e-4,
    chunk_size: int = CHUNK_SIZE,
) -> Clusters:
    """k-means: k-means++ seeds, then Lloyd's iterations, the best of `restarts`; repeatable by its seed.

    A cluster that loses all its points starts again at the point farthest from its own centroid, so there
    are always exactly num_clusters groups.

    Args:
        points: [N, D] float.
        num_clusters: M.
        seed: of the k-means++ draws.
        restarts: seedings to try; the result with the lowest mean squared distance is kept.
        max_iterations: limit of Lloyd's iterations.
        tolerance: stop when the mean squared distance fell by less than this share of it.
        chunk_size: points at a time; memory holds [chunk_size, M] distances, never [N, M].

    Raises:
        InputError: fewer distinct points than clusters.
    """
    if num_clusters < 1 or restarts < 1:
        raise ValueError(f"num_clusters and restarts must be at least 1, got {num_clusters} and {restarts}")
    points = points.float()
    generator = torch.Generator().manual_seed(seed)
    found = [
        _lloyd(points, seed_centroids(points, num_clusters, generator), max_iterations, tolerance, chunk_size)
        for _ in range(restarts)
    ]
    return min(found, key=lambda clusters: clusters.inertia)


def _lloyd(
    points: Tensor, centroids: Tensor, max_iterations: int, tolerance: float, chunk_size: int
) -> Clusters:
    before, iterations = math.inf, 0
    while True:
        label, distance = assign_clusters(points, centroids, chunk_size=chunk_size)
        inertia = float(distance.double().mean())
        iterations += 1
        label = fill_empty(label, distance, len(centroids))
        centroids = mean_points(points, label, len(centroids), chunk_size=chunk_size)
        if before - inertia <= tolerance * inertia or iterations >= max_iterations:
            return Clusters(centroids, inertia, iterations)
        before = inertia


def seed_centroids(points: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """k-means++ (Arthur & Vassilvitskii 2007): points drawn by their squared distance from those before.

    The draw itself runs on the CPU in float64, so that devices differ by the rounding of distances only.

    Returns:
        Different rows of `points`, [M, D].

    Raises:
        InputError: fewer distinct points than clusters.
    """
    draws = torch.rand(num_clusters, generator=generator, dtype=torch.float64).tolist()
    chosen = [min(int(draws[0] * len(points)), len(points) - 1)] if len(points) else []
    nearest = torch.full((len(points),), math.inf, dtype=torch.float64)
    while chosen and len(chosen) < num_clusters:
        # Differences, not the expanded square: a copy of a chosen point must be at distance exactly 0.
        distance = (points - points[chosen[-1]]).square_().sum(1)
        nearest = nearest.minimum(distance.cpu().double())
        reach = nearest.cumsum(0)
        if float(reach[-1]) == 0:
            break
        place = torch.searchsorted(reach, draws[len(chosen)] * reach[-1], right=True)
        chosen.append(min(int(place), int(nearest.nonzero()[-1])))
    if len(chosen) < num_clusters:
        raise InputError(
            "E180",
            f"{len(points)} points have {len(chosen)} distinct values, fewer than {num_clusters} clusters",
            "Ask for fewer clusters, or leave out videos of one flat color.",
        )
    return points[chosen]


def assign_clusters(
    points: Tensor, centroids: Tensor, *, chunk_size: int = CHUNK_SIZE
) -> tuple[Tensor, Tensor]:
    """The nearest centroid of every point (the first of equals), [N] int64, and its squared distance, [N]."""
    labels, distances = [], []
    length = centroids.square().sum(1)
    for chunk in torch.split(points, chunk_size):
        scores = torch.addmm(length, chunk, centroids.t(), alpha=-2)  # |x - c|^2 - |x|^2
        low, label = scores.min(dim=1)
        labels.append(label)
        distances.append((low + chunk.square().sum(1)).clamp_(min=0))
    return torch.cat(labels), torch.cat(distances)


def fill_empty(label: Tensor, distance: Tensor, num_clusters: int) -> Tensor:
    """Labels in which every cluster has a point: empty ones take the points farthest from their centroids.

    Never takes a cluster's last point.
    """
    count = torch.bincount(label, minlength=num_clusters)
    empty = (count == 0).nonzero()[:, 0].tolist()
    if not empty:
        return label
    label = label.clone()
    far = iter(torch.argsort(distance, descending=True, stable=True).tolist())
    for cluster in empty:
        point = next(i for i in far if count[label[i]] > 1)
        count[label[point]] -= 1
        count[cluster] += 1
        label[point] = cluster
    return label


def mean_points(points: Tensor, label: Tensor, num_clusters: int, *, chunk_size: int = CHUNK_SIZE) -> Tensor:
    """Mean of the points of each cluster, [M, D]; by products, which a GPU repeats exactly."""
    total = points.new_zeros(num_clusters, points.shape[1], dtype=torch.float64)
    pieces = zip(torch.split(points, chunk_size), torch.split(label, chunk_size), strict=True)
    for chunk, part in pieces:
        total += (F.one_hot(part, num_clusters).to(chunk.dtype).t() @ chunk).double()
    count = torch.bincount(label, minlength=num_clusters)[:, None]
    return (total / count).to(points.dtype)
