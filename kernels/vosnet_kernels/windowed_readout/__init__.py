"""Copy values along a softmax over the affinities in a window, forward and backward."""

from vosnet_kernels.windowed_readout.op import windowed_readout, windowed_readout_with_lse

__all__ = ["windowed_readout", "windowed_readout_with_lse"]
