"""Online adaptation with progress, for one clip or for the sequences of a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vosnet.adaptation.adapt import Adaptation, Masks, OnStep, PackedMasks, adapt
from vosnet.adaptation.settings import AdaptationSettings
from vosnet.errors import InputError
from vosnet.evaluation.adaptation_curve import Curve
from vosnet.evaluation.benchmark import Benchmark
from vosnet.export.folder import ResultFolder
from vosnet.files import inside, write_json
from vosnet.masks import read_label_map, write_mask
from vosnet.progress import Progress, ProgressMode
from vosnet.video import VideoReader, open_video
from vosnet.video.selection import Direction

if TYPE_CHECKING:
    from vosnet.adaptation.appearance import AppearanceModel
    from vosnet.propagation import Propagator


def adapt_shown(
    frames: Iterable[np.ndarray],
    propagated: Masks,
    given: Masks,
    settings: AdaptationSettings,
    *,
    label: str,
    mode: ProgressMode,
    direction: Direction = "forward",
    device: str = "auto",
    also: OnStep | None = None,
) -> Adaptation:
    """`adapt` under a progress display of iterations and loss.

    Args:
        frames: see `adapt`.
        propagated: see `adapt`.
        given: see `adapt`.
        settings: see `AdaptationSettings`.
        label: of the display.
        mode: of the display.
        direction: see `adapt`.
        device: see `adapt`.
        also: called after every step too.
    """
    with Progress(settings.iterations, label, unit="iteration", mode=mode) as progress:

        def on_step(iteration: int, loss: float, model: AppearanceModel) -> None:
            progress.advance(loss=round(loss, 4))
            if also is not None:
                also(iteration, loss, model)

        return adapt(frames, propagated, given, settings, direction=direction, device=device, on_step=on_step)


def report_json(adaptation: Adaptation, settings: AdaptationSettings) -> dict[str, Any]:
    """Settings and what happened; "kept_propagated" says why the U-Net's masks were not used, if so."""
    return {**dataclasses.asdict(adaptation.report), "settings": dataclasses.asdict(settings)}


@dataclass(frozen=True)
class BenchmarkAdapter:
    """Adapts sequences of a data set, after propagating them or on masks that lie on disk.

    Attributes:
        settings: see `AdaptationSettings`.
        device: where U-Nets train.
        mode: how progress is shown.
        say: told when a sequence keeps its propagated masks.
        start_from: folder with `<sequence>/<frame>.png`, instead of propagating.
        curve_every: iterations between two measurements of J and F against the annotations, 0 for none.
    """

    settings: AdaptationSettings
    device: str
    mode: ProgressMode
    say: Callable[[str], None]
    start_from: Path | None = None
    curve_every: int = 0

    def run(
        self, propagator: Propagator | None, benchmark: Benchmark, name: str, folder: ResultFolder
    ) -> None:
        """Masks of one sequence into `<name>/`, and a report into `adaptation/<name>.json`.

        Masks are written after training, so that an interrupted sequence is done anew when resumed.

        Args:
            propagator: makes the masks to start from; None with `start_from`.
            benchmark: the data set.
            name: of the sequence.
            folder: where files go.

        Raises:
            InputError: the reader sees other frames than the data set, or no mask to start from lies there.
            VosnetError: what propagation and adaptation raise.
        """
        stems = [path.stem for path in benchmark.frames(name)]
        asked = set(benchmark.asked(name))
        with open_video(benchmark.frames(name)[0].parent) as reader:
            if list(reader.names) != stems:
                raise InputError(
                    "E237", f"{reader.path}: {len(reader.names)} readable frames, not {len(stems)}"
                )
            given = {stems.index(stem): mask for stem, mask in benchmark.given(name).items()}
            propagated = (
                self._propagate(propagator, reader, given, name)
                if propagator is not None
                else self._read(name, stems, asked)
            )
            measured = (
                Curve(benchmark, name, reader, propagated, self.curve_every)
                if self.curve_every
                else nullcontext()
            )
            with measured as curve:
                adaptation = adapt_shown(
                    reader, propagated, given, self.settings,
                    label=f"adapt {name}", mode=self.mode, device=self.device, also=curve,
                )  # fmt: skip
                if curve is not None:
                    curve.write(folder, self.say)
            if adaptation.report.kept_propagated:
                self.say(f"{name}: propagated masks kept, {adaptation.report.kept_propagated}")
            write_json(folder.path(f"adaptation/{name}.json"), report_json(adaptation, self.settings))
            for index, mask in adaptation.masks(reader):
                if stems[index] in asked:
                    write_mask(folder.path(f"{name}/{stems[index]}.png"), mask)

    def _propagate(
        self, propagator: Propagator, reader: VideoReader, given: dict[int, np.ndarray], name: str
    ) -> PackedMasks:
        masks = PackedMasks()
        with Progress(len(reader), f"propagate {name}", mode=self.mode) as progress:
            for result in propagator.propagate(reader, given):
                masks[result.index] = result.mask
                progress.advance()
        return masks

    def _read(self, name: str, stems: list[str], asked: set[str]) -> PackedMasks:
        assert self.start_from is not None
        there = inside(self.start_from, name)
        missing = [stem for stem in stems if stem in asked and not (there / f"{stem}.png").is_file()]
        if missing:
            raise InputError(
                "E179", f"{there}: {len(missing)} masks to adapt on are missing, first {missing[0]}.png"
            )
        masks = PackedMasks()
        for index, stem in enumerate(stems):
            if stem in asked:
                masks[index] = read_label_map(there / f"{stem}.png")
        return masks
