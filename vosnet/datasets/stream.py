"""Training clips by step number: the same clip for the same (seed, step), whoever asks and how often."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vosnet.datasets.frames import FrameStore, StoredVideo
from vosnet.datasets.index import VideoEntry, is_still
from vosnet.datasets.sampling import (
    Order,
    epoch_order,
    frames_needed,
    sample_boxes,
    sample_frames,
    sample_gap,
    sample_generator,
)
from vosnet.datasets.source import VideoSource, mix
from vosnet.errors import InputError, UsageError, VosnetError
from vosnet.transforms import Crops, Cut, crop_frames, random_similarity
from vosnet.transforms.homography import corner_path, place_path, warp_still

StillMotion = Literal["jitter", "homography"]

MAX_BAD_SHARE = 0.05
_ATTEMPTS = 20


class ClipStream:
    """Batches of clips, one clip per video and epoch, as in supplement B of Araslanov et al. 2021.

    A video that cannot be read is replaced by another one that is drawn from (seed, epoch, sample, attempt):
    the replacement is the same after a resume and on every rank.

    Args:
        entries: the videos; one that stands there twice is seen twice per epoch.
        seed: of the run.
        batch_size: clips of one step over all ranks. The last incomplete batch of an epoch is dropped.
        store: where frames come from.
        clip_len: T, frames per clip.
        frame_gap: largest distance of neighboring frames of a clip, in frames of `store`.
        order: "permuted", "kept" or "paired"; see `sample_frames`. Stills make no "paired" clips.
        gap_choices: gaps of which each clip draws one instead of `frame_gap`; see `sample_gap`.
        gap_weights: how often each of them is drawn.
        distant_gap: for "paired": how far the frames after the pair lie from frame 0, at least and at most.
        crop_size: side of the frames the network sees, pixels.
        short_side: half-open range of the shorter side the frame is resized to before the crop.
        random_crop: a random position, or else the centre.
        flip_probability: how often a whole clip is mirrored, and how often the regularizing view is.
        zoom: range of the part of the frame that the regularizing view shows.
        still_motion: how a still becomes a clip: "jitter" moves and shrinks the crop of each frame by itself;
            "homography" sees the still through a homography that changes smoothly over the clip.
        still_jitter: how far either moves, of the crop's side; see `sample_boxes` and `corner_path`.
        bad: videos already known to be unreadable, name -> reason.

    Attributes:
        bad: videos known to be unreadable.
        num_videos: different videos, unreadable ones included.
        steps_per_epoch: at least 1; a set smaller than a batch is seen several times per epoch.
        fingerprint: SHA-256 of what is trained on; equal on all ranks of a run.
        too_short: names of videos with fewer frames than a clip; they are left out.
    """

    def __init__(
        self,
        entries: Sequence[VideoEntry],
        *,
        seed: int,
        batch_size: int,
        store: FrameStore,
        clip_len: int = 5,
        frame_gap: int = 2,
        order: Order = "permuted",
        distant_gap: tuple[int, int] = (5, 15),
        gap_choices: tuple[int, ...] = (),
        gap_weights: tuple[float, ...] = (),
        crop_size: int = 256,
        short_side: tuple[int, int] = (256, 320),
        random_crop: bool = True,
        flip_probability: float = 0.5,
        zoom: tuple[float, float] = (0.5, 1.0),
        still_motion: StillMotion = "jitter",
        still_jitter: float = 0.15,
        bad: dict[str, str] | None = None,
    ) -> None:
        _check(clip_len=clip_len, frame_gap=frame_gap, crop_size=crop_size, short_side=short_side, zoom=zoom)
        if order == "paired":
            _check_gaps(clip_len, frame_gap, distant_gap)
        needed = frames_needed(clip_len=clip_len, frame_gap=frame_gap, order=order, distant_gap=distant_gap)
        usable = [e for e in entries if (is_still(e) and order != "paired") or store.num_frames(e) >= needed]
        self.too_short = sorted({entry.name for entry in entries} - {entry.name for entry in usable})
        self.bad = dict(bad or {})
        self.entries = usable
        self.num_videos = len({entry.name for entry in usable}) + len(self.bad)
        if not usable:
            raise InputError(
                "E265",
                f"none of {self.num_videos + len(self.too_short)} videos has {needed} frames to train on",
            )
        self.seed, self.batch_size, self.store = seed, batch_size, store
        self.clip_len, self.frame_gap, self.order = clip_len, frame_gap, order
        self.distant_gap = distant_gap
        _check_choices(order, gap_choices, gap_weights)
        self.gap_choices, self.gap_weights = gap_choices, gap_weights
        self.crop_size, self.short_side, self.random_crop = crop_size, short_side, random_crop
        self.flip_probability, self.zoom, self.still_jitter = flip_probability, zoom, still_jitter
        self.still_motion = still_motion
        if still_motion == "homography":
            _check_stills(usable, crop_size)
        self.steps_per_epoch = max(1, len(usable) // batch_size)
        self._order: tuple[int, list[int]] | None = None
        listing = "\n".join(f"{e.name} {e.num_frames} {e.size}" for e in usable)
        self.fingerprint = hashlib.sha256(listing.encode()).hexdigest()

    def sample_ids(self, step: int, rank: int = 0, world: int = 1) -> list[tuple[int, int]]:
        """(epoch, position in the epoch) of this rank's share of a step; ranks hold consecutive parts.

        Raises:
            UsageError: the batch does not divide by the number of ranks.
        """
        if self.batch_size % world:
            raise UsageError("E152", f"batch_size {self.batch_size} does not divide by {world} ranks")
        share = self.batch_size // world
        epoch, place = divmod(step, self.steps_per_epoch)
        first = place * self.batch_size + rank * share
        return [(epoch, first + i) for i in range(share)]

    def entry(self, epoch: int, sample: int, attempt: int = 0) -> VideoEntry:
        """The video of a sample; of its `attempt`-th replacement when that is not 0."""
        if attempt:
            generator = sample_generator(self.seed, epoch, sample, -attempt)
            return self.entries[int(torch.randint(len(self.entries), (), generator=generator))]
        cached = self._order
        if cached is None or cached[0] != epoch:
            samples = self.steps_per_epoch * self.batch_size
            cached = (epoch, epoch_order(self.seed, epoch, len(self.entries), samples))
            self._order = cached
        return self.entries[cached[1][sample]]

    def batch(
        self, step: int, rank: int = 0, world: int = 1, *, watch: Callable[[str], None] | None = None
    ) -> Crops:
        """This rank's share of the batch of a step; the same for the same arguments, in every process.

        Args:
            step: counted from 0 over the whole run.
            rank: which part of the batch.
            world: number of parts.
            watch: told the name of each video before it is read, so that a crash can name it.

        Returns:
            uint8 crops and the transforms to apply; `vosnet.transforms.assemble_clip` makes a Clip of them.

        Raises:
            InputError: no replacement for a broken video could be read either.
        """
        samples = [self._sample(epoch, i, watch) for epoch, i in self.sample_ids(step, rank, world)]
        return Crops(
            frames=torch.stack([s.frames for s in samples]),
            theta=torch.stack([s.theta for s in samples]),
            draws=torch.stack([s.draws for s in samples]),
            ids=torch.tensor([s.id for s in samples]),
            names=tuple(s.name for s in samples),
            bad=tuple(pair for s in samples for pair in s.bad),
            cut=Cut(*(torch.stack(parts) for parts in zip(*(s.cut for s in samples), strict=True))),
        )

    def videos(self) -> list[StoredVideo]:
        """Every video once, in the order of their names.

        Raises:
            InputError: two different videos have one name.
        """
        by_name: dict[str, VideoEntry] = {}
        for entry in self.entries:
            if by_name.setdefault(entry.name, entry) != entry:
                paths = f"{by_name[entry.name].path} and {entry.path}"
                raise InputError(
                    "E265", f"two training videos are called {entry.name}: {paths}", "Rename one of them."
                )
        return [StoredVideo(by_name[name], self.store) for name in sorted(by_name)]

    def check_bad(self) -> None:
        """Stop when too much of the data is broken to call the rest the same data set.

        Raises:
            InputError: more than 5 % of the videos are unreadable.
        """
        if len(self.bad) > MAX_BAD_SHARE * self.num_videos:
            name, reason = next(iter(self.bad.items()))
            raise InputError(
                "E266",
                f"{len(self.bad)} of {self.num_videos} training videos cannot be read (limit 5 %), such as "
                f"{name}: {reason}",
                "Repair or remove the files; tools/prepare.py --verify lists all of them.",
            )

    def _sample(self, epoch: int, sample: int, watch: Callable[[str], None] | None) -> _Sample:
        bad: list[tuple[str, str]] = []
        for attempt in range(_ATTEMPTS):
            entry = self.entry(epoch, sample, attempt)
            if watch is not None:
                watch(entry.name)
            try:
                generator = sample_generator(self.seed, epoch, sample, attempt)
                frames, theta, draws, cut = self._cut(entry, generator)
            except (VosnetError, OSError) as error:
                bad.append((entry.name, str(error)))
                continue
            return _Sample(frames, theta, draws, sample, entry.name, tuple(bad), cut)
        raise InputError("E266", f"{_ATTEMPTS} videos in a row cannot be read, the last: {bad[-1][1]}")

    def _cut(
        self, entry: VideoEntry, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        ids = sample_frames(
            self.store.num_frames(entry),
            generator,
            clip_len=self.clip_len,
            frame_gap=sample_gap(generator, self.frame_gap, self.gap_choices, self.gap_weights),
            order=self.order,
            distant_gap=self.distant_gap,
        )
        theta = random_similarity(generator, zoom=self.zoom, flip_probability=self.flip_probability)
        draws = torch.rand(4, generator=generator)
        flip = bool(torch.rand((), generator=generator) < self.flip_probability)
        if is_still(entry) and self.still_motion == "homography":
            moved, boxes = self._move_still(entry, len(ids), generator, flip=flip)
            size = torch.tensor(self.store.read(entry, [0]).shape[1:3])
            return moved, theta, draws, (torch.tensor(ids), boxes, torch.tensor(flip), size)
        frames = self.store.read(entry, ids)
        boxes = sample_boxes(
            frames.shape[1:3],
            len(ids),
            generator,
            crop_size=self.crop_size,
            short_side=self.short_side,
            random_crop=self.random_crop,
            jitter=self.still_jitter if is_still(entry) else 0.0,
        )
        cut = (torch.tensor(ids), boxes, torch.tensor(flip), torch.tensor(frames.shape[1:3]))
        return crop_frames(frames, boxes, self.crop_size, flip=flip), theta, draws, cut

    def _move_still(
        self, entry: VideoEntry, num_frames: int, generator: torch.Generator, *, flip: bool
    ) -> tuple[Tensor, Tensor]:
        """A clip of one still, [T, crop_size, crop_size, 3], and the boxes around what each frame shows."""
        still = self.store.read(entry, [0])[0]
        size = (still.shape[0], still.shape[1])
        box = sample_boxes(size, 1, generator, crop_size=self.crop_size, short_side=self.short_side)
        path = corner_path(generator, num_frames, self.still_jitter)
        place = torch.rand(2, generator=generator, dtype=torch.float64)
        corners = place_path(path, float(box[0, 2]), size, place if self.random_crop else place * 0 + 0.5)
        frames = warp_still(still, corners, self.crop_size)
        low, high = corners.amin(1).floor(), corners.amax(1).ceil()
        boxes = torch.stack([low[:, 1], low[:, 0], (high - low).amax(1)], dim=1).to(torch.int64)
        return (frames.flip(2) if flip else frames), boxes


class _Sample(NamedTuple):
    frames: Tensor
    theta: Tensor
    draws: Tensor
    id: int
    name: str
    bad: tuple[tuple[str, str], ...]
    cut: tuple[Tensor, Tensor, Tensor, Tensor]  # the fields of Cut


def build_stream(
    *,
    seed: int,
    batch_size: int,
    store: FrameStore | None = None,
    sources: Sequence[VideoSource],
    clip_len: int = 5,
    frame_gap: int = 2,
    frame_step: int = 1,
    order: Order = "permuted",
    distant_gap: tuple[int, int] = (5, 15),
    gap_choices: tuple[int, ...] = (),
    gap_weights: tuple[float, ...] = (),
    crop_size: int = 256,
    short_side: tuple[int, int] = (256, 320),
    random_crop: bool = True,
    flip_probability: float = 0.5,
    zoom: tuple[float, float] = (0.5, 1.0),
    still_motion: StillMotion = "jitter",
    still_jitter: float = 0.15,
    decode_short_side: int | None = None,
    cache_mb: int = 0,
) -> ClipStream:
    """The stream that the data section of a recipe describes; see `ClipStream` for most arguments.

    Args:
        store: frames of an earlier stream; used when it holds the same frames at the same size.
        sources: where videos come from.
        frame_step: only every frame_step-th raw frame is used; frame_gap counts those.
        decode_short_side: frames are first scaled down to this shorter side, pixels; None: not at all.
        cache_mb: memory for decoded frames, in units of 1,000,000 bytes, over all threads of this process.

    Raises:
        InputError: data is missing, or more than 5 % of it is unreadable.
    """
    entries, bad = mix(sources)
    frames = FrameStore(
        frame_step=frame_step, short_side=decode_short_side, budget_bytes=cache_mb * 1_000_000
    )
    if store is not None and store.__getstate__() == frames.__getstate__():
        store.budget_bytes = max(store.budget_bytes, frames.budget_bytes)
        frames = store
    stream = ClipStream(
        entries,
        seed=seed,
        batch_size=batch_size,
        store=frames,
        clip_len=clip_len,
        frame_gap=frame_gap,
        order=order,
        distant_gap=distant_gap,
        gap_choices=gap_choices,
        gap_weights=gap_weights,
        crop_size=crop_size,
        short_side=short_side,
        random_crop=random_crop,
        flip_probability=flip_probability,
        zoom=zoom,
        still_motion=still_motion,
        still_jitter=still_jitter,
        bad=bad,
    )
    stream.check_bad()
    return stream


def _check(
    *, clip_len: int, frame_gap: int, crop_size: int, short_side: tuple[int, int], zoom: tuple[float, float]
) -> None:
    if clip_len < 2 or frame_gap < 1:
        raise UsageError(
            "E152", f"clip_len must be at least 2 and frame_gap at least 1, got {clip_len} and {frame_gap}"
        )
    if not crop_size <= short_side[0] < short_side[1]:
        raise UsageError(
            "E152", f"short_side must be a half-open range from crop_size ({crop_size}) up, got {short_side}"
        )
    if not 0 < zoom[0] <= zoom[1] <= 1:
        raise UsageError("E152", f"zoom must be 0 < low <= high <= 1, got {zoom}")


def _check_stills(entries: Sequence[VideoEntry], crop_size: int) -> None:
    small = [entry for entry in entries if is_still(entry) and min(entry.size) < crop_size]
    if small:
        sizes = ", ".join(f"{e.name} ({e.size[1]}x{e.size[0]})" for e in small[:3])
        raise UsageError(
            "E168",
            f"{len(small)} stills are smaller than the crop of {crop_size} pixels, such as {sizes}",
            "Leave them out with data.sources.0.names, or choose a smaller data.crop_size.",
        )


def _check_choices(order: Order, choices: tuple[int, ...], weights: tuple[float, ...]) -> None:
    if any(choice < 1 for choice in choices) or (choices and order == "paired"):
        raise UsageError(
            "E152", f"gap_choices are whole numbers from 1 for clips that are not paired, got {choices}"
        )
    if weights and (len(weights) != len(choices) or not all(weight > 0 for weight in weights)):
        message = f"gap_weights must be one positive number per gap_choices {choices}, got {weights}"
        raise UsageError("E152", message)


def _check_gaps(clip_len: int, frame_gap: int, distant_gap: tuple[int, int]) -> None:
    low, high = distant_gap
    if not frame_gap < low or high < low + clip_len - 3:
        raise UsageError(
            "E152",
            f"distant_gap must begin above frame_gap ({frame_gap}) and hold the {clip_len - 2} frames after "
            f"the pair, got {distant_gap}",
        )
