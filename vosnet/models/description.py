"""What a weights file says about its encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from vosnet.models.resnet import Padding
from vosnet.transforms import IMAGENET_MEAN, IMAGENET_STD, ColorSpace


@dataclass(frozen=True)
class EncoderMeta:
    """The description that is stored, as JSON under these names, with an encoder.

    Args:
        arch: network; None: the tensors tell.
        layer: what to read at test time; None: the deepest stage that the tensors hold.
        output_stride: image pixels per feature cell.
        padding: of every 3x3 and 7x7 convolution.
        color_space: what the encoder sees.
        mean, std: that images were normalized with in training.
        preset: how to propagate with it; None: not said.
        segmenter: keyword arguments of the `MaskSegmenter` stored beside it; None: there is none.
        extra: whatever else was saved, such as recipe and step; on a par with the names above in the file.
    """

    arch: str | None = None
    layer: str | None = None
    output_stride: int = 8
    padding: Padding = "zeros"
    color_space: ColorSpace = "rgb"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    preset: str | None = None
    segmenter: dict[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EncoderMeta:
        """From the stored names; ones that are missing mean the default.

        Raises:
            TypeError: `mean` or `std` are no lists of numbers.
        """
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values and f.name != "extra"}
        known |= {name: tuple(map(float, known[name])) for name in ("mean", "std") if name in known}
        extra = {name: value for name, value in values.items() if name not in known}
        return cls(**known, extra=extra)

    def to_json(self) -> dict[str, Any]:
        """The stored names and values."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        values |= {"mean": list(self.mean), "std": list(self.std), **self.extra}
        if self.segmenter is None:
            del values["segmenter"]
        return values
