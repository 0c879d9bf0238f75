"""Region similarity J and boundary accuracy F of binary masks, four pairs at a time.

The predictions and annotations of four pairs, eight binary maps, share one uint8 image, one bit each.
Boundary tracing and dilation then take one bitwise operation instead of eight, and only within the bounding
box.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from einops import rearrange

Bools = npt.NDArray[np.bool_]
Bits = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

BOUNDARY_TOLERANCE = 0.008  # share of the image diagonal, as in davis2017-evaluation
PAIRS = 4  # pairs in one uint8 image: predictions in bits 0-3, annotations in bits 4-7
_BIT_TABLE = (np.arange(256)[:, None] >> np.arange(8)) & 1  # [value, bit]


def region_similarity(pred: npt.NDArray[Any], true: npt.NDArray[Any]) -> Floats:
    """Jaccard index of each pair of masks: pixels in both over pixels in either.

    Section 4.1 of Perazzi et al. 2016 (J). Two empty masks agree fully: 1.

    Args:
        pred: predicted masks, nonzero is object, [..., H, W].
        true: annotated masks of the same shape.

    Returns:
        One value in 0..1 per pair, [...].

    Raises:
        ValueError: shapes differ or are not [..., H, W].
    """
    pred, true = _checked(pred, true)
    scores = [_jaccard(p, t) for p, t in zip(_flat(pred), _flat(true))]
    return np.array(scores).reshape(pred.shape[:-2])


def boundary_accuracy(
    pred: npt.NDArray[Any], true: npt.NDArray[Any], *, tolerance: float = BOUNDARY_TOLERANCE
) -> Floats:
    """F-measure of each pair's boundaries: harmonic mean of boundary precision and recall.

    Section 4.2 of Perazzi et al. 2016 (F), computed as the official davis2017-evaluation does: a pixel is on
    the boundary if it differs from its right, lower or lower-right neighbor; a boundary pixel is matched if
    the other boundary comes within a closed disk of `boundary_radius` pixels; two empty boundaries give 1.

    Args:
        pred: predicted masks, nonzero is object, [..., H, W].
        true: annotated masks of the same shape.
        tolerance: matching radius as a share of the image diagonal, or in pixels if at least 1.

    Returns:
        One value in 0..1 per pair, [...].

    Raises:
        ValueError: shapes differ or are not [..., H, W].
    """
    pred, true = _checked(pred, true)
    scores = similarities(_flat(pred), _flat(true), tolerance=tolerance)[1]
    return scores.reshape(pred.shape[:-2])


def boundary_radius(size: tuple[int, int], tolerance: float = BOUNDARY_TOLERANCE) -> int:
    """Matching radius in pixels for images of `size` (H, W): 8 at 480x854, 12 at 720x1280."""
    return math.ceil(tolerance if tolerance >= 1 else tolerance * math.hypot(*size))


def similarities(pred: Bools, true: Bools, *, tolerance: float = BOUNDARY_TOLERANCE) -> tuple[Floats, Floats]:
    """J and F of many pairs, each [n]; see `region_similarity` and `boundary_accuracy`.

    Args:
        pred: predicted masks, [n, H, W].
        true: annotated masks, [n, H, W].
        tolerance: as in `boundary_accuracy`.
    """
    radius = boundary_radius((pred.shape[1], pred.shape[2]), tolerance)
    region, boundary = np.empty(len(pred)), np.empty(len(pred))
    for start in range(0, len(pred), PAIRS):
        group = slice(start, start + PAIRS)
        masks = _crop(pred[group], true[group])  # [2, n, h, w]
        if masks is None:
            region[group] = boundary[group] = 1.0  # both empty: a correctly absent object is a full match
            continue
        region[group] = [_jaccard(p, t) for p, t in zip(*masks)]
        boundary[group] = _boundary_scores(masks, radius)
    return region, boundary


def _crop(pred: Bools, true: Bools) -> tuple[Bools, Bools] | None:
    """Both stacks cut to their common bounding box and a margin of one pixel; None if all masks are empty.

    The margin holds the boundary above and to the left of the object; nothing differs beyond it.
    """
    either: Bools = np.logical_or.reduce(pred) | np.logical_or.reduce(true)
    rows = np.flatnonzero(either.any(axis=1))
    if not len(rows):
        return None
    columns = np.flatnonzero(either[rows[0] : rows[-1] + 1].any(axis=0))
    y = slice(max(0, rows[0] - 1), rows[-1] + 2)
    x = slice(max(0, columns[0] - 1), columns[-1] + 2)
    return np.ascontiguousarray(pred[:, y, x]), np.ascontiguousarray(true[:, y, x])


def _jaccard(pred: Bools, true: Bools) -> float:
    both = np.count_nonzero(pred & true)
    either = np.count_nonzero(pred) + np.count_nonzero(true) - both
    return both / either if either else 1.0  # both empty: a correctly absent object is a full match


def _boundary_scores(masks: tuple[Bools, Bools], radius: int) -> Floats:
    """F of up to four pairs of cropped masks, [n]."""
    boundary = _trace(_pack(masks))
    near = _dilate(boundary, radius)
    at = np.flatnonzero(boundary != 0)
    edges, near = boundary.ravel()[at], near.ravel()[at]
    matched = edges & ((near << 4) | (near >> 4))  # a prediction's bit meets its annotation's
    total = _count_bits(edges)
    found = _count_bits(matched)
    n = len(masks[0])
    return np.array(
        [_f_measure(found[i], total[i], found[i + PAIRS], total[i + PAIRS]) for i in range(n)], np.float64
    )


def _f_measure(pred_found: int, pred_total: int, true_found: int, true_total: int) -> float:
    if not pred_total and not true_total:
        return 1.0
    if not pred_total or not true_total:
        return 0.0  # precision 1 and recall 0, or the reverse
    precision, recall = pred_found / pred_total, true_found / true_total
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _pack(masks: tuple[Bools, Bools]) -> Bits:
    """One bit per mask, [h + 1, w + 1], with the last row and column repeated.

    The repetition follows the official rule at the border: the last row is compared to the right only, the
    last column downwards only.
    """
    pred, true = masks
    n, height, width = pred.shape
    inner = np.zeros((height, width), np.uint8)
    empty = (None,) * (PAIRS - n)
    for mask in reversed((*pred, *empty, *true, *empty)):
        inner += inner  # shifts left by one; numpy's `<<` is several times slower
        if mask is not None:
            inner |= mask.view(np.uint8)
    return np.pad(inner, (0, 1), mode="edge")


def _trace(bits: Bits) -> Bits:
    """Pixels that differ from their right, lower or lower-right neighbor, [h, w]."""
    here = bits[:-1, :-1]
    boundary = here ^ bits[:-1, 1:]
    boundary |= here ^ bits[1:, :-1]
    boundary |= here ^ bits[1:, 1:]
    return boundary


def _dilate(boundary: Bits, radius: int) -> Bits:
    """Each bit plane dilated by the closed disk y^2 + x^2 <= radius^2, [h, w].

    Columns of the disk are vertical runs that grow toward its center, so one image of runs is grown in place.
    """
    height, width = boundary.shape
    stride = width + radius  # zero columns on the right: a shift of the flat image cannot reach the next row
    source = np.zeros((height, stride), np.uint8)
    source[:, :width] = boundary
    flat, near = source.ravel(), np.zeros(height * stride, np.uint8)
    run, reach = flat.copy(), 0
    for x in range(radius, -1, -1):
        tallest = math.isqrt(radius * radius - x * x)
        for y in range(reach + 1, min(tallest, height - 1) + 1):
            run[y * stride :] |= flat[: -y * stride]
            run[: -y * stride] |= flat[y * stride :]
        reach = tallest
        if x == 0:
            near |= run
        elif x < len(run):
            near[x:] |= run[:-x]
            near[:-x] |= run[x:]
    return near.reshape(height, stride)[:, :width]


def _count_bits(values: npt.NDArray[Any]) -> list[int]:
    """For each of the eight bits, in how many `values` it is set."""
    counts: list[int] = (np.bincount(values, minlength=256) @ _BIT_TABLE).tolist()
    return counts


def _checked(pred: npt.NDArray[Any], true: npt.NDArray[Any]) -> tuple[Bools, Bools]:
    if pred.shape != true.shape or pred.ndim < 2:
        raise ValueError(f"masks must share one shape [..., H, W], got {pred.shape} and {true.shape}")
    return pred != 0, true != 0


def _flat(masks: Bools) -> Bools:
    return rearrange(masks, "... h w -> (...) h w")
