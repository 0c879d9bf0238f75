"""Networks: from frames to features, and reading and writing their weights."""

from vosnet.models.checkpoint import LoadedModel, load_model, save_encoder
from vosnet.models.description import EncoderMeta
from vosnet.models.encoder import CallableEncoder, Encoder, build_encoder
from vosnet.models.head import ProjectionHead
from vosnet.models.segmenter import MaskSegmenter

__all__ = [
    "CallableEncoder",
    "Encoder",
    "EncoderMeta",
    "LoadedModel",
    "MaskSegmenter",
    "ProjectionHead",
    "build_encoder",
    "load_model",
    "save_encoder",
]
