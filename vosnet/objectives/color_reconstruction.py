"""Color reconstruction: MAST (Lai et al., CVPR 2020) and the momentum memory (Zhu et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vosnet.errors import SettingError, UsageError
from vosnet.matching import window_attention
from vosnet.memory.momentum import MemoryNorm, MomentumEncoder, check_momentum
from vosnet.objectives.base import Objective, ObjectiveOutput
from vosnet.objectives.settings import ObjectiveSettings, check_at_least, check_positive
from vosnet.transforms import Clip, more_draws
from vosnet.transforms.jitter import NUM_DRAWS, jitter_lab

_DROP_SALT, _JITTER_SALT = 0xC01, 0xC02


@dataclass(frozen=True, kw_only=True)
class ColorReconstructionSettings(ObjectiveSettings):
    """Options of `ColorReconstruction`.

    Args:
        num_references: K, frames that are read; "all" takes every frame before the query.
        first_frame: with more than one reference, whether the clip's first frame is always among them; the
            others are the latest ones.
        memory: who encodes references: "shared", the trained encoder, with gradient (MAST); "momentum", a
            slow copy without (Zhu et al.).
        momentum: m of the slow copy.
        memory_norm: its batch normalization; see `MomentumEncoder`.
        radius: window half-side in cells: 6 in MAST's training, 12 in Zhu et al.
        temperature: divides the dot products; "sqrt_dim" is the root of the feature channels.
        outside: cells beyond the frame keep logit 0 and copy nothing ("zero", MAST), or have no weight.
        bottleneck: "one": exactly one of a and b is missing in a clip, and it alone is reconstructed (MAST's
            code); "each": a and b are missing with `drop_probability` each, and all of Lab is reconstructed
            (our reading of the papers' text). What remains is scaled up by 3 / (channels that remain).
        drop_probability: only read with bottleneck "each".
        jitter_probability: share of the frames whose input colors are distorted; what is reconstructed is
            not. Each frame has its own distortion (ours; the papers name the probability only).
        jitter_strength: see `jitter_lab`.
        value_sampling: how colors become one value per cell: "slice" takes the top left pixel (MAST),
            "average" the mean of the cell.
        loss_scale: colors are multiplied by it before the Huber loss with its bend at 1.
        both_directions: with one reference, let each of the two frames explain the other.
    """

    num_references: int | Literal["all"] = 1
    first_frame: bool = True
    memory: Literal["shared", "momentum"] = "shared"
    momentum: float = 0.999
    memory_norm: MemoryNorm = "batch"
    radius: int = 12
    temperature: float | Literal["sqrt_dim"] = "sqrt_dim"
    outside: Literal["zero", "exclude"] = "zero"
    bottleneck: Literal["one", "each"] = "one"
    drop_probability: float = 0.5
    jitter_probability: float = 0.3
    jitter_strength: float = 0.1
    value_sampling: Literal["slice", "average"] = "slice"
    loss_scale: float = 20.0
    both_directions: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, self, "num_references")
        check_at_least(0, self, "radius")
        check_positive(self, "temperature", "loss_scale")
        for name in ("drop_probability", "jitter_probability", "jitter_strength"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(name, f"must lie in [0, 1], got {getattr(self, name)}")
        check_momentum(self.momentum)
        if self.both_directions and (self.num_references != 1 or self.memory != "shared"):
            raise SettingError("both_directions", "needs num_references: 1 and memory: shared")

    def conflicts(self, *, clip_len: int, color_space: str) -> Iterator[tuple[str, str]]:
        if self.num_references != "all" and self.num_references > clip_len - 1:
            clip = f"a clip of {clip_len} frames (data.clip_len) has {clip_len - 1} before its query"
            yield "num_references", f"got {self.num_references}, but {clip}"
        if color_space != "lab":
            yield "name", f"color_reconstruction needs encoder.color_space: lab, got {color_space}"


class ColorReconstruction(Objective):
    """Explain a frame's colors by copying them from earlier frames, Eq. 1-3 and 5-7 of Zhu et al. 2020.

    The last frame of the clip is the query, frames before it are references. Features of all of them come
    from images that lack a chroma channel; the softmax of their dot products over the windows of all
    references copies that channel's values, which must resemble the query's own. Then a match of features is
    a match of places, which is what carries masks.

    Clips are in Lab (`encoder.color_space: lab`) and, for the papers, in the order of time (`data.order:
    kept`).

    Differs: dot products are divided by the square root of their channels unless `temperature` says 1.0, the
    papers' raw product, with which training does not converge on a current PyTorch.

    Args:
        encoder: Lab images to features, [N, 3, H, W] -> [N, C, h, w], with `feature_dim`, `output_stride`.
        settings: the options.
    """

    graphs = ("encode", "reconstruct")

    def __init__(self, encoder: nn.Module, settings: ColorReconstructionSettings) -> None:
        super().__init__()
        self.encoder, self.settings = encoder, settings
        self.memory_encoder: MomentumEncoder | None = None
        if settings.memory == "momentum":
            self.memory_encoder = MomentumEncoder(
                encoder, momentum=settings.momentum, norm=settings.memory_norm
            )
        channels = int(encoder.feature_dim)  # type: ignore[arg-type]
        given = settings.temperature
        self.temperature = math.sqrt(channels) if isinstance(given, str) else given

    def after_step(self) -> None:
        """Let the slow copy follow."""
        if self.memory_encoder is not None:
            self.memory_encoder.follow(self.encoder)

    def forward(self, clip: Clip) -> ObjectiveOutput:
        """Reconstruction loss of one batch.

        Returns:
            total, and terms: `reconstruction` (the same); `copy`, the loss of copying the same cell of the
            latest reference without any matching (learning means to get below it); `self_logit`, the mean
            logit of a cell with itself (how sharp the softmax is).

        Raises:
            UsageError: the clip has too few frames, or the encoder does not see Lab (E166).
        """
        color_space = getattr(self.encoder, "color_space", "lab")
        clip_len = clip.frames.shape[1]
        for key, message in self.settings.conflicts(clip_len=clip_len, color_space=color_space):
            raise UsageError("E166", f"{key}: {message}")
        read = reference_frames(clip_len, self.settings.num_references, self.settings.first_frame)
        frames = clip.frames[:, read]
        query, memory = self.encode(*self.inputs(frames, clip.draws))
        with torch.autocast(query.device.type, enabled=False):
            dropped = self.dropped(clip.draws)
            colors = frames if self.settings.bottleneck == "each" else _only(frames, dropped)
            loss, copied = self.reconstruct(query.float(), memory.float(), colors)
            if self.settings.both_directions:
                swapped = memory[:, 0].float(), query[:, None].float(), colors.flip(1)
                back, copied_back = self.reconstruct(*swapped)
                loss, copied = (loss + back) / 2, (copied + copied_back) / 2
            self_logit = query.detach().float().square().sum(1).mean() / self.temperature
        terms = {"reconstruction": loss.detach(), "copy": copied, "self_logit": self_logit}
        return ObjectiveOutput(loss, terms)

    def dropped(self, draws: Tensor) -> Tensor:
        """Which of L, a and b is missing in each clip, boolean [B, 3]."""
        u = more_draws(draws, 2, _DROP_SALT)
        if self.settings.bottleneck == "each":
            a, b = (u < self.settings.drop_probability).unbind(1)
        else:
            a = u[:, 0] < 0.5
            b = ~a
        return torch.stack([torch.zeros_like(a), a, b], dim=1)

    def inputs(self, frames: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoders see: jittered, with a channel missing.

        Args:
            frames: references, then the query, [B, K + 1, 3, H, W].
            draws: of the clips, [B, D].

        Returns:
            The query [B, 3, H, W] and the references [B, K, 3, H, W].
        """
        B, T = frames.shape[:2]
        u = more_draws(draws, T * NUM_DRAWS, _JITTER_SALT).view(B * T, NUM_DRAWS)
        own = self.settings
        jittered = jitter_lab(
            frames.flatten(0, 1), u, probability=own.jitter_probability, strength=own.jitter_strength
        ).view_as(frames)
        missing = self.dropped(draws)
        scale = 3 / (3 - missing.sum(1, keepdim=True)) * ~missing  # [B, 3]
        seen = jittered * scale[:, None, :, None, None].to(frames.dtype)
        return seen[:, -1], seen[:, :-1]

    def encode(self, query: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the query, [B, C, h, w], and of the references, [B, K, C, h, w]."""
        B, K = references.shape[:2]
        if self.memory_encoder is None:
            images = torch.cat([query, references.flatten(0, 1)])
            features = self.encoder(images.contiguous(memory_format=torch.channels_last))
            return features[:B], features[B:].unflatten(0, (B, K))
        learning = query.contiguous(memory_format=torch.channels_last)
        fixed = references.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        memory = self.memory_encoder(fixed).detach()
        return self.encoder(learning), memory.unflatten(0, (B, K))

    def reconstruct(self, query: Tensor, memory: Tensor, colors: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of the copied colors, and that of the same cell's colors in the latest reference.

        Args:
            query: features, [B, C, h, w].
            memory: features of the references, [B, K, C, h, w].
            colors: what is reconstructed, references and then the query, [B, K + 1, M, H, W].
        """
        value = self.values(colors[:, :-1], query.shape[-2:])
        own = self.settings
        readout = window_attention(
            query, memory, value, radius=own.radius, temperature=self.temperature, outside=own.outside
        )
        target = colors[:, -1]
        with torch.no_grad():
            copied = self.distance(value[:, -1], target)
        return self.distance(readout, target), copied

    def values(self, colors: Tensor, grid: tuple[int, ...]) -> Tensor:
        """One color per cell, [B, K, M, h, w]."""
        h, w = grid
        stride = int(self.encoder.output_stride)  # type: ignore[arg-type]
        if self.settings.value_sampling == "slice":
            return colors[..., ::stride, ::stride].contiguous()
        return F.adaptive_avg_pool2d(colors.flatten(0, 1), (h, w)).view(*colors.shape[:3], h, w)

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Huber loss at full size.

        Args:
            prediction: [B, M, h, w], upsampled bilinearly (pixel centers, align_corners=False).
            target: [B, M, H, W].
        """
        large = F.interpolate(prediction, target.shape[-2:], mode="bilinear", align_corners=False)
        return F.smooth_l1_loss(self.settings.loss_scale * large, self.settings.loss_scale * target)


def reference_frames(clip_len: int, num_references: int | Literal["all"], first_frame: bool) -> list[int]:  # noqa: FBT001 (a setting)
    """Places in the clip of the references, earliest first, and of the query, which is the last frame."""
    before = list(range(clip_len - 1))
    if num_references == "all" or num_references >= len(before):
        chosen = before
    elif first_frame and num_references > 1:
        chosen = [0, *before[-(num_references - 1) :]]
    else:
        chosen = before[-num_references:]
    return [*chosen, clip_len - 1]


def _only(frames: Tensor, dropped: Tensor) -> Tensor:
    """The one missing channel of each clip, [B, T, 1, H, W]."""
    channel = dropped.to(torch.uint8).argmax(1)
    index = channel.view(-1, 1, 1, 1, 1).expand(-1, frames.shape[1], 1, *frames.shape[-2:])
    return frames.gather(2, index)
