"""Copy values from near frames through plain windows, from far frames through windows found first."""

from vosnet_kernels.widened_readout.op import widened_readout

__all__ = ["widened_readout"]
