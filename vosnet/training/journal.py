"""The record of a run: metrics.jsonl always, TensorBoard where installed, log.txt for messages."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vosnet import files

METRICS_NAME, LOG_NAME = "metrics.jsonl", "log.txt"
T = TypeVar("T")


class Journal:
    """Appends rows to `metrics.jsonl`, one JSON object a line, and messages to `log.txt`.

    Keys of a training row: time (ISO 8601, UTC), step, phase (in a run that has phases), epoch, split
    ("train"), loss, the objective's terms, lr, grad_norm, samples_per_s, images_per_s, data_wait_s and
    data_wait_share since the row before, skipped_steps, elapsed_s, mem_peak_bytes. A validation row has
    split "val", J&F, J, F and `sequences`, the J&F of each. Loss, terms and grad_norm are means over the
    steps since the row before.
    Numbers that are not finite are written as null.

    Args:
        folder: the run folder.
        tensorboard: also write event files to `tb/` when TensorBoard is installed.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = True) -> None:
        self.folder = folder
        self._metrics = (folder / METRICS_NAME).open("a", encoding="utf-8")
        self._log = (folder / LOG_NAME).open("a", encoding="utf-8")
        self._board = _tensorboard_writer(folder / "tb") if tensorboard else None

    def row(self, split: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one row."""
        row = {"time": _now(), "step": step, "split": split, **{k: _finite(v) for k, v in values.items()}}
        self._metrics.write(json.dumps(row, allow_nan=False) + "\n")
        self._metrics.flush()
        if self._board is not None:
            for key, value in row.items():
                if isinstance(value, int | float) and key != "step":
                    self._board.add_scalar(f"{split}/{key}", value, step)

    def note(self, message: str) -> None:
        """Append a message to the log."""
        self._log.write(f"{_now()} {message}\n")
        self._log.flush()

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        self._log.close()
        if self._board is not None:
            self._board.close()


@dataclasses.dataclass
class Meter:
    """What was measured since the journal's last row.

    Args:
        clips: clips of one step over all ranks.
        images: their frames.
        step: optimizer steps of the run at the last row.
        seconds: training time of the run at the last row.
    """

    clips: int
    images: int
    step: int
    seconds: float
    waited_s: float = 0.0  # for data, since the phase began
    waited_before_s: float = 0.0  # until the last row
    taken: int = 0  # steps since the last row that were not skipped
    sums: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, values: Mapping[str, float]) -> None:
        """Add the values of a step that was taken."""
        self.taken += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def waited_for(self, batches: Iterator[T]) -> T:
        """The next of `batches`; the time until it is there counts as waiting."""
        began = time.monotonic()
        batch = next(batches)
        self.waited_s += time.monotonic() - began
        return batch

    def row(self, step: int, seconds: float) -> dict[str, float]:
        """Means of the values, speed and waiting time since the last row; starts anew."""
        passed, wait = max(seconds - self.seconds, 1e-9), self.waited_s - self.waited_before_s
        means = {name: total / self.taken for name, total in self.sums.items()}
        speed = (step - self.step) / passed
        self.step, self.seconds, self.waited_before_s = step, seconds, self.waited_s
        self.taken, self.sums = 0, {}
        return {
            "loss": means.pop("loss", math.nan),
            **means,
            "samples_per_s": speed * self.clips,
            "images_per_s": speed * self.images,
            "data_wait_s": wait,
            "data_wait_share": wait / passed,
        }

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"waited_s": self.waited_s, "window": {"steps": self.taken, "sums": self.sums}}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state; speed is measured from now on."""
        self.step, self.seconds = state["step"], state["seconds"]
        self.waited_s = self.waited_before_s = state["waited_s"]
        self.taken, self.sums = state["window"]["steps"], dict(state["window"]["sums"])


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of a run's metrics.jsonl; a last line cut short by a kill is left out."""
    path = folder / METRICS_NAME
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def forget_rows_after(folder: Path, step: int) -> None:
    """Drop rows of steps that a resumed run will do again, so that every step stands there once."""
    path = folder / METRICS_NAME
    if path.is_file():
        kept = [json.dumps(row) + "\n" for row in read_rows(folder) if row.get("step", 0) <= step]
        files.write_bytes(path, "".join(kept).encode())


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return value


def _now() -> str:
    return dt.datetime.now(dt.timezone.utc).isoformat(timespec="milliseconds")


def _tensorboard_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # an optional dependency: metrics.jsonl has everything
        return None
    return SummaryWriter(str(folder))
