"""Running an encoder over frames: normalization, device, precision, compilation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from vosnet.errors import InputError, UsageError
from vosnet.models.encoder import CallableEncoder, Encoder
from vosnet.transforms import IMAGENET_MEAN, IMAGENET_STD, ColorSpace, scaled_lab

Precision = Literal["auto", "float32", "bfloat16"]


def can_autocast_bfloat16(device: torch.device) -> str | None:
    """Why convolutions in bfloat16 would not pay on `device`, or None when they do."""
    if device.type == "cuda":
        return None if torch.cuda.is_bf16_supported(including_emulation=False) else "the GPU has no bfloat16"
    # torch before 2.10 has only the private questions, later ones answer with a dict
    private = [getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile")]
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = [*private, capabilities.get("avx512_bf16"), capabilities.get("amx_bf16")]
    return None if any(fast) else "the processor has neither AVX-512 BF16 nor AMX"


class FeatureExtractor:
    """Features of uint8 frames.

    Args:
        encoder: ours, or a `CallableEncoder`.
        mean: per color channel, of values in 0..1; not used in Lab.
        std: per color channel.
        device: where the encoder runs.
        precision: "bfloat16" runs convolutions under autocast; "auto" does so for our encoders where the
            device is fast at it; "float32" never.
        compiled: run through torch.compile: one full graph that serves all sizes.
        color_space: what the encoder sees; None: what an `Encoder` of ours says, else "rgb".

    Attributes:
        precision_note: which precision was chosen, and why.
    """

    def __init__(
        self,
        encoder: Encoder | CallableEncoder,
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        device: torch.device | str = "cpu",
        precision: Precision = "auto",
        compiled: bool = False,
        color_space: ColorSpace | None = None,
    ) -> None:
        if precision not in {"auto", "float32", "bfloat16"}:
            raise UsageError("E163", f"precision must be auto, float32 or bfloat16, got {precision!r}")
        self.encoder = encoder.eval()
        self.color_space = color_space or (encoder.color_space if isinstance(encoder, Encoder) else "rgb")
        self.output_stride = encoder.output_stride
        self._mean, self._std = torch.tensor(mean), torch.tensor(std)
        self._precision = precision
        self._run: nn.Module = (
            torch.compile(encoder, fullgraph=True, dynamic=True) if compiled else encoder  # type: ignore[assignment]
        )
        self.to(torch.device(device))

    def to(self, device: torch.device) -> None:
        """Move the encoder; the precision is chosen anew for "auto"."""
        self.device = device
        self.encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._scale = (1 / (255 * self._std)).to(device)[:, None, None]
        self._offset = (-self._mean / self._std).to(device)[:, None, None]
        slow = can_autocast_bfloat16(device)
        if self._precision != "auto":
            self._autocast = self._precision == "bfloat16"
            self.precision_note = f"{self._precision}, as asked"
        elif not isinstance(self.encoder, Encoder):
            self._autocast, self.precision_note = False, "float32: the encoder is not one of ours"
        else:
            self._autocast = slow is None
            self.precision_note = "bfloat16" if slow is None else f"float32: {slow}"

    @torch.no_grad()
    def __call__(self, frames: np.ndarray | Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Features of a batch of frames.

        Args:
            frames: [N, H, W, 3] uint8, RGB.
            size: (H, W) the network sees; the frames are resized bilinearly with antialiasing.

        Returns:
            [N, C, h, w] float32, not L2-normalized.

        Raises:
            InputError: not [N, H, W, 3] uint8 (E280).
        """
        return self.features(self.images(frames, size))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Features of what `images` returned, [N, C, h, w] float32, not L2-normalized."""
        with self.autocast():
            features: Tensor = self._run(images)
        return features.float()

    def autocast(self) -> torch.autocast:
        """The precision that convolutions run in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast)

    @torch.no_grad()
    def images(self, frames: np.ndarray | Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """What the encoder sees of frames, [N, 3, H, W] float32 on the device; arguments as in the call."""
        tensor = (
            frames
            if isinstance(frames, Tensor)
            else torch.from_numpy(np.require(frames, requirements=["C", "W"]))
        )
        if tensor.ndim != 4 or tensor.shape[-1] != 3 or tensor.dtype != torch.uint8:
            message = f"frames must be [H, W, 3] uint8 RGB, got {list(tensor.shape[1:])} {tensor.dtype}"
            raise InputError("E280", message)
        images = tensor.to(self.device).permute(0, 3, 1, 2).float()  # channels_last without a copy
        if size is not None and size != tuple(images.shape[-2:]):
            images = nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
        return scaled_lab(images) if self.color_space == "lab" else images * self._scale + self._offset
