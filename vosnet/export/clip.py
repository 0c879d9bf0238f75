"""One clip from frames and first masks to files: mask images, overlay video, contact sheet, result.json."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vosnet.adaptation.adapt import PackedMasks, adapt
from vosnet.adaptation.settings import AdaptationSettings
from vosnet.export.folder import ResultFolder
from vosnet.export.mask_files import MaskWriter
from vosnet.export.options import ExportOptions
from vosnet.export.overlay import contact_sheet, draw_mask, object_colors
from vosnet.files import atomic_path, sha256, write_json
from vosnet.progress import Progress
from vosnet.propagation.propagator import Propagator
from vosnet.video import VideoWriter
from vosnet.video.selection import Direction, FrameSelection

_SHEET_PICTURES = 8
_SPILL = "state.safetensors"
_PROPAGATED = "propagated.json"  # there once every frame is propagated, when adaptation follows


def propagate_clip(
    propagator: Propagator,
    selection: FrameSelection,
    masks: Mapping[int, NDArray[np.uint8]],
    folder: ResultFolder,
    options: ExportOptions,
    *,
    direction: Direction = "forward",
    adaptation: AdaptationSettings | None = None,
) -> dict[str, Any]:
    """Carry `masks` through the selected frames and write everything into `folder`.

    An interrupted call leaves the masks so far and the tracker's state; calling it again with a folder that
    was opened to resume goes on from there. With `adaptation` the propagated masks go to `propagated/` and a
    U-Net trained on them makes `masks/`; interrupted there, training begins anew and gives the same masks.

    Args:
        propagator: encoder and protocol.
        selection: the frames.
        masks: label maps [H, W] by place in the selection.
        folder: where files go.
        options: what is written.
        direction: see `Propagator.propagate`.
        adaptation: settings of online adaptation; None does without.

    Returns:
        The content of `result.json`: settings, objects, timing, and the SHA-256 of each mask.
    """
    writer = MaskWriter(folder, selection, options.formats)
    first = writer if adaptation is None else MaskWriter(folder, selection, (), "propagated")
    began = time.perf_counter()
    done = 0
    if not folder.has(_PROPAGATED):
        done = _propagate(propagator, selection, masks, folder, first, options, direction)
    propagated_s = time.perf_counter() - began
    adapted = None
    if adaptation is not None:
        write_json(folder.path(_PROPAGATED), {"frames": first.answered()})
        adapted = _adapt(propagator, selection, masks, first, writer, options, direction, adaptation)
    adapted_s = time.perf_counter() - began - propagated_s
    writer.finish()
    write_overlay(folder, selection, writer, options)
    reader = selection.reader
    report = {
        "video": str(reader.path),
        "size": list(reader.size),
        "frames": len(selection),
        "decoder": {"name": reader.decoder, "reason": reader.reason},
        "bad_frames": reader.bad_frames,
        "warnings": reader.warnings,
        "encoder": propagator.source,
        "device": propagator.device,
        "protocol": vars(propagator.protocol),
        "objects": sorted({int(label) for mask in masks.values() for label in np.unique(mask) if label}),
        "direction": direction,
        "adaptation": adapted,
        "seconds": {
            "propagate": round(propagated_s, 3),
            "adapt": round(adapted_s, 3),
            "of which writing masks": round(writer.seconds, 3),
            "all": round(time.perf_counter() - began, 3),
        },
        "frames_per_s": round(done / propagated_s, 3),
        "sha256": {name: sha256(folder.root / name) for name in folder.made if name.startswith("masks/")},
    }
    write_json(folder.path("result.json"), report)
    return report


def _propagate(
    propagator: Propagator,
    selection: FrameSelection,
    masks: Mapping[int, NDArray[np.uint8]],
    folder: ResultFolder,
    writer: MaskWriter,
    options: ExportOptions,
    direction: Direction,
) -> int:
    """Write the propagated mask of every frame; how many."""
    done = 0
    results = propagator.propagate(
        selection, masks, direction=direction, spill=folder.path(_SPILL), spill_every=options.save_every
    )
    label = f"propagate {selection.reader.path.name}"
    with Progress(len(selection), label, mode=options.progress) as progress:
        for result in results:
            writer.write(result.index, result.mask)
            done += 1
            progress.advance()
    return done


def _adapt(
    propagator: Propagator,
    selection: FrameSelection,
    masks: Mapping[int, NDArray[np.uint8]],
    propagated: MaskWriter,
    writer: MaskWriter,
    options: ExportOptions,
    direction: Direction,
    settings: AdaptationSettings,
) -> dict[str, Any]:
    """Write the adapted mask of every frame that was propagated; the report for `result.json`."""
    taught = PackedMasks()
    for place in propagated.answered():
        taught[place] = propagated.read(place)
    label = f"adapt {selection.reader.path.name}"
    with Progress(settings.iterations, label, unit="iteration", mode=options.progress) as progress:
        adaptation = adapt(
            selection,
            taught,
            masks,
            settings,
            direction=direction,
            device=propagator.device,
            on_step=lambda iteration, loss, model: progress.advance(loss=round(loss, 4)),
        )
    with Progress(len(taught), "write adapted masks", mode=options.progress) as progress:
        for place, mask in adaptation.masks(selection):
            writer.write(place, mask)
            progress.advance()
    return {**dataclasses.asdict(adaptation.report), "settings": dataclasses.asdict(settings)}


def write_overlay(
    folder: ResultFolder, selection: FrameSelection, masks: MaskWriter, options: ExportOptions
) -> None:
    """Draw the written masks over the frames: `overlay.mp4` in the source's time, and `sheet.jpg`."""
    colors = object_colors(options.colors)
    shown = set(np.linspace(0, len(selection) - 1, min(_SHEET_PICTURES, len(selection))).round().astype(int))
    sheet: list[NDArray[np.uint8]] = []
    pictures = _draw_all(selection, masks, colors, options)
    if options.overlay:
        reader = selection.reader
        pts_s = reader.pts_s[list(selection.indices)]
        audio = reader.path if selection.indices.step == 1 and reader.decoder != "images" else None
        target, aspect = folder.path("overlay.mp4"), reader.info.pixel_aspect
        with VideoWriter(
            target, size=reader.size, pts_s=pts_s, audio_from=audio, pixel_aspect=aspect
        ) as writer:
            for place, picture in enumerate(pictures):
                writer.write(picture)
                if place in shown:
                    sheet.append(picture)
    else:
        opacity = options.opacity
        sheet = [
            draw_mask(selection[i], masks.read(i), colors=colors, opacity=opacity) for i in sorted(shown)
        ]
    with atomic_path(folder.path("sheet.jpg")) as temporary:
        Image.fromarray(contact_sheet(sheet)).save(temporary, quality=90)


def _draw_all(
    selection: FrameSelection, masks: MaskWriter, colors: NDArray[np.uint8], options: ExportOptions
) -> Iterator[NDArray[np.uint8]]:
    with Progress(len(selection), "overlay", mode=options.progress) as progress:
        for place, frame in enumerate(selection):
            yield draw_mask(
                frame,
                masks.read(place),
                colors=colors,
                opacity=options.opacity,
                contour=options.contour,
            )
            progress.advance()
