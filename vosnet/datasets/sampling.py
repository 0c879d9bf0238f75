"""Which clip, which frames, which crop: every choice is a pure function of (seed, epoch, sample)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Order = Literal["permuted", "kept", "paired"]


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


def frames_needed(
    *, clip_len: int, frame_gap: int, order: Order = "permuted", distant_gap: tuple[int, int] = (5, 15)
) -> int:
    """The fewest frames a video must have for a clip; see `sample_frames`."""
    if order != "paired":
        return clip_len
    return frame_gap + 1 if clip_len == 2 else distant_gap[0] + clip_len - 2


def sample_gap(
    generator: torch.Generator, frame_gap: int, choices: Sequence[int] = (), weights: Sequence[float] = ()
) -> int:
    """The gap of one clip: `frame_gap`, or one of `choices`, each as often as its weight says.

    Args:
        generator: consumed by one number when there are choices.
        frame_gap: the gap without choices.
        choices: gaps; MAST (Lai et al. 2020) draws 2, 5 or 8 once per video and epoch.
        weights: of the choices, any positive numbers; none: all alike.
    """
    if not choices:
        return frame_gap
    shares = torch.tensor(weights or [1.0] * len(choices), dtype=torch.float64)
    drawn = torch.rand((), generator=generator, dtype=torch.float64) * shares.sum()
    return choices[min(int((drawn >= shares.cumsum(0)).sum()), len(choices) - 1)]


def sample_frames(
    num_frames: int,
    generator: torch.Generator,
    *,
    clip_len: int,
    frame_gap: int,
    order: Order = "permuted",
    distant_gap: tuple[int, int] = (5, 15),
) -> list[int]:
    """Frames of one clip, as DUL's loaders draw them (FRAME_GAP and VIDEO_LEN of their configurations).

    A window of min(num_frames, frame_gap * clip_len) frames starts anywhere it fits; clip_len frames are
    taken from it at equal distance. "permuted" (YouTube-VOS, OxUvA, TrackingNet): whole-frame distance, then
    a random permutation, so that frame 0 of the clip, which carries the anchors, is any of them. "kept"
    (Kinetics): fractional distance rounded down, in the order of time.

    "paired" (Li et al. 2023) draws otherwise: frame 0, the frame `frame_gap` after it, and then clip_len - 2
    different frames that lie at least distant_gap[0] after frame 0, in the order of time.

    Args:
        num_frames: length of the video, at least clip_len, or 1 for a still (repeated).
        generator: consumed by one integer, and by one permutation when permuted.
        clip_len: frames to draw.
        frame_gap: largest distance between neighboring frames.
        order: "permuted", "kept" or "paired".
        distant_gap: for "paired": smallest and largest distance from frame 0; the largest is cut to what
            the video has.

    Raises:
        ValueError: the video is shorter than the clip.
    """
    needed = frames_needed(clip_len=clip_len, frame_gap=frame_gap, order=order, distant_gap=distant_gap)
    if num_frames == 1 and order != "paired":
        return [0] * clip_len
    if num_frames < needed:
        reach = f" and the gap of {distant_gap[0]}" if order == "paired" else ""
        raise ValueError(f"a clip of {clip_len} frames{reach} does not fit into a video of {num_frames}")
    if order == "paired":
        return _paired_frames(num_frames, generator, clip_len - 2, frame_gap, distant_gap)
    window = min(num_frames, frame_gap * clip_len)
    start = int(torch.randint(num_frames - window + 1, (), generator=generator))
    if order == "kept":
        return [start + int(i * window / clip_len) for i in range(clip_len)]
    gap = window // clip_len
    return [start + i * gap for i in torch.randperm(clip_len, generator=generator).tolist()]


def _paired_frames(
    num_frames: int,
    generator: torch.Generator,
    num_distant: int,
    frame_gap: int,
    distant_gap: tuple[int, int],
) -> list[int]:
    low, high = distant_gap[0], min(distant_gap[1], num_frames - 1)
    order = torch.randperm(max(0, high - low + 1), generator=generator)
    gaps = [frame_gap, *sorted((order[:num_distant] + low).tolist())]
    start = int(torch.randint(num_frames - gaps[-1], (), generator=generator))
    return [start, *(start + gap for gap in gaps)]


def sample_boxes(
    size: tuple[int, int],
    num_frames: int,
    generator: torch.Generator,
    *,
    crop_size: int,
    short_side: tuple[int, int],
    random_crop: bool = True,
    jitter: float = 0.0,
) -> Tensor:
    """The square to cut from every frame of a clip: top, left, side in pixels, [T, 3] int64.

    Stands for resizing the frame until its shorter side is a random number of pixels and cutting
    `crop_size` pixels from that; all frames share the square.

    Args:
        size: (H, W) of the frames.
        num_frames: T.
        generator: consumed by three numbers, and by 3 T more with jitter.
        crop_size: side of the result in pixels.
        short_side: the shorter side after resizing is uniform over the whole numbers of this half-open
            range; (256, 257) is exactly 256. At least crop_size.
        random_crop: a random position, or else the centre.
        jitter: for clips made of one still: each frame's square moves and shrinks by up to this share of
            its side, which stands in for motion.
    """
    H, W = size
    low, high = short_side
    resized, y, x = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    side = max(1, round(min(H, W) * crop_size / (low + int(resized * (high - low)))))
    if not random_crop:
        y = x = 0.5
    box = torch.tensor([[y * (H - side), x * (W - side), float(side)]], dtype=torch.float64).expand(
        num_frames, 3
    )
    if jitter:
        moves = torch.rand((num_frames, 3), generator=generator, dtype=torch.float64)
        shrunk = side * (1 - jitter * moves[:, 2:])
        corner = box[:, :2] + (side - shrunk) / 2 + (moves[:, :2] * 2 - 1) * jitter * side
        box = torch.cat([corner, shrunk], dim=1)
    whole = box.round().to(torch.int64)
    limit = torch.tensor([H, W]) - whole[:, 2:]
    return torch.cat([whole[:, :2].clamp(min=0).minimum(limit), whole[:, 2:]], dim=1)
