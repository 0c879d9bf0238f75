"""Copy a source's sound beside new pictures, packet by packet and without coding it again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import av
    from av.audio.stream import AudioStream
    from av.container import OutputContainer

# What browsers and phones play from an MP4 file; other codecs (PCM, Vorbis) do not belong there.
_MP4_CODECS = {"aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"}


class AudioCopy:
    """The sound packets of `source` between two times, moved so that `start_s` becomes 0.

    Args:
        source: the file that the pictures came from.
        output: where the sound goes; must not have been written to.
        start_s: first time of the source that is kept, in seconds.
        end_s: end of the part that is kept, in seconds.
        suffix: suffix of the output, ".mp4" limits the codecs.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        output: OutputContainer,
        start_s: float,
        end_s: float,
        suffix: str,
    ) -> None:
        import av

        self.problem = ""
        self._output = output
        self._start_s, self._end_s = start_s, end_s
        self._waiting: av.Packet[AudioStream] | None = None
        self._packets: Iterator[av.Packet[AudioStream]] = iter(())
        try:
            self._input = av.open(
                str(Path(source).resolve()), container_options={"protocol_whitelist": "file"}
            )
        except (av.FFmpegError, OSError) as error:
            self.problem = f"the sound of {source} cannot be read ({error})"
            return
        if not self._input.streams.audio:
            self._input.close()
            return
        stream = self._input.streams.audio[0]
        codec = stream.codec_context.codec.canonical_name
        if suffix.lower() in {".mp4", ".m4v"} and codec not in _MP4_CODECS:
            self.problem = f"the sound is left out: {codec} cannot be stored in {suffix}; use .mkv"
            self._input.close()
            return
        self._target = output.add_stream_from_template(stream)
        self._packets = self._shifted(stream)

    def copy_until(self, end_s: float) -> None:
        """Copy the packets that begin before `end_s` of the output, so that sound and pictures interleave."""
        while True:
            packet = self._waiting or next(self._packets, None)
            self._waiting = None
            if packet is None:
                return
            assert packet.dts is not None
            assert packet.time_base is not None
            if packet.dts * packet.time_base > end_s:
                self._waiting = packet
                return
            self._output.mux(packet)

    def _shifted(self, stream: AudioStream) -> Iterator[av.Packet[AudioStream]]:
        import av

        assert stream.time_base is not None
        offset = round(Fraction(self._start_s) / stream.time_base)
        with self._input:
            try:
                for packet in self._input.demux(stream):
                    if packet.pts is None or packet.dts is None or packet.is_discard:
                        continue
                    if packet.pts * stream.time_base >= self._end_s:
                        return
                    if packet.pts >= offset:
                        packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
                        packet.stream = self._target
                        yield packet
            except av.FFmpegError as error:
                self.problem = f"the sound ends early: {error}"  # a damaged source; the pictures are whole
