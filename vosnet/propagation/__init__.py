"""Label propagation: protocols, the tracker (frame in, probabilities out), and whole clips."""

from vosnet.propagation.propagator import FrameResult, Propagator
from vosnet.propagation.protocol import PRESETS, Protocol, make_protocol
from vosnet.propagation.tracker import Tracker

__all__ = [
    "PRESETS",
    "FrameResult",
    "Propagator",
    "Protocol",
    "Tracker",
    "make_protocol",
]
