"""One clip from frames and first masks to files: masks, overlay video, contact sheet, result.json."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vosnet.adaptation.adapt import PackedMasks, adapt
from vosnet.adaptation.settings import AdaptationSettings
from vosnet.export.folder import ResultFolder
from vosnet.export.mask_files import MaskFiles
from vosnet.export.options import ExportOptions
from vosnet.export.overlay import write_overlay
from vosnet.files import sha256, write_json
from vosnet.masks import object_ids
from vosnet.masks.labels import Mask
from vosnet.progress import Progress
from vosnet.propagation.propagator import Propagator
from vosnet.video.selection import Direction, FrameSelection

_SPILL = "state.safetensors"
_PROPAGATED = "propagated.json"  # there once every frame is propagated, when adaptation follows


@dataclass(frozen=True)
class ClipExport:
    """Everything about one clip whose masks become files.

    Attributes:
        propagator: encoder and protocol.
        selection: the frames.
        masks: label maps [H, W] by place in the selection.
        folder: where files go.
        options: what is written.
        direction: see `Propagator.propagate`.
        adaptation: settings of online adaptation; None does without.
    """

    propagator: Propagator
    selection: FrameSelection
    masks: Mapping[int, Mask]
    folder: ResultFolder
    options: ExportOptions
    direction: Direction = "forward"
    adaptation: AdaptationSettings | None = None

    def write(self) -> dict[str, Any]:
        """Carry the masks through the frames and write every file.

        An interrupted call leaves the masks so far and the tracker's state; called again with a folder that
        was opened to resume it goes on from there. With `adaptation` the propagated masks go to `propagated/`
        and a U-Net trained on them makes `masks/`; interrupted there, training begins anew and gives the same
        masks.

        Returns:
            The content of `result.json`: settings, objects, timing, and the SHA-256 of each mask.
        """
        began = time.perf_counter()
        final = MaskFiles(self.folder, self.selection, self.options.formats)
        first = final if self.adaptation is None else MaskFiles(self.folder, self.selection, (), "propagated")
        done = 0 if self.folder.has(_PROPAGATED) else self._propagate(first)
        propagated_s = time.perf_counter() - began
        adapted = None
        if self.adaptation is not None:
            write_json(self.folder.path(_PROPAGATED), {"frames": first.answered()})
            adapted = self._adapt(first, final, self.adaptation)
        adapted_s = time.perf_counter() - began - propagated_s
        final.finish()
        write_overlay(self.folder, self.selection, final.read, self.options)
        seconds = {
            "propagate": round(propagated_s, 3),
            "adapt": round(adapted_s, 3),
            "of which writing masks": round(final.seconds, 3),
            "all": round(time.perf_counter() - began, 3),
        }
        report = {
            **self._description(),
            "adaptation": adapted,
            "seconds": seconds,
            "frames_per_s": round(done / propagated_s, 3),
            "sha256": {
                name: sha256(self.folder.root / name)
                for name in self.folder.made
                if name.startswith("masks/")
            },
        }
        write_json(self.folder.path("result.json"), report)
        return report

    def _description(self) -> dict[str, Any]:
        reader = self.selection.reader
        return {
            "video": str(reader.path),
            "size": list(reader.size),
            "frames": len(self.selection),
            "decoder": {"name": reader.decoder, "reason": reader.reason},
            "bad_frames": reader.bad_frames,
            "warnings": reader.warnings,
            "encoder": self.propagator.source,
            "device": self.propagator.device,
            "protocol": vars(self.propagator.protocol),
            "objects": sorted({label for mask in self.masks.values() for label in object_ids(mask)}),
            "direction": self.direction,
        }

    def _progress(self, total: int, what: str, unit: str = "frame") -> Progress:
        label = f"{what} {self.selection.reader.path.name}"
        return Progress(total, label, unit=unit, mode=self.options.progress)

    def _propagate(self, files: MaskFiles) -> int:
        """Write the propagated mask of every frame; how many."""
        results = self.propagator.propagate(
            self.selection,
            self.masks,
            direction=self.direction,
            spill=self.folder.path(_SPILL),
            spill_every=self.options.save_every,
        )
        with self._progress(len(self.selection), "propagate") as progress:
            for result in results:
                files.write(result.index, result.mask)
                progress.advance()
        return progress.done

    def _adapt(self, propagated: MaskFiles, final: MaskFiles, settings: AdaptationSettings) -> dict[str, Any]:
        """Write the adapted mask of every frame that was propagated; the report for `result.json`."""
        start = PackedMasks()
        for place in propagated.answered():
            start[place] = propagated.read(place)
        with self._progress(settings.iterations, "adapt", "iteration") as progress:
            adaptation = adapt(
                self.selection,
                start,
                self.masks,
                settings,
                direction=self.direction,
                device=self.propagator.device,
                on_step=lambda iteration, loss, model: progress.advance(loss=round(loss, 4)),
            )
        with Progress(len(start), "write adapted masks", mode=self.options.progress) as progress:
            for place, mask in adaptation.masks(self.selection):
                final.write(place, mask)
                progress.advance()
        return {**dataclasses.asdict(adaptation.report), "settings": dataclasses.asdict(settings)}
