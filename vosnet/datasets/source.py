"""One training source of a recipe, and mixtures of several."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, model_validator

from vosnet.datasets.index import VideoEntry, VideoIndex, build_index, read_index
from vosnet.datasets.layouts import Layout, find_videos, listed_names
from vosnet.errors import InputError, UsageError


class VideoSource(BaseModel):
    """Where clips come from.

    Attributes:
        layout: how the data lies on disk, or "generated" for clips drawn by `vosnet.synthetic`.
        root: the data set's folder.
        split: part of the data set; see `find_videos`.
        names: text file that lists the videos to take, relative to root.
        pattern: take only names that match, as in a shell.
        index: index made by `vosnet prepare`; without one, videos are opened once at the start.
        repeat: times that each video is seen per epoch, to weigh sources of a mixture.
        count: generated clips.
        seed: of the first generated clip; the others follow.
        num_frames: frames of a generated clip.
        size: (H, W) of a generated clip in pixels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: Layout | Literal["generated"] = "folder"
    root: str = ""
    split: str | None = None
    names: str | None = None
    pattern: str = "*"
    index: str | None = None
    repeat: PositiveInt = 1
    count: NonNegativeInt = 0
    seed: NonNegativeInt = 0
    num_frames: PositiveInt = 48
    size: tuple[PositiveInt, PositiveInt] = (240, 432)

    @model_validator(mode="after")
    def _has_a_place(self) -> VideoSource:
        if self.layout == "generated" and not self.count:
            raise ValueError("a generated source needs count, the number of clips")
        if self.layout != "generated" and not (self.root or self.index):
            raise ValueError(f"layout {self.layout} needs root, the folder the data set lies in")
        return self


def list_source(source: VideoSource) -> VideoIndex:
    """The videos of one source, from its index or by opening each once.

    Raises:
        InputError: the data set is missing or holds no video.
    """
    if source.layout == "generated":
        return VideoIndex("", "generated", _generated(source), complete=True)
    if source.index:
        index = read_index(source.index, root=source.root or None)
        if not index.complete:
            raise UsageError("E151", f"the index {source.index} is unfinished", "Run `vosnet prepare` again.")
        return _select(index, source)
    located = find_videos(
        source.layout, source.root, split=source.split, names=source.names, pattern=source.pattern
    )
    return build_index(located, VideoIndex(str(Path(source.root)), source.layout))


def mix(sources: Sequence[VideoSource]) -> tuple[list[VideoEntry], dict[str, str]]:
    """Videos of all sources, repeated as each asks for, and the unreadable ones with their reasons."""
    entries: list[VideoEntry] = []
    bad: dict[str, str] = {}
    for source in sources:
        index = list_source(source)
        entries += index.videos * source.repeat
        bad |= index.bad
    return entries, bad


def _select(index: VideoIndex, source: VideoSource) -> VideoIndex:
    """The videos of an index that `names` and `pattern` leave."""
    listed = set(listed_names(source.names)) if source.names else None

    def chosen(name: str) -> bool:
        return fnmatch.fnmatchcase(name, source.pattern) and (listed is None or name in listed)

    videos = [entry for entry in index.videos if chosen(entry.name)]
    bad = {name: reason for name, reason in index.bad.items() if chosen(name)}
    if not videos:
        raise InputError("E261", f"the index {source.index} holds no readable video of those asked for")
    return VideoIndex(index.root, index.layout, videos, bad, complete=True)


def _generated(source: VideoSource) -> list[VideoEntry]:
    seeds = range(source.seed, source.seed + source.count)
    return [
        VideoEntry(f"generated/{seed:05d}", "", source.num_frames, source.size, generator_seed=seed)
        for seed in seeds
    ]
