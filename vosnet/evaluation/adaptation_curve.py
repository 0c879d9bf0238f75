"""J and F of the appearance model during training: the curves of figure 3 of Zhu et al. 2020.

For studies only: it reads every annotation, but does not influence training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

from vosnet.adaptation.annotations import Masks
from vosnet.adaptation.appearance import AppearanceModel
from vosnet.evaluation.benchmark import Benchmark
from vosnet.evaluation.results import Truth, score_masks
from vosnet.evaluation.tables import collect
from vosnet.export.folder import ResultFolder
from vosnet.files import atomic_path, write_json
from vosnet.masks import object_ids, with_annotation
from vosnet.masks.labels import Mask
from vosnet.video import VideoReader


class Curve:
    """J and F of a sequence, against annotations and against the propagated masks, every few iterations.

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
        self._truth = benchmark.truth(name)
        places = {path.stem: index for index, path in enumerate(benchmark.frames(name))}
        given = benchmark.given(name)
        self._given = {places[stem]: mask for stem, mask in given.items()}
        self._known = {label for mask in given.values() for label in object_ids(mask)}
        self._scored = {places[stem]: stem for stem in self._truth.stems}
        start = {stem: propagated[index] for index, stem in self._scored.items()}
        self._taught = dataclasses.replace(self._truth, annotations=tuple(start.values()))
        self.baseline = _means(self._truth, start)
        self.rows: list[dict[str, float]] = []

    def __call__(self, iteration: int, loss: float, model: AppearanceModel) -> None:
        """Measure every `every` iterations."""
        if iteration % self._every:
            return
        masks = dict(self._masks(model))
        against_taught = {f"{key}_propagated": value for key, value in _means(self._taught, masks).items()}
        self.rows.append(
            {"iteration": iteration, "loss": loss, **_means(self._truth, masks), **against_taught}
        )

    def _masks(self, model: AppearanceModel) -> Iterator[tuple[str, Mask]]:
        """(stem, mask) of every scored frame; annotated frames keep the given pixels."""
        scored = ((index, frame) for index, frame in enumerate(self._reader) if index in self._scored)
        while group := list(islice(scored, model.settings.predict_batch)):
            masks = model.predict([frame for _, frame in group], [self._known] * len(group))
            for (index, _), mask in zip(group, masks):
                given = self._given.get(index)
                yield self._scored[index], mask if given is None else with_annotation(mask, given)

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
        say: gets the reason when nothing can be drawn.
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


def _means(truth: Truth, masks: Mapping[str, Mask]) -> dict[str, float]:
    """Means over frames, then over objects."""
    overall = collect([score_masks(truth, masks.items())]).overall
    return {short: cast("float", overall[f"{short}_mean"]) for short in ("J", "F", "JF")}
