"""What an evaluation is asked to do, and which options exclude each other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vosnet.errors import UsageError

if TYPE_CHECKING:
    from vosnet.adaptation.settings import AdaptationSettings
    from vosnet.evaluation.benchmark import DatasetName
    from vosnet.export.folder import Existing
    from vosnet.progress import ProgressMode


@dataclass(frozen=True)
class EvaluateOptions:
    """A benchmark, the masks to judge (one of `results`, `checkpoint` and `compare`), and what is written.

    Attributes:
        root: the data set's folder.
        split: a name or a file, see `open_benchmark`.
        dataset: layout of the data set.
        annotations: for DAVIS, folders of annotations; the first that has a sequence wins.
        train_meta: for YouTube-VOS, meta.json of the training set.
        results: folder with `<sequence>/<frame>.png`.
        checkpoint: run folder, weights file, "random" or "shipped", to make the masks with.
        compare: two result folders, or JSON files that an evaluation wrote.
        preset: inference protocol; None is the checkpoint's.
        switches: of the protocol.
        device: "auto", "cpu", "cuda" or "cuda:1".
        out: folder that keeps masks and report.
        existing: what to do with an earlier result in `out`.
        adaptation: train a U-Net per sequence on the masks of `checkpoint` or `results`; its masks are final.
        curve_every: iterations of adaptation between two measurements of J and F; 0 for none.
        json: file for all numbers.
        csv: folder for the two files of the official tool.
        picture: file for the worst frames.
        submission: a zip to build instead of scoring.
        allow_missing: missing frames count as 0.
        workers: scoring processes; None is one per core, at most 8.
        progress: how progress is shown.

    Raises:
        UsageError: options that do not go together (E140).
    """

    root: Path | None = None
    split: str | None = None
    dataset: DatasetName = "davis"
    annotations: Sequence[str] = ()
    train_meta: Path | None = None
    results: Path | None = None
    checkpoint: str | None = None
    compare: Sequence[Path] | None = None
    preset: str | None = None
    switches: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    out: Path | None = None
    existing: Existing = "refuse"
    adaptation: AdaptationSettings | None = None
    curve_every: int = 0
    json: Path | None = None
    csv: Path | None = None
    picture: Path | None = None
    submission: Path | None = None
    allow_missing: bool = False
    workers: int | None = None
    progress: ProgressMode = "auto"

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
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        rules = (
            (
                not files and not (self.root and self.split),
                "--root and --split are needed to read a data set",
            ),
            (
                [self.results, self.checkpoint, self.compare].count(None) != 2,
                "give one of --results, --checkpoint and --compare",
            ),
            (
                self.workers is not None and self.workers < 1,
                f"--workers must be at least 1, got {self.workers}",
            ),
            (
                adapts and (self.compare or (self.results and not self.out)),
                "--adapt goes with --checkpoint, or with --results and --out",
            ),
            (curve and not adapts, "--adapt-set and --adapt-curve go with --adapt only"),
            (
                curve and (curve < 0 or not self.out),
                "--adapt-curve needs a positive number of iterations, and --out",
            ),
            (adapts and same, "--adapt reads --results and writes --out: they must differ"),
            (needless, f"--{next(iter(needless), '')} goes with --checkpoint only"),
            (self.submission and self.compare, "--submission and --compare exclude each other"),
            (
                self.makes_masks and not self.out and ranks > 1,
                "under torchrun masks need --out, a folder that every process sees",
            ),
        )
        for broken, message in rules:
            if broken:
                raise UsageError("E140", message)
