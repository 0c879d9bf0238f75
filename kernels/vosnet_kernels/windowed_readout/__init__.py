"""Copy values along a softmax over the affinities in a window, forward and backward."""

from vosnet_kernels.windowed_readout.op import windowed_readout

__all__ = ["windowed_readout"]
