"""Fused operators for video correspondence: tensors in, tensors out."""

from vosnet_kernels.knn_propagate import knn_propagate
from vosnet_kernels.widened_readout import widened_readout
from vosnet_kernels.windowed_readout import windowed_readout, windowed_readout_with_lse
from vosnet_kernels.workspace import workspace_bytes, workspace_limit

__all__ = [
    "knn_propagate",
    "widened_readout",
    "windowed_readout",
    "windowed_readout_with_lse",
    "workspace_bytes",
    "workspace_limit",
]
