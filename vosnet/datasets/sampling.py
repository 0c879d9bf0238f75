"""Which clip, which frames, which crop: every choice is a pure function of (seed, epoch, sample)."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from vosnet.datasets.settings import ClipSettings


def sample_generator(seed: int, epoch: int, sample: int, attempt: int = 0) -> torch.Generator:
    """Random numbers of one sample; the same in every process, rank and run.

    Args:
        seed: of the run.
        epoch: counted from 0.
        sample: position in the epoch, over all ranks; -1 is the epoch's own order.
        attempt: 0, or how often the sample's video had to be replaced.
    """
    key = f"{seed}/{epoch}/{sample}/{attempt}".encode()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def epoch_order(seed: int, epoch: int, num_videos: int, num_samples: int) -> list[int]:
    """Video of every sample of an epoch: a permutation, repeated when there are more samples than videos."""
    generator = sample_generator(seed, epoch, -1)
    order: list[int] = []
    while len(order) < num_samples:
        order += torch.randperm(num_videos, generator=generator).tolist()
    return order[:num_samples]


def sample_gap(generator: torch.Generator, clips: ClipSettings) -> int:
    """The gap of one clip: `frame_gap`, or one of `gap_choices`, each as often as its weight says.

    MAST (Lai et al. 2020) draws 2, 5 or 8 once per video and epoch. One number is taken from the generator
    when there are choices.
    """
    choices = clips.gap_choices
    if not choices:
        return clips.frame_gap
    shares = torch.tensor(clips.gap_weights or [1.0] * len(choices), dtype=torch.float64)
    drawn = torch.rand((), generator=generator, dtype=torch.float64) * shares.sum()
    return choices[min(int((drawn >= shares.cumsum(0)).sum()), len(choices) - 1)]


def sample_frames(num_frames: int, generator: torch.Generator, clips: ClipSettings) -> list[int]:
    """Frames of one clip, as DUL's loaders draw them (FRAME_GAP and VIDEO_LEN of their configurations).

    A window of min(num_frames, gap * clip_len) frames starts anywhere it fits; clip_len frames are taken from
    it at equal distance. "permuted" (YouTube-VOS, OxUvA, TrackingNet): whole-frame distance, then a random
    permutation, so that frame 0 of the clip, which carries the anchors, is any of them. "kept" (Kinetics):
    fractional distance rounded down, in the order of time.

    "paired" (Li et al. 2023) draws otherwise: frame 0, the frame `frame_gap` after it, and then clip_len - 2
    different frames that lie at least distant_gap[0] and at most distant_gap[1] after frame 0, as far as the
    video reaches, in the order of time.

    Args:
        num_frames: length of the video, at least `clips.frames_needed`, or 1 for a still (repeated).
        generator: its numbers depend on the sample alone.
        clips: clip_len, order, frame_gap, gap_choices and distant_gap are read.

    Raises:
        ValueError: the video is shorter than the clip.
    """
    gap = sample_gap(generator, clips)
    if num_frames == 1 and clips.order != "paired":
        return [0] * clips.clip_len
    if num_frames < clips.frames_needed:
        reach = f" and the gap of {clips.distant_gap[0]}" if clips.order == "paired" else ""
        message = f"a clip of {clips.clip_len} frames{reach} does not fit into a video of {num_frames}"
        raise ValueError(message)
    if clips.order == "paired":
        return _paired_frames(num_frames, generator, clips)
    window = min(num_frames, gap * clips.clip_len)
    start = int(torch.randint(num_frames - window + 1, (), generator=generator))
    if clips.order == "kept":
        return [start + int(i * window / clips.clip_len) for i in range(clips.clip_len)]
    distance = window // clips.clip_len
    return [start + i * distance for i in torch.randperm(clips.clip_len, generator=generator).tolist()]


def _paired_frames(num_frames: int, generator: torch.Generator, clips: ClipSettings) -> list[int]:
    low, high = clips.distant_gap[0], min(clips.distant_gap[1], num_frames - 1)
    order = torch.randperm(max(0, high - low + 1), generator=generator)
    gaps = [clips.frame_gap, *sorted((order[: clips.num_distant] + low).tolist())]
    start = int(torch.randint(num_frames - gaps[-1], (), generator=generator))
    return [start, *(start + gap for gap in gaps)]


def sample_boxes(
    size: tuple[int, int],
    num_frames: int,
    generator: torch.Generator,
    clips: ClipSettings,
    *,
    jitter: float = 0.0,
) -> Tensor:
    """The square to cut from every frame of a clip: top, left, side in pixels, [T, 3] int64.

    Equivalent to resizing the frame until its shorter side is a random number of pixels, uniform over the
    whole numbers of `short_side`, and cutting `crop_size` pixels from that; all frames share the square.

    Args:
        size: (H, W) of the frames.
        num_frames: T.
        generator: consumed by three numbers, and by 3 T more with jitter.
        clips: crop_size, short_side and random_crop are read.
        jitter: for clips made of one still: each frame's square moves and shrinks by up to this share of
            its side, which stands in for motion.
    """
    H, W = size
    low, high = clips.short_side
    resized, y, x = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    side = max(1, round(min(H, W) * clips.crop_size / (low + int(resized * (high - low)))))
    if not clips.random_crop:
        y = x = 0.5
    square = torch.tensor([y * (H - side), x * (W - side), float(side)], dtype=torch.float64)
    box = square.expand(num_frames, 3)
    if jitter:
        moves = torch.rand((num_frames, 3), generator=generator, dtype=torch.float64)
        shrunk = side * (1 - jitter * moves[:, 2:])
        corner = box[:, :2] + (side - shrunk) / 2 + (moves[:, :2] * 2 - 1) * jitter * side
        box = torch.cat([corner, shrunk], dim=1)
    whole = box.round().to(torch.int64)
    limit = torch.tensor([H, W]) - whole[:, 2:]
    return torch.cat([whole[:, :2].clamp(min=0).minimum(limit), whole[:, 2:]], dim=1)
