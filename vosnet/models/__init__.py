"""Encoders: from frames to features, and the files they live in."""

from vosnet.models.checkpoint import LoadedEncoder, load_encoder, save_encoder
from vosnet.models.encoder import CallableEncoder, Encoder, build_encoder
from vosnet.models.head import ProjectionHead

__all__ = [
    "CallableEncoder",
    "Encoder",
    "LoadedEncoder",
    "ProjectionHead",
    "build_encoder",
    "load_encoder",
    "save_encoder",
]
