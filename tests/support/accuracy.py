"""A tolerance with a source: errors are measured against float64 and compared with plain torch's own."""

import torch
from torch import Tensor


def max_error(result: Tensor, exact: Tensor) -> float:
    """Largest absolute difference from the float64 truth, 0 for empty tensors."""
    assert result.shape == exact.shape, f"shapes differ: {tuple(result.shape)} and {tuple(exact.shape)}"
    if result.numel() == 0:
        return 0.0
    return float((result.detach().cpu().double() - exact.detach().cpu().double()).abs().max())


def assert_as_accurate_as(got: Tensor, baseline: Tensor, exact: Tensor, factor: float = 2.0) -> None:
    """`got` may be at most `factor` times farther from `exact` (float64) than `baseline` is.

    `baseline` is plain torch in the dtype of `got`. Where it happens to hit the truth exactly, a rounding of
    that dtype at the scale of `exact` is allowed.
    """
    assert exact.dtype == torch.float64, f"the truth must be float64, got {exact.dtype}"
    assert got.dtype == baseline.dtype, f"compare equal dtypes, got {got.dtype} and {baseline.dtype}"
    assert bool(torch.isfinite(got).all()), "the result has values that are not finite"
    scale = float(exact.abs().max()) if exact.numel() else 0.0
    allowed = factor * (max_error(baseline, exact) + torch.finfo(got.dtype).eps * scale)
    error = max_error(got, exact)
    assert error <= allowed, (
        f"error {error:.3e} exceeds {factor} x plain torch in {got.dtype} "
        f"({max_error(baseline, exact):.3e} + rounding = {allowed:.3e} allowed)"
    )
