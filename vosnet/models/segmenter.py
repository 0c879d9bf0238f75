"""Mask encoder and decoder together: one pass per object, soft aggregation, refinement rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from vosnet.errors import SettingError
from vosnet.models.mask_decoder import MaskDecoder
from vosnet.models.mask_encoder import MaskArch, MaskEncoder, MaskFeatures

MIN_COPIED = 0.01  # with `residual`, copied masks are at least that far from certain


@dataclass(frozen=True, kw_only=True)
class SegmenterSettings:
    """Sizes and choices of the two networks.

    Args:
        arch: of the frame-mask encoder, "resnet18" or "resnet50".
        width, depth, mask_dim: `width`, `depth` and `out_dim` of `MaskEncoder`.
        hidden_dim, skips, upsample: see `MaskDecoder`.
        residual: the decoder's answer is added to half the log-odds of the copied mask, Y-bar_q of round 1,
            in every round: an untrained decoder then copies, and learns to correct. Half, because the
            aggregation sets an object's odds against those of its absence: a single logit l becomes the
            probability sigmoid(2 l). No gradient passes through that mask. False: the answer stands alone.

    Raises:
        SettingError: a value is out of range.
    """

    arch: MaskArch = "resnet18"
    width: int = 64
    depth: int | None = None
    mask_dim: int = 128
    hidden_dim: int = 128
    skips: bool = True
    upsample: bool = True
    residual: bool = False

    def __post_init__(self) -> None:
        if self.arch not in get_args(MaskArch):
            raise SettingError("arch", f"must be one of {', '.join(get_args(MaskArch))}, got {self.arch!r}")
        for name in ("width", "depth", "mask_dim", "hidden_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(name, f"must be at least 1, got {value}")

    def networks(self) -> dict[str, Any]:
        """These options alone, without those that a subclass adds."""
        return {field.name: getattr(self, field.name) for field in fields(SegmenterSettings)}


class MaskSegmenter(nn.Module):
    """V and D of Li et al. 2023: they turn features read out of reference frames into masks.

    Args:
        output_stride: the visual encoder's.
        sizes: see `SegmenterSettings`.

    Attributes:
        settings: these arguments with their defaults, for the checkpoint.
    """

    def __init__(self, *, output_stride: int = 8, **sizes: Any) -> None:
        super().__init__()
        own = SegmenterSettings(**sizes)
        self.settings: dict[str, Any] = {"output_stride": output_stride, **own.networks()}
        self.residual, self.mask_dim = own.residual, own.mask_dim
        self.mask_encoder = MaskEncoder(
            arch=own.arch,
            output_stride=output_stride,
            width=own.width,
            depth=own.depth,
            out_dim=own.mask_dim,
        )
        self.mask_decoder = MaskDecoder(
            own.mask_dim,
            self.mask_encoder.middle_dim,
            self.mask_encoder.fine_dim,
            hidden_dim=own.hidden_dim,
            skips=own.skips,
            upsample=own.upsample,
        )

    def answer_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The grid of the decoder's answers, the finest on which labels tell more, for features on `grid`."""
        factor = max(1, self.settings["output_stride"] // 4) if self.settings["upsample"] else 1
        return factor * grid[0], factor * grid[1]

    def embed(self, images: Tensor, masks: Tensor) -> MaskFeatures:
        """V of every object in its image; the objects go through as one batch.

        Args:
            images: as the visual encoder takes them, [B, 3, H, W].
            masks: probabilities, [B, O, h', w'].

        Returns:
            [B * O, ...] each, objects of one image together.
        """
        repeated = images[:, None].expand(-1, masks.shape[1], -1, -1, -1)
        embedded: MaskFeatures = self.mask_encoder(repeated.flatten(0, 1), masks.flatten(0, 1))
        return embedded

    def refine(self, images: Tensor, support: Tensor, masks: Tensor, copied: Tensor) -> Tensor:
        """One round: Y-hat_q = D([V_q, V([I_q, Y-bar_q])]).

        Args:
            images: queries, [B, 3, H, W].
            support: V_q, read out of the reference frames, [B, O, D, h, w].
            masks: Y-bar_q, or Y-hat_q of the round before, [B, O, h', w'].
            copied: Y-bar_q of round 1, [B, O, h, w]; only read with `residual`.

        Returns:
            Logits of each object by itself, [B, O, h'', w''] float32.
        """
        logits: Tensor = self.mask_decoder(support.flatten(0, 1), self.embed(images, masks))
        logits = logits.float().view(*masks.shape[:2], *logits.shape[1:])
        if not self.residual:
            return logits
        odds = 0.5 * torch.logit(copied.detach().float(), eps=MIN_COPIED)
        if odds.shape[-2:] != logits.shape[-2:]:
            odds = functional.interpolate(odds, logits.shape[-2:], mode="bilinear")
        return logits + odds


def soft_aggregate(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """Joint logits of background and objects from each object's own logit.

    With p = sigmoid(logits) the background has the product of all 1 - p; each probability enters a softmax
    by its log-odds. The background's product is kept at 1e-7 below 1.

    Args:
        logits: [B, O, ...].
        valid: False where a slot holds no object, [B, O]; it then gets no probability.

    Returns:
        Logits, [B, 1 + O, ...] float32, channel 0 is background.
    """
    logits = logits.float()
    absent = functional.logsigmoid(-logits)  # log(1 - p)
    if valid is not None:
        empty = ~valid.view(*valid.shape, *[1] * (logits.ndim - 2))
        absent = absent.masked_fill(empty, 0.0)
        logits = logits.masked_fill(empty, -1e4)
    product = absent.sum(1, keepdim=True).clamp(max=-1e-7)
    background = product - torch.log(-torch.expm1(product))
    return torch.cat([background, logits], dim=1)


def refinement_rounds(
    refine: Callable[[Tensor], Tensor], coarse: Tensor, rounds: int, valid: Tensor | None = None
) -> list[Tensor]:
    """Aggregated logits of every round; each round sees the probabilities of the one before.

    Args:
        refine: masks [B, O, h', w'] to logits of each object, [B, O, h'', w''].
        coarse: Y-bar_q, the masks that round 1 sees, [B, O, h, w].
        rounds: at least 1.
        valid: see `soft_aggregate`.

    Returns:
        `rounds` tensors [B, 1 + O, h'', w''].
    """
    outputs: list[Tensor] = []
    for _ in range(rounds):
        masks = coarse if not outputs else outputs[-1].softmax(1)[:, 1:]
        outputs.append(soft_aggregate(refine(masks), valid))
    return outputs
