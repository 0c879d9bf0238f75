"""Online adaptation of the sequences of a benchmark, on propagated masks or on those that lie on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vosnet.adaptation.adapt import PackedMasks, adapt
from vosnet.adaptation.appearance import AppearanceModel
from vosnet.adaptation.settings import AdaptationSettings
from vosnet.errors import InputError
from vosnet.evaluation.adaptation_curve import Curve
from vosnet.evaluation.benchmark import Benchmark
from vosnet.evaluation.evaluator import open_frames, propagated_masks
from vosnet.export.folder import ResultFolder
from vosnet.files import inside, write_json
from vosnet.masks import read_label_map, write_mask
from vosnet.progress import Progress, ProgressMode
from vosnet.propagation import Propagator


@dataclass(frozen=True)
class BenchmarkAdapter:
    """Trains a U-Net on each sequence's masks and writes its answers.

    Attributes:
        settings: of online adaptation.
        source: makes the masks to start from, or the folder with `<sequence>/<frame>.png` where they lie.
        device: where U-Nets train.
        mode: how progress is shown.
        say: gets a line for each sequence that keeps its propagated masks.
        curve_every: iterations between two measurements of J and F against the annotations; 0 for none.
    """

    settings: AdaptationSettings
    source: Propagator | Path
    device: str
    mode: ProgressMode
    say: Callable[[str], None]
    curve_every: int = 0

    def write(self, benchmark: Benchmark, name: str, folder: ResultFolder) -> None:
        """Masks of one sequence into `<name>/`, and a report into `adaptation/<name>.json`.

        Masks are written after training: an interrupted sequence starts again when resumed.

        Raises:
            InputError: the reader sees other frames than the data set, or a mask to start from is missing.
            VosnetError: what propagation and adaptation raise.
        """
        stems = [path.stem for path in benchmark.frames(name)]
        given = {stems.index(stem): mask for stem, mask in benchmark.given(name).items()}
        start = self._start(benchmark, name, stems)
        with open_frames(benchmark, name) as reader:
            curve = Curve(benchmark, name, reader, start, self.curve_every) if self.curve_every else None
            label = f"adapt {name}"
            with Progress(self.settings.iterations, label, unit="iteration", mode=self.mode) as progress:

                def on_step(iteration: int, loss: float, model: AppearanceModel) -> None:
                    progress.advance(loss=round(loss, 4))
                    if curve is not None:
                        curve(iteration, loss, model)

                adaptation = adapt(reader, start, given, self.settings, device=self.device, on_step=on_step)
            if curve is not None:
                curve.write(folder, self.say)
            report = adaptation.report
            if report.kept_propagated:
                self.say(f"{name}: propagated masks kept, {report.kept_propagated}")
            document = {**dataclasses.asdict(report), "settings": dataclasses.asdict(self.settings)}
            write_json(folder.path(f"adaptation/{name}.json"), document)
            asked = set(benchmark.asked(name))
            for index, mask in adaptation.masks(reader):
                if stems[index] in asked:
                    write_mask(folder.path(f"{name}/{stems[index]}.png"), mask)

    def _start(self, benchmark: Benchmark, name: str, stems: list[str]) -> PackedMasks:
        """The masks to start from by frame index."""
        masks = PackedMasks()
        if isinstance(self.source, Propagator):
            with Progress(len(stems), f"propagate {name}", mode=self.mode) as progress:
                for stem, mask in propagated_masks(self.source, benchmark, name):
                    masks[stems.index(stem)] = mask
                    progress.advance()
            return masks
        there, asked = inside(self.source, name), set(benchmark.asked(name))
        wanted = [(index, there / f"{stem}.png") for index, stem in enumerate(stems) if stem in asked]
        missing = [path.name for _, path in wanted if not path.is_file()]
        if missing:
            raise InputError(
                "E179", f"{there}: {len(missing)} masks to adapt on are missing, first {missing[0]}"
            )
        for index, path in wanted:
            masks[index] = read_label_map(path)
        return masks
