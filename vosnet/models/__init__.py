"""Encoders: from frames to features, and the files they live in."""

from vosnet.models.checkpoint import LoadedEncoder, load_encoder, load_segmenter, save_encoder
from vosnet.models.encoder import CallableEncoder, Encoder, build_encoder
from vosnet.models.head import ProjectionHead
from vosnet.models.segmenter import MaskSegmenter

__all__ = [
    "CallableEncoder",
    "Encoder",
    "LoadedEncoder",
    "MaskSegmenter",
    "ProjectionHead",
    "build_encoder",
    "load_encoder",
    "load_segmenter",
    "save_encoder",
]
