"""Training clips by step number: the same clip for the same (seed, step), whoever asks and how often."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vosnet.datasets.frames import FrameStore, StoredVideo
from vosnet.datasets.index import VideoEntry, is_still
from vosnet.datasets.sampling import epoch_order, sample_boxes, sample_frames, sample_generator
from vosnet.datasets.settings import ClipSettings
from vosnet.datasets.source import VideoSource, mix
from vosnet.errors import InputError, UsageError, VosnetError
from vosnet.transforms import Crops, Cut, crop_frames, random_similarity
from vosnet.transforms.crop import Frames
from vosnet.transforms.homography import corner_path, place_path, warp_still

MAX_BAD_SHARE = 0.05
_ATTEMPTS = 20


class ClipStream:
    """Batches of clips, one clip per video and epoch, as in supplement B of Araslanov et al. 2021.

    A video that cannot be read is replaced by another one that is drawn from (seed, epoch, sample, attempt):
    the replacement is the same after a resume and on every rank.

    Args:
        entries: the videos; one that is listed twice is seen twice per epoch.
        clips: how clips are cut from them.
        seed: of the run.
        batch_size: clips of one step over all ranks. The last incomplete batch of an epoch is dropped.
        store: where frames come from.
        bad: videos already known to be unreadable, name -> reason.

    Attributes:
        bad: videos known to be unreadable.
        num_videos: different videos, unreadable ones included.
        steps_per_epoch: at least 1; a set smaller than a batch is seen several times per epoch.
        fingerprint: SHA-256 of what is trained on; equal on all ranks of a run.
        too_short: names of videos with fewer frames than a clip; they are left out.

    Raises:
        InputError: no video is long enough (E265).
        UsageError: a still is smaller than the crop that moves over it (E168).
    """

    def __init__(
        self,
        entries: Sequence[VideoEntry],
        clips: ClipSettings,
        *,
        seed: int,
        batch_size: int,
        store: FrameStore,
        bad: dict[str, str] | None = None,
    ) -> None:
        needed = clips.frames_needed
        usable = [
            e for e in entries if (is_still(e) and clips.order != "paired") or store.num_frames(e) >= needed
        ]
        self.too_short = sorted({entry.name for entry in entries} - {entry.name for entry in usable})
        self.bad = dict(bad or {})
        self.entries = usable
        self.num_videos = len({entry.name for entry in usable}) + len(self.bad)
        if not usable:
            count = self.num_videos + len(self.too_short)
            raise InputError("E265", f"none of {count} videos has {needed} frames to train on")
        if clips.still_motion == "homography":
            _check_stills(usable, clips.crop_size)
        self.clips, self.seed, self.batch_size, self.store = clips, seed, batch_size, store
        self.steps_per_epoch = max(1, len(usable) // batch_size)
        self._order: tuple[int, list[int]] | None = None
        listing = "\n".join(f"{e.name} {e.num_frames} {e.size}" for e in usable)
        self.fingerprint = hashlib.sha256(listing.encode()).hexdigest()

    @property
    def clip_len(self) -> int:
        """Frames per clip."""
        return self.clips.clip_len

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
            watch: called with the name of each video before it is read, so that a crash can be traced to it.

        Returns:
            uint8 crops and the transforms to apply; `vosnet.transforms.assemble_clip` makes a Clip of them.

        Raises:
            InputError: no replacement for a broken video could be read either.
        """
        return Crops.joined(
            [self._sample(epoch, i, watch) for epoch, i in self.sample_ids(step, rank, world)]
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
        """Check that not too many videos are unreadable.

        Raises:
            InputError: more than 5 % of the videos are unreadable.
        """
        if len(self.bad) > MAX_BAD_SHARE * self.num_videos:
            name, reason = next(iter(self.bad.items()))
            raise InputError(
                "E266",
                f"{len(self.bad)} of {self.num_videos} training videos cannot be read (limit 5 %), such as "
                f"{name}: {reason}",
                "Repair or remove the files; `vosnet prepare --verify` lists all of them.",
            )

    def _sample(self, epoch: int, sample: int, watch: Callable[[str], None] | None) -> Crops:
        """One clip, as a batch of one."""
        bad: list[tuple[str, str]] = []
        for attempt in range(_ATTEMPTS):
            entry = self.entry(epoch, sample, attempt)
            if watch is not None:
                watch(entry.name)
            try:
                crops = self._cut(entry, sample_generator(self.seed, epoch, sample, attempt), sample)
            except (VosnetError, OSError) as error:
                bad.append((entry.name, str(error)))
                continue
            return replace(crops, bad=tuple(bad))
        raise InputError("E266", f"{_ATTEMPTS} videos in a row cannot be read, the last: {bad[-1][1]}")

    def _cut(self, entry: VideoEntry, generator: torch.Generator, sample: int) -> Crops:
        """A clip of one video; the order in which numbers are drawn decides what is seen."""
        clips = self.clips
        ids = sample_frames(self.store.num_frames(entry), generator, clips)
        theta = random_similarity(generator, zoom=clips.zoom, flip_probability=clips.flip_probability)
        draws = torch.rand(4, generator=generator)
        flip = torch.rand((), generator=generator) < clips.flip_probability
        if is_still(entry) and clips.still_motion == "homography":
            frames = self.store.read(entry, [0])
            crops, boxes = self._move_still(frames[0], generator)
            crops = crops.flip(2) if flip else crops
        else:
            frames = self.store.read(entry, ids)
            jitter = clips.still_jitter if is_still(entry) else 0.0
            boxes = sample_boxes(frames.shape[1:3], len(ids), generator, clips, jitter=jitter)
            crops = crop_frames(frames, boxes, clips.crop_size, flip=bool(flip))
        cut = Cut(torch.tensor([ids]), boxes[None], flip[None], torch.tensor([frames.shape[1:3]]))
        return Crops(crops[None], theta[None], draws[None], torch.tensor([sample]), (entry.name,), cut=cut)

    def _move_still(self, still: Frames, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A clip of one still, [T, crop_size, crop_size, 3], and the boxes around what each frame shows."""
        clips, size = self.clips, (still.shape[0], still.shape[1])
        side = float(sample_boxes(size, 1, generator, clips)[0, 2])
        path = corner_path(generator, clips.clip_len, clips.still_jitter)
        place = torch.rand(2, generator=generator, dtype=torch.float64)
        corners = place_path(path, side, size, place if clips.random_crop else place * 0 + 0.5)
        low, high = corners.amin(1).floor(), corners.amax(1).ceil()
        boxes = torch.stack([low[:, 1], low[:, 0], (high - low).amax(1)], dim=1).to(torch.int64)
        return warp_still(still, corners, clips.crop_size), boxes


def open_stream(
    sources: Sequence[VideoSource],
    clips: ClipSettings,
    *,
    seed: int,
    batch_size: int,
    before: ClipStream | None = None,
) -> ClipStream:
    """The stream over all videos of `sources`.

    Args:
        sources: where videos come from.
        clips: how clips are cut from them.
        seed: of the run.
        batch_size: clips of one step over all ranks.
        before: the stream of an earlier phase; its decoded frames are kept where they fit.

    Raises:
        InputError: data is missing, or more than 5 % of it is unreadable.
    """
    entries, bad = mix(sources)
    budget = clips.cache_mb * 1_000_000
    if before is not None and before.store.serves(clips):
        store = before.store
        store.budget_bytes = max(store.budget_bytes, budget)
    else:
        store = FrameStore(clips.frame_step, clips.decode_short_side, budget)
    stream = ClipStream(entries, clips, seed=seed, batch_size=batch_size, store=store, bad=bad)
    stream.check_bad()
    return stream


def _check_stills(entries: Sequence[VideoEntry], crop_size: int) -> None:
    small = [entry for entry in entries if is_still(entry) and min(entry.size) < crop_size]
    if small:
        sizes = ", ".join(f"{e.name} ({e.size[1]}x{e.size[0]})" for e in small[:3])
        raise UsageError(
            "E168",
            f"{len(small)} stills are smaller than the crop of {crop_size} pixels, such as {sizes}",
            "Leave them out with data.sources.0.names, or choose a smaller data.crop_size.",
        )
