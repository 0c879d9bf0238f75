"""The settings of online adaptation: the paper's, and ours where it names none."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vosnet.errors import UsageError, known_names_hint
from vosnet.models.inference import Precision
from vosnet.models.unet import DECODER_DIMS
from vosnet.transforms.photometric import ColorJitter

Decay = Literal["exponential", "linear"]


@dataclass(frozen=True)
class AdaptationSettings:
    """How the appearance model is trained. Without a remark the value is the paper's.

    Attributes:
        iterations: optimizer steps per video.
        lr: initial learning rate of Adam.
        lr_step: iterations between two decays.
        lr_gamma: factor of a decay; ours, the paper names none. With 0.1 learning ends after 100 iterations.
        batch_size: samples per iteration; ours, chosen for a CPU.
        size: side in pixels of what the network sees, training and answering.
        decoder_dims: see `UNet`; ours.
        bn_momentum: see `UNet`; ours.
        dice_weight: of the Dice term beside cross-entropy; ours.
        decay: how the weight of a frame falls with its distance from the first annotation; ours.
        last_weight: weight of the most distant frame relative to the nearest; ours.
        given_share: probability that a sample is an annotated frame; ours.
        brightness, contrast, saturation, hue: strengths of the color jitter, see `ColorJitter`; ours.
        jitter_probability: how often colors are jittered; ours.
        gray_probability: how often a sample is made gray; ours.
        flip_probability: how often a sample is mirrored; ours.
        zoom: smallest and largest side of the visible part; (1, 1) is the whole frame, as in the paper.
        max_frames: evenly spread frames kept for training besides the annotated ones, about a megabyte each.
        min_agreement: region similarity that the trained model must reach on each annotated object, and half
            of it against the propagated masks over the whole clip; below that the propagated masks are kept.
            Ours.
        predict_batch: frames answered at once; ours.
        seed: of the U-Net's weights and of the samples.
        precision: "bfloat16" runs convolutions under autocast; "auto" where the device is fast at it.
        compiled: run the training step's network through torch.compile.
    """

    iterations: int = 200
    lr: float = 2e-4
    lr_step: int = 50
    lr_gamma: float = 0.5
    batch_size: int = 2
    size: int = 480
    decoder_dims: tuple[int, int, int, int] = DECODER_DIMS
    bn_momentum: float = 0.1
    dice_weight: float = 1.0
    decay: Decay = "exponential"
    last_weight: float = 0.1
    given_share: float = 0.2
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05
    jitter_probability: float = 0.8
    gray_probability: float = 0.1
    flip_probability: float = 0.5
    zoom: tuple[float, float] = (1.0, 1.0)
    max_frames: int = 120
    min_agreement: float = 0.5
    predict_batch: int = 4
    seed: int = 0
    precision: Precision = "auto"
    compiled: bool = False

    def __post_init__(self) -> None:
        for name in ("iterations", "lr_step", "batch_size", "size", "max_frames", "predict_batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError("E176", f"{name} must be a whole number of at least 1, got {value!r}")
        if not 0 < self.lr < float("inf") or not 0 < self.lr_gamma <= 1 or not 0 < self.last_weight <= 1:
            raise UsageError("E176", "lr must be positive, lr_gamma and last_weight within 0..1, above 0")
        for name in ("given_share", "jitter_probability", "gray_probability", "flip_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError("E176", f"{name} must lie in 0..1, got {getattr(self, name)!r}")
        for name, allowed in (("decay", get_args(Decay)), ("precision", get_args(Precision))):
            if getattr(self, name) not in allowed:
                raise UsageError("E176", f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if len(self.zoom) != 2 or not 0 < self.zoom[0] <= self.zoom[1] <= 1:
            raise UsageError("E176", f"zoom must be [low, high] with 0 < low <= high <= 1, got {self.zoom!r}")

    @property
    def jitter(self) -> ColorJitter:
        """The color part."""
        return ColorJitter(
            brightness=self.brightness,
            contrast=self.contrast,
            saturation=self.saturation,
            hue=self.hue,
            probability=self.jitter_probability,
            gray_probability=self.gray_probability,
        )


def make_settings(**values: Any) -> AdaptationSettings:
    """Settings with some values changed; lists may stand for tuples.

    Raises:
        UsageError: an unknown name, with the nearest known one, or a bad value (E176).
    """
    known = [entry.name for entry in dataclasses.fields(AdaptationSettings)]
    for name in values:
        if name not in known:
            hint = known_names_hint(name, known)
            raise UsageError("E176", f"{name!r} is no setting of online adaptation", hint)
    as_tuples: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    try:
        return AdaptationSettings(**as_tuples)
    except TypeError as error:
        raise UsageError("E176", f"a setting of online adaptation has the wrong type: {error}") from error
