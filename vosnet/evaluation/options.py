"""What an evaluation is asked to do, and which options exclude each other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from vosnet.errors import UsageError
from vosnet.export.options import MethodOptions
from vosnet.files import expand
from vosnet.options import option
from vosnet.progress import ProgressMode

if TYPE_CHECKING:
    from vosnet.evaluation.evaluator import DatasetName

DATA, JUDGED, ADAPTATION = "data set", "what is evaluated (one of these)", "online adaptation"


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(MethodOptions):
    """A benchmark, the masks to judge (one of `results`, `checkpoint` and `compare`), and what is written.

    Raises:
        UsageError: options that do not go together (E140).
    """

    dataset: DatasetName = option("layout", "davis", group=DATA, choices=["davis", "ytvos"])
    root: Path | None = option("the data set's folder", group=DATA, type=expand)
    split: str | None = option(
        "NAME of ImageSets/**/NAME.txt (davis) or of a folder (ytvos), or a file", group=DATA
    )
    annotations: Sequence[str] = option(
        "davis: where annotations lie (default Annotations); repeat it, the first with a sequence wins",
        (),
        group=DATA,
        action="append",
        metavar="FOLDER",
    )
    train_meta: Path | None = option(
        "ytvos: meta.json of the training set", group=DATA, type=expand, metavar="FILE"
    )
    results: Path | None = option("folder with SEQUENCE/FRAME.png", group=JUDGED, type=expand, metavar="DIR")
    checkpoint: str | None = option(
        "run folder, weights file, 'random' or 'shipped', to make the masks with",
        group=JUDGED,
        metavar="RUN_OR_FILE",
    )
    compare: Sequence[Path] | None = option(
        "two result folders, or two JSON files", group=JUDGED, nargs=2, type=expand, metavar=("A", "B")
    )
    out: Path | None = option("keep masks and report there", group="method", type=expand, metavar="DIR")
    curve_every: int = option(
        "J and F every N iterations, for studies",
        0,
        group=ADAPTATION,
        flag="--adapt-curve",
        type=int,
        metavar="N",
    )
    json: Path | None = option(
        "write all numbers there; - is stdout", group="output", type=expand, metavar="FILE"
    )
    csv: Path | None = option(
        "write the official tool's two CSV files there", group="output", type=expand, metavar="DIR"
    )
    picture: Path | None = option(
        "worst frames with both outlines", group="output", type=expand, metavar="FILE"
    )
    allow_missing: bool = option("count missing frames as 0, and say so", False, group="output")
    submission: Path | None = option(
        "build and check a zip instead of scoring", group="output", type=expand, metavar="ZIP"
    )
    workers: int | None = option(
        "scoring processes (default: cores, at most 8)", group="output", type=int, metavar="N"
    )
    progress: ProgressMode = option(
        "how progress is shown", "auto", group="output", choices=get_args(ProgressMode)
    )

    @property
    def makes_masks(self) -> bool:
        """Whether masks are made before they are judged."""
        return self.checkpoint is not None or self.adaptation is not None

    def __post_init__(self) -> None:
        files = self.compare is not None and all(path.is_file() for path in self.compare)
        alone: dict[str, object] = {"preset": self.preset, "set": self.switches}
        if not self.makes_masks:
            alone |= {"out": self.out, self.existing: self.existing != "refuse"}
        needless = [name for name, given in alone.items() if given and self.checkpoint is None]
        adapts, curve = self.adaptation is not None, self.curve_every
        same = self.results and self.out and self.results.resolve() == self.out.resolve()
        judged = [given for given in (self.results, self.checkpoint, self.compare) if given is not None]
        rules = {
            "--root and --split are needed to read a data set": not files and not (self.root and self.split),
            "give one of --results, --checkpoint and --compare": len(judged) != 1,
            f"--workers must be at least 1, got {self.workers}": self.workers is not None
            and self.workers < 1,
            "--adapt goes with --checkpoint, or with --results and --out": adapts
            and (self.compare or (self.results and not self.out)),
            "--adapt-set and --adapt-curve go with --adapt only": curve and not adapts,
            "--adapt-curve needs a positive number of iterations, and --out": curve < 0
            or (curve and not self.out),
            "--adapt reads --results and writes --out: they must differ": adapts and same,
            f"--{next(iter(needless), '')} goes with --checkpoint only": needless,
            "--submission and --compare exclude each other": self.submission and self.compare,
            "under torchrun masks need --out, a folder that every process sees": self.makes_masks
            and not self.out
            and int(os.environ.get("WORLD_SIZE", "1")) > 1,
        }
        for message, broken in rules.items():
            if broken:
                raise UsageError("E140", message)
