"""Online adaptation: a U-Net trained from scratch on one video (section 3.3 of Zhu et al. 2020)."""

from vosnet.adaptation.adapt import Adaptation, PackedMasks, adapt
from vosnet.adaptation.settings import AdaptationSettings

__all__ = ["Adaptation", "AdaptationSettings", "PackedMasks", "adapt"]
