"""Label propagation: protocols, the tracker (frame in, probabilities out), and whole clips."""

from vosnet.propagation.adaptation import Adaptation, PackedMasks, adapt
from vosnet.propagation.adaptation_settings import AdaptationSettings
from vosnet.propagation.propagator import FrameResult, Propagator
from vosnet.propagation.protocol import PRESETS, Protocol, make_protocol
from vosnet.propagation.tracker import Tracker

__all__ = [
    "Adaptation",
    "AdaptationSettings",
    "PackedMasks",
    "adapt",
    "PRESETS",
    "FrameResult",
    "Propagator",
    "Protocol",
    "Tracker",
    "make_protocol",
]
