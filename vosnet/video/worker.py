"""The process on the other side of `WorkerDecoder`: `python -m vosnet.video.worker CLIP OPTIONS`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from vosnet.errors import InputError, VosnetError
from vosnet.video.reader import VideoReader


def serve(open_reader: Callable[[], VideoReader], requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer frame numbers, one per line, with frames until the other side closes the pipe.

    Each answer is a line of JSON, `{"bad", "bytes", "warnings"}`, followed by the frame's RGB bytes.
    """
    try:
        reader = open_reader()
    except VosnetError as error:
        said = {
            "type": type(error).__name__,
            "code": error.code,
            "message": error.message,
            "hint": error.hint,
        }
        _answer(answers, {"error": said})
        return
    _answer(answers, {"info": reader.info.to_json()})
    for line in requests:
        try:
            content = reader[int(line)].tobytes()
        except InputError:
            content = b""  # a frame that cannot be decoded; the asking side decides what to do
        _answer(answers, {"bad": not content, "bytes": len(content), "warnings": reader.warnings}, content)


def _answer(answers: BinaryIO, head: dict[str, Any], content: bytes = b"") -> None:
    answers.write(json.dumps(head).encode() + b"\n")
    answers.write(content)
    answers.flush()


def take_standard_output() -> BinaryIO:
    """The pipe to the asking side; what libraries print to standard output goes to standard error instead."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def main() -> None:
    """Serve the clip and the reader options named on the command line."""
    answers = take_standard_output()
    path, options = sys.argv[1], json.loads(sys.argv[2])
    serve(lambda: VideoReader(path, on_bad_frame="stop", **options), sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
