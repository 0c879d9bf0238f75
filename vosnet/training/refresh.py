"""Files that objectives make of the training videos: whole versions, each with a manifest written last."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vosnet import files
from vosnet.datasets.stream import ClipStream
from vosnet.errors import InputError
from vosnet.objectives import Objective, RefreshJob
from vosnet.progress import Progress, ProgressMode
from vosnet.runtime import state_hash
from vosnet.training.distributed import World
from vosnet.training.signals import StopRequest

MANIFEST_NAME = "manifest.json"
KEPT = 2  # as many as checkpoints: the older one may still be continued from, and needs its own version


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


class RefreshFolder:
    """The `refreshed` folder of a run: `step_N` folders, complete once they hold a manifest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, version: Version) -> Path:
        """Where the files of a version lie."""
        return self.folder / f"step_{version.step:08d}"

    def start(self, version: Version) -> Path:
        """An empty folder for a version; what an interrupted refresh left there is removed."""
        path = self.path(version)
        shutil.rmtree(path, ignore_errors=True)
        return files.make_folder(path)

    def finish(self, version: Version) -> None:
        """Declare a version complete and remove all but the newest ones."""
        files.write_json(self.path(version) / MANIFEST_NAME, dataclasses.asdict(version))
        complete = [path for path in sorted(self.folder.glob("step_*")) if (path / MANIFEST_NAME).is_file()]
        for path in complete[:-KEPT]:
            (path / MANIFEST_NAME).unlink()  # first, so that a half-removed folder is not a version
            shutil.rmtree(path, ignore_errors=True)

    def find(self, version: Version) -> Path | None:
        """The folder of a version if it is there and complete.

        Raises:
            InputError: the folder holds another one: of other weights, or of other videos.
        """
        path = self.path(version)
        try:
            stored = Version(**json.loads((path / MANIFEST_NAME).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            hint = "Remove that folder; it is then made anew."
            raise InputError("E181", f"{path / MANIFEST_NAME} is no manifest ({error})", hint) from error
        for what, got, want in (
            ("another data set", stored.data, version.data),
            ("another checkpoint", stored.weights, version.weights),
        ):
            if got != want:
                raise InputError(
                    "E181",
                    f"{path} was made from {what} ({got[:12]}, expected {want[:12]})",
                    "Remove that folder; it is then made anew from the weights as they are.",
                )
        return path


class Refresher:
    """Lets an objective make its files at their times.

    Args:
        objective: what is trained.
        stream: knows the training videos.
        out: the run folder.
        world: this rank; every rank makes its share.
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
        world: World,
        *,
        bfloat16: bool,
        say: Callable[[str], None],
        mode: ProgressMode,
        beat: Callable[[], None],
    ) -> None:
        self.objective, self.stream, self.world = objective, stream, world
        self.bfloat16 = bfloat16
        self.folder = RefreshFolder(out / "refreshed")
        self.say, self.mode, self.beat = say, mode, beat

    def resume(self, state: dict[str, Any] | None) -> Version | None:
        """Use the version that a checkpoint names.

        Returns:
            That version; None when there is none, as in a run that starts from another run's checkpoint:
            a refresh is then due at once, and the continuation is no exact one.

        Raises:
            InputError: the folder holds files of another checkpoint or of other videos.
        """
        if state is None:
            return None
        version = Version(**state)
        expected = dataclasses.replace(version, data=self.stream.fingerprint)
        path = self.folder.find(expected)
        if path is None:
            self.say(
                f"{self.folder.path(version)} is not there; it is made anew from the weights as they are"
            )
            return None
        self.objective.use_refreshed(path)
        return version

    def refresh(self, interval: int, step: int, stop: StopRequest) -> Version | None:
        """Make and use a new version; None when a stop was asked for before it was complete."""
        weights = state_hash(self.objective.state_dict())
        version = Version(interval, step, weights, self.stream.fingerprint)
        path = self.folder.path(version)
        if not self._is_there(version):
            if self.world.is_main:
                self.folder.start(version)
            self.world.barrier()
            if not self._make(path, stop):
                return None
            if self.world.is_main:
                self.folder.finish(version)
            self.world.barrier()
        self.objective.use_refreshed(path)
        return version

    def _is_there(self, version: Version) -> bool:
        """Whether the main rank sees this very version, as when a run stopped right after making it."""
        found = False
        if self.world.is_main:
            with contextlib.suppress(InputError):  # of other weights at the same step: made anew in its place
                found = self.folder.find(version) is not None
        return self.world.sum([float(found)])[0] > 0

    def _make(self, path: Path, stop: StopRequest) -> bool:
        """This rank's share; whether all ranks finished theirs."""
        job = RefreshJob(path, self.stream.videos(), self.world.rank, self.world.size, self.bfloat16)
        mode: ProgressMode = self.mode if self.world.is_main else "quiet"
        with Progress(len(job.share()), "refreshing", unit="video", mode=mode) as progress:
            for _ in self.objective.refresh(job):
                progress.advance(1)
                self.beat()
                if stop:
                    break
        return self.world.sum([float(bool(stop))])[0] == 0
