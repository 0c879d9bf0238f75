"""Progress of a long job with the time left: a bar on a terminal, a line now and then in a log, or JSON."""

from __future__ import annotations

import json
import math
import sys
import time
from types import TracebackType
from typing import IO, Any, Literal

ProgressMode = Literal["auto", "bar", "lines", "json", "quiet"]
_SECONDS_BETWEEN_LINES = {"lines": 30.0, "json": 1.0}


class Progress:
    """Reports progress on stderr; stdout is for results.

    Args:
        total: number of steps, or None if unknown.
        label: what is being done.
        unit: what one step is, such as "frame".
        mode: "auto" is "bar" on a terminal and "lines" (one every 30 s) elsewhere; "json" writes one object
            per line, at most one per second: `{"progress": label, "done": n, "total": n, "eta_s": s, ...}`.
        start: steps that a resumed job had done before; they do not count toward the speed.
        stream: where to write.
    """

    def __init__(
        self,
        total: int | None,
        label: str,
        *,
        unit: str = "frame",
        mode: ProgressMode = "auto",
        start: int = 0,
        stream: IO[str] | None = None,
    ) -> None:
        self._stream = stream or sys.stderr
        if mode == "auto":
            mode = "bar" if self._stream.isatty() else "lines"
        self.total, self.label, self.unit, self.mode = total, label, unit, mode
        self.done = self._start = start
        self._began = self._last_line = time.monotonic()
        self._bar: Any = None
        if mode == "bar":
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=label, unit=unit, initial=start, file=self._stream)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def advance(self, steps: int = 1, **fields: float | int | str) -> None:
        """Count `steps` more and show `fields`, such as `loss=1.23`."""
        self.done += steps
        if self._bar is not None:
            if fields:
                self._bar.set_postfix(fields, refresh=False)
            self._bar.update(steps)
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES.get(self.mode, math.inf):
            self._write(fields)

    def close(self) -> None:
        """Write the final state and end the bar."""
        if self._bar is not None:
            self._bar.close()
        elif self.mode in _SECONDS_BETWEEN_LINES:
            self._write({})

    def _write(self, fields: dict[str, float | int | str]) -> None:
        self._last_line = now = time.monotonic()
        rate = (self.done - self._start) / max(now - self._began, 1e-9)
        left = (self.total - self.done) / rate if self.total is not None and rate > 0 else None
        if self.mode == "json":
            eta = None if left is None else round(left, 1)
            report = {"progress": self.label, "done": self.done, "total": self.total, "eta_s": eta, **fields}
            self._stream.write(json.dumps(report) + "\n")
        else:
            of_total = "" if self.total is None else f"/{self.total}"
            extra = "".join(f", {key} {value}" for key, value in fields.items())
            eta_text = "" if not left else f", about {_duration(left)} left"
            speed = f"{rate:.2f} {self.unit}s/s"
            self._stream.write(
                f"{self.label}: {self.done}{of_total} {self.unit}s, {speed}{extra}{eta_text}\n"
            )
        self._stream.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
