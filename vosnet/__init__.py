"""Self-supervised video object segmentation: learn correspondence from raw video, propagate a mask."""

__version__ = "0.1.0"
