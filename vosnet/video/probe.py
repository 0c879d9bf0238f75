"""Look at a video file without decoding it: which frames it has, when they are shown, how they are stored."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vosnet.errors import InputError
from vosnet.video.info import PacketIndex, VideoInfo

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

# One packet is one visible frame. Elsewhere (hidden frames, field pairs) frames are counted by decoding.
_CODECS = {
    *("h264", "hevc", "av1", "vp9", "ffv1", "prores"),
    *("mjpeg", "png", "gif", "dnxhd", "mpeg4", "rawvideo"),
}
# Containers that store a presentation time with every frame.
MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
_CONTAINERS = {MP4, "matroska,webm", "gif"}
# Formats that are lists of other files or addresses; opening one must not reach for anything else.
_PLAYLISTS = {"hls", "dash", "concat", "concatf"}
_MAX_READ_ERRORS = 100


@dataclass
class Scan:
    """What one pass over the packets found, in storage order.

    Args:
        shown: presentation time stamps of the visible frames.
        keys: of the key frames, also of hidden ones.
        hidden: frames that an edit list hides.
        leading: frames before the first key frame, which cannot be decoded.
        read_errors: damaged places.
        first: the first frame that decodes.
    """

    shown: list[int | None] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    hidden: int = 0
    leading: int = 0
    read_errors: int = 0
    first: av.VideoFrame | None = None


@dataclass(frozen=True)
class Probe:
    """What is known of a video file before it is decoded.

    Args:
        info: properties; `decoder` and `reason` are filled in by the choice of decoder.
        index: where the frames are.
        scan: what the packets said.
        container: FFmpeg's names of the container format.
    """

    info: VideoInfo
    index: PacketIndex
    scan: Scan
    container: str


def open_container(path: Path) -> tuple[InputContainer, VideoStream]:
    """Open `path` with PyAV and pick its picture track.

    Raises:
        InputError: empty, not a video, or without a picture track.
    """
    import av
    from av.stream import Disposition

    if path.stat().st_size == 0:
        raise InputError("E211", f"{path} is empty (0 bytes)", "Copy or download the file again.")
    try:
        # A resolved path starts with "/" or a drive, so that no name is taken for a protocol ("concat:...").
        # For the container alone: PyAV 16 crashes when the streams of an MPEG program stream get options.
        container = av.open(str(path.resolve()), container_options={"protocol_whitelist": "file"})
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(
            "E212",
            f"{path} is not a readable video ({_short(error)})",
            "Check that the file plays elsewhere.",
        ) from error
    if container.format.name in _PLAYLISTS:
        container.close()
        raise InputError("E212", f"{path} is a {container.format.name} playlist, not a video file")
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # the cover picture of a song
            return container, stream
    container.close()
    raise InputError(
        "E213", f"{path} has no picture track", "Give a file that contains video, not only audio."
    )


def packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet[VideoStream] | Exception]:
    """Packets of `stream` in storage order; a read error is yielded in its place and reading goes on.

    Ends with the empty packet that flushes the decoder.
    """
    import av

    for _ in range(_MAX_READ_ERRORS):
        try:
            yield from container.demux(stream)
            return
        except av.FFmpegError as error:
            yield error


def probe_video(path: Path) -> Probe:
    """Read the packets of a video file and decode its first frame.

    Raises:
        InputError: the file is unreadable, has no picture track or no frame that decodes.
    """
    container, stream = open_container(path)
    with container:
        scan = _scan(container, stream)
        if scan.first is None:
            raise InputError(
                "E214", f"{path} has no frame that can be decoded", "The file is damaged; copy it again."
            )
        codec, form = stream.codec_context.codec.canonical_name, container.format.name
        index = _packet_index(scan, stream) if codec in _CODECS and form in _CONTAINERS else None
        if index is None:
            index = _index_by_decoding(path, scan)
        return _describe(path, form, stream, scan, index)


def _scan(container: InputContainer, stream: VideoStream) -> Scan:
    stream.codec_context.thread_count = 1
    scan = Scan()
    first_key: int | None = None
    for packet in packets(container, stream):
        if isinstance(packet, Exception):
            scan.read_errors += 1
            continue
        if scan.first is None and packet.is_keyframe:
            scan.first = _decode_alone(packet, stream)
        if not packet.size:
            continue
        if packet.is_keyframe and packet.pts is not None:
            scan.keys.append(packet.pts)
            first_key = packet.pts if first_key is None else first_key
        if packet.is_discard:
            scan.hidden += 1
        elif packet.pts is not None and first_key is not None and packet.pts < first_key:
            scan.leading += 1  # leads a key frame into the file, and refers to what was before the file
        else:
            scan.shown.append(packet.pts)
    return scan


def _decode_alone(packet: av.Packet[VideoStream], stream: VideoStream) -> av.VideoFrame | None:
    """The frame of a key packet, without waiting for the frames that follow it; None when it is damaged."""
    import av

    try:
        frames = [*packet.decode(), *stream.codec_context.decode(None)]
    except av.FFmpegError:
        frames = []  # the next key frame may do; a frame that never decodes is counted when it is read
    stream.codec_context.flush_buffers()
    return frames[0] if frames else None


def _packet_index(scan: Scan, stream: VideoStream) -> PacketIndex | None:
    """The index that the packets' time stamps give; None when they are missing or ambiguous."""
    pts = [value for value in scan.shown if value is not None]
    if len(pts) < len(scan.shown) or len(set(pts)) < len(pts) or not pts or not scan.keys:
        return None
    return _index(pts, scan.keys, stream.time_base or Fraction(1, 90_000), seekable=True)


