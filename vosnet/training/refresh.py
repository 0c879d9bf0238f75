"""Files that objectives make of the training videos, such as pseudo masks: when they are made and used."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vosnet.datasets.stream import ClipStream
from vosnet.errors import InputError
from vosnet.objectives import Objective, RefreshJob
from vosnet.progress import Progress, ProgressMode
from vosnet.runtime import Ranks, state_hash
from vosnet.training.signals import StopRequest
from vosnet.training.versions import MANIFEST_NAME, Versions, read_manifest


@dataclasses.dataclass(frozen=True)
class Version:
    """What made a version; a checkpoint holds it, and so does the version's manifest.

    Args:
        interval: how many intervals had passed.
        step: optimizer steps done.
        weights: SHA-256 of the objective's parameters and buffers.
        data: fingerprint of the training videos.
    """

    interval: int
    step: int
    weights: str
    data: str


class Refresher:
    """Lets an objective make its files at their times, in versions that lie in the run's folder `refreshed`.

    Args:
        objective: what is trained.
        stream: knows the training videos.
        out: the run folder.
        ranks: every rank makes its share.
        bfloat16: whether the objective's networks run in bfloat16.
        say: where messages go.
        mode: how progress is shown.
        beat: called after every video, to show that the run is alive.
    """

    def __init__(
        self,
        objective: Objective,
        stream: ClipStream,
        out: Path,
        ranks: Ranks,
        *,
        bfloat16: bool,
        say: Callable[[str], None],
        mode: ProgressMode,
        beat: Callable[[], None],
    ) -> None:
        self.objective, self.stream, self.ranks = objective, stream, ranks
        self.bfloat16, self.say, self.mode, self.beat = bfloat16, say, mode, beat
        self.versions = Versions(out / "refreshed")
        self.used: Version | None = None
        self.took_s = 0.0

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        used = None if self.used is None else dataclasses.asdict(self.used)
        return {"refreshed": used, "refresh_s": self.took_s}

    def load(self, state: dict[str, Any]) -> None:
        """Use the version that a checkpoint names.

        Where it is missing, as in a run that starts from another run's checkpoint, a refresh is due at once,
        and the continuation is not exact.

        Raises:
            InputError: the folder holds files of another checkpoint or of other videos.
        """
        self.took_s = state.get("refresh_s", 0.0)
        stored = state.get("refreshed")
        if stored is None or self.objective.refresh_interval is None:
            return
        version = dataclasses.replace(Version(**stored), data=self.stream.fingerprint)
        if self._holds(version):
            self.objective.use_refreshed(self.versions.path(version.step))
            self.used = version
        else:
            path = self.versions.path(version.step)
            self.say(f"{path} is not there; it is made anew from the weights as they are")

    def is_due(self, step: int, seconds: float, left_s: float) -> bool:
        """Whether to refresh before the next step.

        Files that would be done when little or no time is left to use them are not made.

        Args:
            step: optimizer steps of the run done.
            seconds: training time of the run spent.
            left_s: training time that is left.
        """
        if self.objective.refresh_interval is None or self.used is None:
            return self.objective.refresh_interval is not None
        return self.used.interval < self._interval(step, seconds) and left_s >= 2 * self.took_s

    def refresh(self, step: int, seconds: float, stop: StopRequest) -> bool:
        """Make and use a new version; False when a stop was asked for before it was complete."""
        began = time.monotonic()
        weights = state_hash(self.objective.state_dict())
        version = Version(self._interval(step, seconds), step, weights, self.stream.fingerprint)
        done = self._is_there(version) or self._make(version, stop)
        if done:
            self.objective.use_refreshed(self.versions.path(step))
            self.used = version
        self.took_s = self.ranks.sum([(time.monotonic() - began) * self.ranks.is_main])[0]
        if done:
            self.say(f"step {step}: refreshed the objective's files in {self.took_s:.0f} s")
        return done

    def _interval(self, step: int, seconds: float) -> int:
        assert self.objective.refresh_interval is not None
        return self.objective.refresh_interval.passed(step, seconds, self.stream.steps_per_epoch)

    def _make(self, version: Version, stop: StopRequest) -> bool:
        """All ranks' shares of a version; False when one of them was stopped."""
        if self.ranks.is_main:
            self.versions.start(version.step)
        self.ranks.wait()
        path = self.versions.path(version.step)
        job = RefreshJob(path, self.stream.videos(), self.ranks.rank, self.ranks.size, self.bfloat16)
        mode: ProgressMode = self.mode if self.ranks.is_main else "quiet"
        with Progress(len(job.share()), "refreshing", unit="video", mode=mode) as progress:
            for _ in self.objective.refresh(job):
                progress.advance(1)
                self.beat()
                if stop:
                    break
        if self.ranks.sum([float(bool(stop))])[0] > 0:
            return False
        if self.ranks.is_main:
            self.versions.finish(version.step, dataclasses.asdict(version))
            self.versions.prune()
        self.ranks.wait()
        return True

    def _is_there(self, version: Version) -> bool:
        """Whether the main rank sees this very version, as when a run stopped right after making it."""
        found = False
        if self.ranks.is_main:
            with contextlib.suppress(InputError):  # of other weights at the same step: made anew in its place
                found = self._holds(version)
        return self.ranks.sum([float(found)])[0] > 0

    def _holds(self, version: Version) -> bool:
        """Whether the folder of a version is complete.

        Raises:
            InputError: it is damaged, or made from other weights or other videos (E181).
        """
        path, hint = self.versions.path(version.step), "Remove that folder; it is then made anew."
        if not (path / MANIFEST_NAME).is_file():
            return False
        try:
            stored = read_manifest(path)
        except InputError as error:
            raise InputError("E181", error.message, hint) from error
        for key, what in (("data", "another data set"), ("weights", "another checkpoint")):
            got, want = str(stored.get(key)), getattr(version, key)
            if got != want:
                message = f"{path} was made from {what} ({got[:12]}, expected {want[:12]})"
                raise InputError("E181", message, f"{hint[:-1]} from the weights as they are.")
        return True
