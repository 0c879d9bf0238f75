"""From the files of a clip and its first masks to a result folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vosnet.errors import UsageError, VosnetError
from vosnet.export.clip import ClipExport
from vosnet.export.folder import ResultFolder
from vosnet.export.options import PropagateOptions
from vosnet.masks import fit_mask, read_mask
from vosnet.propagation import Propagator
from vosnet.video import open_video
from vosnet.video.selection import Direction, FrameSelection

Say = Callable[[str], None]


def load_propagator(options: PropagateOptions) -> Propagator:
    """The encoder and protocol that the options name; see `Propagator.from_checkpoint`."""
    return Propagator.from_checkpoint(
        options.checkpoint,
        preset=options.preset,
        device=options.device,
        allow_degrade=options.allow_degrade,
        **options.switches,
    )


def propagate_batch(
    clips: Sequence[PropagateOptions], say: Say = lambda text: None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Propagate clips with the encoder and protocol of the first; a clip that fails does not stop the others.

    Args:
        clips: at least one.
        say: gets each message for people.

    Returns:
        Reports as of `propagate_files`, and failures: "video", "error", "exit_code".

    Raises:
        VosnetError: a single clip failed, or the encoder cannot be loaded.
    """
    propagator = load_propagator(clips[0])
    say(f"encoder: {propagator.source}")
    reports, failures = [], []
    for clip in clips:
        try:
            reports.append(propagate_files(clip, propagator, say))
        except VosnetError as error:
            if len(clips) == 1:
                raise
            say(f"{clip.video}: {error}")
            failures.append({"video": str(clip.video), "error": str(error), "exit_code": error.exit_code})
    return reports, failures


def propagate_files(
    options: PropagateOptions, propagator: Propagator | None = None, say: Say = lambda text: None
) -> dict[str, Any]:
    """Carry the masks through the clip and write everything into `options.out`.

    Args:
        options: the clip and what to do with it.
        propagator: None loads the one that the options name.
        say: gets each message for people.

    Returns:
        "out" and the content of `result.json`; see `ClipExport.write`.

    Raises:
        UsageError: frames or masks outside the clip, or a result folder that cannot be used (E118, E119).
        InputError: the video or a mask cannot be read, or they do not fit together.
    """
    propagator = propagator or load_propagator(options)
    reading: dict[str, Any] = {
        "on_bad_frame": options.on_bad_frame,
        "decode_timeout_s": options.decode_timeout_s,
    }
    with open_video(options.video, **reading) as reader:
        selection = FrameSelection(reader, options.start, options.end, options.stride)
        masks = _read_masks(options, selection, say)
        direction = options.direction
        if direction == "auto":
            direction = "both" if min(masks) > 0 else "forward"
        settings = _settings(options, propagator, selection, masks, direction)
        folder = ResultFolder(options.out, settings, existing=options.existing)
        finished = folder.root / "result.json"
        if folder.resumed and finished.is_file():
            say(f"{finished} is there: this result is complete")
            return {"out": str(options.out), **json.loads(finished.read_text())}
        say(f"video: {options.video}, {len(selection)} frames, read by {reader.decoder} ({reader.reason})")
        report = ClipExport(
            propagator, selection, masks, folder, options.export, direction, options.adaptation
        ).write()
    _tell(options, report, say)
    return {"out": str(options.out), **report}


def _settings(
    options: PropagateOptions,
    propagator: Propagator,
    selection: FrameSelection,
    masks: dict[int, NDArray[np.uint8]],
    direction: Direction,
) -> dict[str, Any]:
    """What determines the masks: a result is resumed only with the same."""
    settings: dict[str, Any] = {
        "video": str(options.video.resolve()),
        "frames": [selection.indices.start, selection.indices.stop, selection.indices.step],
        "masks": {str(place): hashlib.sha256(mask.tobytes()).hexdigest() for place, mask in masks.items()},
        **propagator.settings(),
        "direction": direction,
    }
    if options.adaptation is not None:
        settings["adaptation"] = dataclasses.asdict(options.adaptation)
    return settings


def _read_masks(
    options: PropagateOptions, selection: FrameSelection, say: Say
) -> dict[int, NDArray[np.uint8]]:
    """Label maps by place in the selection, upright and in the video's size."""
    reader = selection.reader
    masks: dict[int, NDArray[np.uint8]] = {}
    colors: dict[int, tuple[int, int, int]] = {}
    for frame, path in sorted(options.masks.items(), key=lambda item: -1 if item[0] is None else item[0]):
        index = selection.indices.start if frame is None else frame
        if index not in selection.indices:
            hint = "Frames are counted from 0 in the whole video; choose --start, --end, --stride to hold it."
            raise UsageError("E137", f"mask {path} is for frame {index}, which is not processed", hint)
        found = read_mask(path, from_jpeg=options.mask_from_jpeg, known_colors=colors).require_objects()
        colors.update(found.colors)
        ids = found.ids
        if reader.rotation % 180 and ids.shape == reader.size[::-1] and ids.shape != reader.size:
            ids = np.rot90(ids, reader.rotation // 90)
            say(f"{path}: turned by {reader.rotation} degrees like the video")
        fitted = fit_mask(ids, reader.size, resize=options.resize_mask, path=path)
        masks[selection.indices.index(index)] = np.array(fitted)  # a writable copy, as torch wants it
        say(f"mask {path} on frame {index} ({found.kind}): {found.summary()}")
        for warning in found.warnings:
            say(f"{path}: {warning}")
    return masks


def _tell(options: PropagateOptions, report: dict[str, Any], say: Say) -> None:
    """Where the files are, and what went less than well."""
    say(f"masks: {options.out / 'masks'} ({report['frames_per_s']:.2f} frames/s)")
    if options.export.overlay:
        say(f"overlay: {options.out / 'overlay.mp4'}")
    say(f"pictures: {options.out / 'sheet.jpg'}; summary: {options.out / 'result.json'}")
    for warning in report["warnings"]:
        say(f"{options.video}: {warning}")
    if options.adaptation is not None and report["adaptation"]["kept_propagated"]:
        say(f"{options.video}: propagated masks kept, {report['adaptation']['kept_propagated']}")