def _index_by_decoding(path: Path, scan: Scan) -> PacketIndex:
    """Count the frames by decoding the whole file; slow, for formats whose packets are not frames."""
    import av

    container, stream = open_container(path)
    pts: list[int | None] = []
    with container:
        for packet in packets(container, stream):
            if isinstance(packet, Exception):
                continue
            try:
                pts.extend(frame.pts for frame in packet.decode())
            except av.FFmpegError:
                continue  # what does not decode has no index in such a file
        time_base = stream.time_base or Fraction(1, 90_000)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    known = [value for value in pts if value is not None]
    if len(known) == len(pts) and all(a < b for a, b in pairwise(known)):
        return _index(known, scan.keys, time_base, seekable=bool(scan.keys), counted=True)
    step = 1 / rate
    return _index(list(range(len(pts))), [], step, seekable=False, counted=True)


def _index(
    pts: list[int], keys: list[int], time_base: Fraction, *, seekable: bool, counted: bool = False
) -> PacketIndex:
    return PacketIndex(
        np.array(sorted(pts), np.int64),
        np.array(sorted(set(keys)), np.int64),
        Fraction(time_base),
        seekable,
        counted,
    )


def _describe(path: Path, container: str, stream: VideoStream, scan: Scan, index: PacketIndex) -> Probe:
    first = scan.first
    assert first is not None
    rotation = round(first.rotation) % 360
    if rotation % 90:
        rotation = 0
    size = (first.height, first.width) if rotation % 180 == 0 else (first.width, first.height)
    pts_s = np.asarray(index.pts * float(index.time_base), np.float64)
    info = VideoInfo(
        size=size,
        pts_s=pts_s,
        fps=_frame_rate(pts_s, stream.average_rate),
        names=tuple(f"{i:05d}" for i in range(len(pts_s))),
        decoder="pyav",
        reason="",
        rotation=rotation,
        pixel_aspect=float(stream.sample_aspect_ratio or 1),
        interlaced=bool(first.interlaced_frame),
        codec=stream.codec_context.codec.canonical_name,
        pixel_format=first.format.name,
        time_base=index.time_base,
        warnings=tuple(_warnings(path.name, first, stream, scan, pts_s)),
    )
    return Probe(info, index, scan, container)


def _warnings(
    name: str, first: av.VideoFrame, stream: VideoStream, scan: Scan, pts_s: NDArray[np.float64]
) -> Iterator[str]:
    rotation = round(first.rotation) % 360
    if rotation % 90:
        yield f"{name}: rotation by {rotation} degrees is not a quarter turn and is ignored"
    lost = stream.frames - scan.hidden - scan.leading - len(pts_s)
    ends_s, announced_s = float(pts_s[-1] + np.diff(pts_s[-2:]).sum()), _announced_duration_s(stream)
    if announced_s > ends_s + 0.5:
        yield f"{name} is cut short: {announced_s:.1f} s announced, pictures end at {ends_s:.1f} s"
    elif scan.read_errors or lost > 0:
        told = f"{stream.frames} frames announced, " if lost > 0 else ""
        yield f"{name} is damaged or cut short: {told}{len(pts_s)} found"
    if scan.leading:
        yield f"{name}: {scan.leading} frames before the first key frame are left out"
    if first.interlaced_frame:
        yield f"{name} is interlaced; its frames are used as stored, both fields in one picture"


def _announced_duration_s(stream: VideoStream) -> float:
    """Length of the picture track that a Matroska file states, 0 where nothing is stated."""
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) if match else 0.0


def _frame_rate(pts_s: NDArray[np.float64], announced: Fraction | None) -> float:
    """Frames per second by the time stamps; the announced rate where it agrees, because it is exact."""
    if len(pts_s) < 2:
        return float(announced or 25)
    measured = (len(pts_s) - 1) / float(pts_s[-1] - pts_s[0])
    if announced and abs(float(announced) - measured) <= 0.005 * measured:
        return float(announced)
    return measured


def _short(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return str(text).lower()
