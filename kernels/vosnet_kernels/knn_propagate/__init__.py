"""k nearest neighbors over a space-time window, softmax, copied values; inference only."""

from vosnet_kernels.knn_propagate.op import knn_propagate

__all__ = ["knn_propagate"]
