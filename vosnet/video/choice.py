"""Which decoder reads a clip, and why; everything that a process needs to open it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from vosnet.errors import InputError
from vosnet.video.decord_decoder import DecordDecoder, open_decord
from vosnet.video.images import ImageDecoder, probe_images
from vosnet.video.info import Frame, PacketIndex, VideoInfo
from vosnet.video.isolated import WorkerDecoder
from vosnet.video.listing import IMAGE_SUFFIXES
from vosnet.video.probe import probe_video
from vosnet.video.pyav_decoder import PyavDecoder

DecoderChoice = Literal["auto", "decord", "pyav"]


class Decoder(Protocol):
    """What a backend offers: one frame by index, None when it cannot be decoded."""

    name: str

    def frame(self, index: int) -> Frame | None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Options:
    """How a clip is to be read; see `VideoReader`."""

    image_fps: float
    threads: int
    decode_timeout_s: float | None
    decoder: DecoderChoice


@dataclass(frozen=True)
class DecodingPlan:
    """A clip whose frames are known and can be opened in any process.

    Args:
        path: video file, folder of frames, or one picture.
        options: how to read it.
        info: its properties, with the decoder that was chosen.
        index: where a video file's frames are; None for pictures and for a worker process.
        images: the pictures of a folder in order.
    """

    path: Path
    options: Options
    info: VideoInfo
    index: PacketIndex | None = None
    images: tuple[Path, ...] = ()

    def open(self, warn: Callable[[str], None]) -> Decoder:
        """Open the chosen decoder in this process; `warn` is called with problems met while decoding."""
        if self.options.decode_timeout_s is not None:
            return open_worker(self.path, self.options, warn)
        if self.index is None:
            return ImageDecoder(self.images, self.info.size)
        if self.info.decoder == "decord":
            return DecordDecoder(self.path, self.info.size, self.options.threads)
        return PyavDecoder(
            self.path, self.index, self.info.size, self.info.rotation, self.options.threads, warn
        )

    def by(self, decoder: DecoderChoice, reason: str) -> DecodingPlan:
        """The same clip, read by `decoder` from now on."""
        return replace(self, info=replace(self.info, decoder=decoder, reason=reason))


def plan_decoding(
    path: Path, options: Options, warn: Callable[[str], None]
) -> tuple[DecodingPlan, Decoder | None]:
    """Look at a clip and choose its decoder; where the choice needed to open one, it is returned as well.

    Raises:
        InputError: unreadable, without a picture track, or without a frame.
    """
    if options.decode_timeout_s is not None:
        worker = open_worker(path, options, warn)
        return DecodingPlan(path, options, worker.info), worker
    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        info, images = probe_images(path, options.image_fps)
        return DecodingPlan(path, options, info, images=tuple(images)), None
    probe = probe_video(path)
    plan = DecodingPlan(path, options, probe.info, probe.index)
    if options.decoder == "pyav":
        return plan.by("pyav", "asked for"), None
    opened = open_decord(path, probe, options.threads)
    if isinstance(opened, DecordDecoder):
        reason = f"constant frame rate {probe.info.codec}, time stamps agree with PyAV"
        return plan.by("decord", reason), opened
    if options.decoder == "decord":
        raise InputError("E218", f"{path} cannot be decoded by decord: {opened}", "Let the reader choose.")
    return plan.by("pyav", opened), None


def open_worker(path: Path, options: Options, warn: Callable[[str], None]) -> WorkerDecoder:
    """A decoder in a process of its own."""
    assert options.decode_timeout_s is not None
    asked = {"image_fps": options.image_fps, "threads": options.threads, "decoder": options.decoder}
    return WorkerDecoder(path, asked, options.decode_timeout_s, warn)
