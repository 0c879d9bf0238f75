"""How good the appearance model is while it learns: the curves of figure 3 of Zhu et al. 2020.

An oracle for studies: it reads every annotation, and nothing of it reaches the training.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from vosnet.adaptation.adapt import Masks
from vosnet.adaptation.appearance import AppearanceModel
from vosnet.errors import InputError
from vosnet.evaluation.benchmark import Benchmark
from vosnet.evaluation.results import ScoringTask, score_sequence
from vosnet.export.folder import ResultFolder
from vosnet.files import atomic_path, write_json
from vosnet.masks import with_annotation, write_mask
from vosnet.video import VideoReader


class Curve:
    """J and F of a sequence, against annotations and against the propagated masks, every few iterations.

    A context manager; its masks live in a temporary folder.

    Args:
        benchmark: annotations and the rule of scoring.
        name: of the sequence.
        reader: its frames.
        propagated: label maps by frame index.
        every: iterations between two measurements.

    Attributes:
        rows: "iteration", "loss", "J", "F", "JF", and the latter three with "_propagated".
        baseline: "J", "F", "JF" of the propagated masks against the annotations.
    """

    def __init__(
        self, benchmark: Benchmark, name: str, reader: VideoReader, propagated: Masks, every: int
    ) -> None:
        self.name, self._reader, self._every = name, reader, every
        self._folder = tempfile.TemporaryDirectory(prefix="vosnet-curve-")
        root = Path(self._folder.name)
        self._stems = [path.stem for path in benchmark.frames(name)]
        given = benchmark.given(name)
        self._given = {self._stems.index(stem): mask for stem, mask in given.items()}
        self._known = {int(i) for mask in given.values() for i in np.unique(mask) if i}
        self._task = benchmark.task(name, root / "model")
        before = benchmark.task(name, root / "propagated")
        self._wanted = {self._stems.index(path.stem) for path in self._task.annotations}
        for index in self._wanted:
            write_mask(before.results / f"{self._stems[index]}.png", propagated[index])
        taught = tuple(before.results / path.name for path in self._task.annotations)
        self._against_propagated = dataclasses.replace(self._task, annotations=taught)
        self.baseline = _means(before)
        self.rows: list[dict[str, float]] = []

    def __enter__(self) -> Curve:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def __call__(self, iteration: int, loss: float, model: AppearanceModel) -> None:
        """Measure when it is time."""
        if iteration % self._every:
            return
        wanted = ((index, frame) for index, frame in enumerate(self._reader) if index in self._wanted)
        while group := list(islice(wanted, model.settings.predict_batch)):
            masks = model.predict([frame for _, frame in group], [self._known] * len(group))
            for (index, _), mask in zip(group, masks):
                given = self._given.get(index)
                final = mask if given is None else with_annotation(mask, given)
                write_mask(self._task.results / f"{self._stems[index]}.png", final)
        propagated = {f"{key}_propagated": value for key, value in _means(self._against_propagated).items()}
        self.rows.append({"iteration": iteration, "loss": loss, **_means(self._task), **propagated})

    def write(self, folder: ResultFolder, say: Callable[[str], None]) -> None:
        """`adaptation/<name>_curve.json`, and `.png` when matplotlib is installed."""
        document = {"sequence": self.name, "baseline": self.baseline, "rows": self.rows}
        write_json(folder.path(f"adaptation/{self.name}_curve.json"), document)
        if self.rows:
            draw_curve(folder.path(f"adaptation/{self.name}_curve.png"), document, say)


def draw_curve(path: Path, document: dict[str, Any], say: Callable[[str], None]) -> None:
    """Both panels of figure 3: against the propagated masks, and against the annotations.

    Args:
        path: a .png.
        document: "sequence", "baseline" and "rows" as `Curve.write` saves them.
        say: told when nothing can be drawn, and why.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        say(f"no {path.name}: matplotlib is missing (pip install 'vosnet[train]'); the .json has it all")
        return
    rows: Sequence[dict[str, float]] = document["rows"]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, suffix, title in zip(panels, ("_propagated", ""), ("propagated masks", "annotations")):
        for color, measure in zip(("C0", "C1"), ("J", "F")):
            values = [row[measure + suffix] for row in rows]
            axes.plot([row["iteration"] for row in rows], values, color=color, marker=".", label=measure)
            if not suffix:
                axes.axhline(document["baseline"][measure], color=color, linestyle="--")
        axes.set_title(f"{document['sequence']}: against the {title}")
        axes.set_xlabel("iteration")
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90)


def _means(task: ScoringTask) -> dict[str, float]:
    """Means over frames, then over objects."""
    result = score_sequence(task)
    if result.problems:
        raise InputError("E233", f"no score: {'; '.join(result.problems)}")
    pairs = [(scores.region.mean(), scores.boundary.mean()) for scores in result.scores.values()]
    region, boundary = (float(value) for value in np.mean(pairs, axis=0))
    return {"J": region, "F": boundary, "JF": (region + boundary) / 2}
