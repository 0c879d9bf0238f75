"""Space-Time Correspondence as a Contrastive Random Walk (Jabri et al., NeurIPS 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vosnet.errors import SettingError, UsageError
from vosnet.objectives.base import Objective, ObjectiveOutput
from vosnet.objectives.settings import ObjectiveSettings, check_positive
from vosnet.transforms import (
    DRAWS_PER_BOX,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Clip,
    cut_patches,
    more_draws,
    patches_per_side,
    random_boxes,
)

_EPS = 1e-20  # inside the logarithm, as in the authors' code
_DROPPED = -1e20  # the affinity of a dropped edge
_FRAME_SALT, _PATCH_SALT, _EDGE_SALT = 501, 502, 503


@dataclass(frozen=True, kw_only=True)
class CycleWalkSettings(ObjectiveSettings):
    """Options of `CycleWalk`.

    Args:
        embedding_dim: dimensions of a node.
        patch_size: side of a patch in pixels.
        patch_stride: distance of neighboring patches in pixels.
        frame_scale: part of each frame's area that is seen, drawn for every frame alone.
        frame_ratio: width / height of that part before it is resized to a square again.
        patch_scale: part of each patch's area that is seen.
        patch_ratio: width / height of that part.
        temperature: divides the cosine similarities.
        edge_dropout: share of the edges that a walk may not use.
        pixel_mean: channel means that images are normalized with here, of values in [0, 1].
        pixel_std: standard deviations likewise. The authors train with CIFAR-10's and test with ImageNet's.
    """

    embedding_dim: int = 128
    patch_size: int = 64
    patch_stride: int = 32
    frame_scale: tuple[float, float] = (0.8, 0.95)
    frame_ratio: tuple[float, float] = (0.7, 1.3)
    patch_scale: tuple[float, float] = (0.7, 0.9)
    patch_ratio: tuple[float, float] = (0.75, 4 / 3)
    temperature: float = 0.05
    edge_dropout: float = 0.1
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "temperature", "patch_size", "patch_stride")
        for name, limit in (("scale", 1.0), ("ratio", math.inf)):
            for key in (f"frame_{name}", f"patch_{name}"):
                low, high = getattr(self, key)
                if not 0 < low <= high <= limit:
                    allowed = "0 < low <= high" + (" <= 1" if limit == 1 else "")
                    raise SettingError(key, f"must be {allowed}, got {(low, high)}")
        if not 0 <= self.edge_dropout < 1:
            raise SettingError("edge_dropout", f"must be in [0, 1), got {self.edge_dropout}")
        if not all(value > 0 for value in self.pixel_std):
            raise SettingError("pixel_std", f"must be positive, got {self.pixel_std}")


class CycleWalk(Objective):
    """A walker that goes forward through a clip and back should end where it started.

    The nodes of a frame are overlapping patches, each encoded alone, averaged over its cells and mapped to a
    unit vector. A step of the walk is a softmax over the next frame's nodes. Every palindrome of frames
    0..n..0 with n >= 2 is a product of transition matrices whose diagonal is to be 1; its cross-entropy with
    the identity is averaged over the palindromes. Edges are dropped at random, each direction for itself.

    Patches hide where in the frame they lie. On the cells of one whole frame a network could encode
    positions, which return to themselves whatever the frames show; use smaller patches for a cheaper step.

    Args:
        encoder: images to features, [N, 3, H, W] -> [N, C, h, w], with `feature_dim`.
        settings: the options.
    """

    graphs = ("_embed", "losses")
    pixel_factor: Tensor
    pixel_offset: Tensor

    def __init__(self, encoder: nn.Module, settings: CycleWalkSettings) -> None:
        super().__init__()
        self.encoder, self.settings = encoder, settings
        self.head = nn.Linear(int(encoder.feature_dim), settings.embedding_dim)  # type: ignore[arg-type]
        factor, offset = _renormalization(settings.pixel_mean, settings.pixel_std)
        self.register_buffer("pixel_factor", factor, persistent=False)
        self.register_buffer("pixel_offset", offset, persistent=False)

    def forward(self, clip: Clip) -> ObjectiveOutput:
        """Mean cross-entropy of the palindromes.

        Returns:
            total, and for each length of n steps there and n back: `cycle_n`, its cross-entropy, and
            `accuracy_n`, the share of nodes whose walker most likely comes back.

        Raises:
            UsageError: clips of fewer than 3 frames, or frames smaller than a patch.
        """
        self._check_clip(clip)
        nodes = self.embed(clip)
        with torch.autocast(nodes.device.type, enabled=False):
            per_length, accuracy = self.losses(nodes, self.dropped_edges(clip.draws, nodes))
        lengths = range(2, nodes.shape[1])
        terms = {f"cycle_{n}": value for n, value in zip(lengths, per_length.detach())}
        terms |= {f"accuracy_{n}": value for n, value in zip(lengths, accuracy)}
        return ObjectiveOutput(per_length.mean(), terms)

    def embed(self, clip: Clip) -> Tensor:
        """The nodes of every frame, unit vectors, [B, T, N, C]."""
        B, T, _, S, _ = clip.frames.shape
        own = self.settings
        N = patches_per_side(S, own.patch_size, own.patch_stride) ** 2
        frame_draws = more_draws(clip.draws, T * DRAWS_PER_BOX, _FRAME_SALT).view(B * T, -1)
        patch_draws = more_draws(clip.draws, T * N * DRAWS_PER_BOX, _PATCH_SALT).view(B * T, N, -1)
        patches = cut_patches(
            clip.frames.flatten(0, 1) * self.pixel_factor + self.pixel_offset,
            random_boxes(frame_draws, own.frame_scale, own.frame_ratio),
            random_boxes(patch_draws, own.patch_scale, own.patch_ratio),
            patch_size=own.patch_size,
            patch_stride=own.patch_stride,
        )
        nodes = self._embed(patches.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        return nodes.view(B, T, N, -1)

    def dropped_edges(self, draws: Tensor, nodes: Tensor) -> Tensor:
        """Which edges the walks may not use, [2, B, T - 1, N, N]: forward, then backward."""
        B, T, N, _ = nodes.shape
        dropped = more_draws(draws, 2 * (T - 1) * N * N, _EDGE_SALT) < self.settings.edge_dropout
        return dropped.view(B, 2, T - 1, N, N).transpose(0, 1)

    def losses(self, nodes: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and accuracy of the palindromes of 2 to T - 1 steps each way.

        Args:
            nodes: unit vectors, [B, T, N, C].
            dropped: from `dropped_edges`.

        Returns:
            [T - 2] with gradient, and [T - 2] without.
        """
        B, T, N, _ = nodes.shape
        affinity = nodes[:, :-1] @ nodes[:, 1:].transpose(2, 3)  # [B, T - 1, N, N]
        forward = self._transitions(affinity, dropped[0])
        backward = self._transitions(affinity.transpose(2, 3), dropped[1])
        target = torch.arange(N, device=nodes.device).repeat(B)
        there, back = forward[:, 0], backward[:, 0]
        losses, accuracies = [], []
        for step in range(1, T - 1):
            there, back = there @ forward[:, step], backward[:, step] @ back
            logits = torch.log(there @ back + _EPS).flatten(0, 1)  # [B * N, N]
            losses.append(F.cross_entropy(logits, target))
            accuracies.append((logits.detach().argmax(dim=1) == target).to(nodes.dtype).mean())
        return torch.stack(losses), torch.stack(accuracies)

    def _transitions(self, affinity: Tensor, dropped: Tensor) -> Tensor:
        return F.softmax(affinity.masked_fill(dropped, _DROPPED) / self.settings.temperature, dim=-1)

    def _embed(self, patches: Tensor) -> Tensor:
        pooled = self.encoder(patches).mean(dim=(2, 3))
        return F.normalize(self.head(pooled).float(), dim=1)

    def _check_clip(self, clip: Clip) -> None:
        T, side = clip.frames.shape[1], clip.frames.shape[-1]
        if T < 3:
            hint = "The shortest walk takes two steps there and two back."
            raise UsageError("E150", f"cycle_walk needs data.clip_len of at least 3, got {T}", hint)
        size = self.settings.patch_size
        if side < size:
            raise UsageError("E150", f"objective.patch_size ({size}) is larger than data.crop_size ({side})")


def _renormalization(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Factor and offset from ImageNet's normalization to that of `mean` and `std`, [3, 1, 1] each."""
    ours, theirs = torch.tensor([IMAGENET_STD, IMAGENET_MEAN]), torch.tensor([std, mean])
    factor, offset = ours[0] / theirs[0], (ours[1] - theirs[1]) / theirs[0]
    return factor.view(3, 1, 1), offset.view(3, 1, 1)
