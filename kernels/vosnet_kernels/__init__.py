"""Fused operators for video correspondence: tensors in, tensors out."""

from vosnet_kernels.knn_propagate import knn_propagate
from vosnet_kernels.workspace import workspace_bytes, workspace_limit

__all__ = ["knn_propagate", "workspace_bytes", "workspace_limit"]
