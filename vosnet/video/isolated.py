"""Decoding in a process of its own: a crash or hang of the decoder ends the clip and not the program."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vosnet import errors
from vosnet.errors import InputError, VosnetError
from vosnet.video.info import Frame, VideoInfo

WORKER_COMMAND = (sys.executable, "-m", "vosnet.video.worker")
# Starting Python and importing the decoders takes longer than a frame.
_START_ALLOWANCE_S = 20.0


class WorkerDecoder:
    """Asks a worker process for frames, and for the next one in advance when they are asked for in order.

    Args:
        path: the clip.
        options: keyword arguments of the worker's `VideoReader`.
        timeout_s: longest wait for one frame.
        warn: called with the warnings of the worker's reader.

    Raises:
        InputError: the clip is unreadable, or the worker crashed or was too slow.
    """

    name = "worker"

    def __init__(
        self, path: Path, options: Mapping[str, Any], timeout_s: float, warn: Callable[[str], None]
    ) -> None:
        self._path, self._timeout_s, self._warn = path, timeout_s, warn
        self._underway: int | None = None
        self._last = -1
        self._process = subprocess.Popen(
            [*WORKER_COMMAND, str(path), json.dumps(dict(options))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(p).resolve()) for p in sys.path)},
        )
        head, _ = self._receive("opening the file", timeout_s + _START_ALLOWANCE_S)
        self.info = VideoInfo.from_json(head["info"])

    def frame(self, index: int) -> Frame | None:
        """Frame `index`, None when it cannot be decoded.

        Raises:
            InputError: the worker crashed or did not answer in time.
        """
        if self._underway is not None and self._underway != index:
            self._receive(f"frame {self._underway}", self._timeout_s)  # asked for in advance, not wanted
            self._underway = None
        if self._underway is None:
            self._ask(index)
        head, payload = self._receive(f"frame {index}", self._timeout_s)
        in_order, self._last, self._underway = index == self._last + 1, index, None
        if in_order and index + 1 < len(self.info.pts_s):
            self._ask(index + 1)
        for warning in head["warnings"]:
            self._warn(warning)
        if head["bad"]:
            return None
        return np.frombuffer(payload, np.uint8).reshape(*self.info.size, 3)

    def close(self) -> None:
        """End the worker."""
        self._process.kill()  # it may hang; it holds nothing that is worth saving
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # an unsent request cannot be flushed to a dead worker
                    pipe.close()

    def _ask(self, index: int) -> None:
        assert self._process.stdin is not None
        self._underway = index
        try:
            self._process.stdin.write(f"{index}\n".encode())
            self._process.stdin.flush()
        except OSError:
            return  # it died; the answer that does not come says so

    def _receive(self, what: str, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        """The next answer: a line of JSON, then as many bytes as it announces."""
        assert self._process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(timeout_s, give_up)
        timer.start()
        try:
            line = self._process.stdout.readline()
            head: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
            payload = self._process.stdout.read(head.get("bytes", 0))
            complete = bool(head) and len(payload) == head.get("bytes", 0)
        finally:
            timer.cancel()
        if not complete:
            raise self._failure(what, timeout_s if late.is_set() else None)
        if "error" in head:
            self.close()
            kind: type[VosnetError] = getattr(errors, head["error"].pop("type"))
            raise kind(**head["error"])
        return head, payload

    def _failure(self, what: str, timeout_s: float | None) -> InputError:
        self.close()
        code = self._process.returncode
        if timeout_s is not None:
            told = f"did not answer within {timeout_s:g} s"
        else:
            told = f"crashed (signal {-code})" if code < 0 else f"ended (exit code {code})"
        return InputError(
            "E219",
            f"the decoder of {self._path} {told} at {what}",
            "The file is damaged; the other clips go on.",
        )
