"""`vosnet propagate`: carry first-frame masks through a video and write masks, overlay and a summary."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vosnet.commands.cli import make_parser, parse_assignments
from vosnet.errors import InputError, PartialFailureError, UsageError, VosnetError

if TYPE_CHECKING:
    from vosnet.propagation.propagator import Propagator
    from vosnet.video.selection import FrameSelection

_EXAMPLES = [
    "--video clip.mp4 --mask first.png",
    "--video frames/ --mask 0=first.png 57=later.png --out result",
    "--video clip.mov --mask 120=middle.png --start 100 --end 200 --format palette coco-video",
    "--video clip.mp4 --mask first.png --checkpoint runs/dul --set k=5 radius=15",
    "--video clip.mp4 --mask first.png --adapt --adapt-set iterations=150",
    "--videos clips/ --masks first_masks/ --out results",
]


@dataclass(frozen=True)
class Job:
    """One clip to do: the video, its annotated frames, and where the result goes."""

    video: Path
    masks: dict[int | None, Path]
    out: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, load the encoder once, do every clip, report; exit status 3 when some clips failed."""
    options = _parser().parse_args(argv)
    jobs = _jobs(options)
    from vosnet import Propagator
    from vosnet.adaptation.settings import make_settings

    if options.adapt_set and not options.adapt:
        raise UsageError("E138", "--adapt-set goes with --adapt only")
    options.adaptation = make_settings(**parse_assignments(options.adapt_set)) if options.adapt else None
    propagator = Propagator.from_checkpoint(
        options.checkpoint,
        preset=options.preset,
        device=options.device,
        allow_degrade=options.allow_degrade,
        **parse_assignments(options.set),
    )
    say = _printer(to_stderr=options.json)
    say(f"encoder: {propagator.source}")
    results, failures = [], []
    for job in jobs:
        try:
            results.append(_propagate(propagator, job, options, say))
        except VosnetError as error:
            if len(jobs) == 1:
                raise
            say(f"{job.video}: {error}")
            failures.append({"video": str(job.video), "error": str(error), "exit_code": error.exit_code})
    if len(jobs) > 1:
        _write_summary(options.out, results, failures)
    if options.json:
        print(json.dumps({"results": results, "failures": failures}))
    if failures:
        raise PartialFailureError(
            "E301", f"{len(failures)} of {len(jobs)} clips failed", f"See {options.out / 'summary.json'}"
        )
    bad = sum(len(result["bad_frames"]) for result in results)
    if bad:
        raise PartialFailureError(
            "E303", f"{bad} frames could not be decoded and hold the picture before them", "See result.json."
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "propagate", "Carry object masks from annotated frames through a whole video.", _EXAMPLES
    )
    source = parser.add_argument_group("input")
    source.add_argument("--video", type=Path, help="video file, folder of frames, or one picture")
    source.add_argument(
        "--mask",
        nargs="+",
        metavar="[FRAME=]FILE",
        help="object ids of annotated frames; without FRAME the first frame that is processed",
    )
    source.add_argument("--videos", type=Path, help="folder of videos, instead of --video")
    source.add_argument("--masks", type=Path, help="folder with a mask <video stem>.png for each of --videos")
    source.add_argument("--start", type=int, default=0, help="first frame to process (default 0)")
    source.add_argument("--end", type=int, help="end, exclusive (default: the end of the clip)")
    source.add_argument("--stride", type=int, default=1, help="process every STRIDE-th frame (default 1)")
    source.add_argument("--direction", choices=["auto", "forward", "backward", "both"], default="auto")
    source.add_argument("--resize-mask", choices=["never", "nearest"], default="never")
    source.add_argument("--mask-from-jpeg", action="store_true", help="accept masks saved as JPEG")
    source.add_argument("--on-bad-frame", choices=["hold", "stop"], default="hold", help="default hold")
    source.add_argument(
        "--decode-timeout", type=float, metavar="S", help="give up on a frame after S seconds"
    )
    method = parser.add_argument_group("method")
    method.add_argument(
        "--checkpoint", help="run folder or weights file, or 'random' (default: shipped weights)"
    )
    method.add_argument(
        "--preset",
        help="inference protocol (default: the one its recipe gave the checkpoint, else dul; shipped: dul)",
    )
    method.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override a protocol switch",
    )
    method.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default auto)")
    method.add_argument(
        "--allow-degrade", action="store_true", help="when memory is short, keep fewer frames"
    )
    method.add_argument(
        "--adapt", action="store_true", help="train a U-Net on the propagated masks; its masks are final"
    )
    method.add_argument(
        "--adapt-set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting of --adapt",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, help="result folder (default: result_<video stem>)")
    output.add_argument("--overwrite", action="store_true", help="replace an earlier result there")
    output.add_argument("--resume", action="store_true", help="continue an interrupted result there")
    output.add_argument("--save-every", type=int, default=50, help="frames between saved states (default 50)")
    output.add_argument(
        "--format", nargs="+", default=["palette"], choices=["palette", "binary", "coco-video"]
    )
    output.add_argument("--no-overlay", action="store_true", help="write no overlay video")
    output.add_argument("--colors", choices=["davis", "okabe-ito"], default="davis")
    output.add_argument("--opacity", type=float, default=0.5, help="of the overlay, 0 to 1 (default 0.5)")
    output.add_argument("--progress", choices=["auto", "bar", "lines", "json", "quiet"], default="auto")
    output.add_argument("--json", action="store_true", help="one JSON object on stdout, messages on stderr")
    return parser


def _jobs(options: argparse.Namespace) -> list[Job]:
    if bool(options.video) == bool(options.videos):
        raise UsageError("E132", "name either --video with --mask, or --videos with --masks")
    if options.resume and options.overwrite:
        raise UsageError("E133", "--resume and --overwrite exclude each other")
    if not 0 <= options.opacity <= 1:
        raise UsageError("E134", f"--opacity must lie in 0..1, got {options.opacity}")
    if options.video:
        if not options.mask:
            raise UsageError("E132", "--video needs --mask FIRST.png")
        out = options.out or Path(f"result_{options.video.stem}")
        options.out = out
        return [Job(options.video, _parse_masks(options.mask), out)]
    return _batch_jobs(options)


def _batch_jobs(options: argparse.Namespace) -> list[Job]:
    from vosnet.video import list_videos

    if not options.masks or options.mask:
        raise UsageError("E132", "--videos needs --masks FOLDER (and no --mask)")
    options.out = options.out or Path("results")
    videos = list_videos(options.videos)
    if not videos:
        raise InputError("E210", f"no videos in {options.videos}")
    return [
        Job(video, {None: options.masks / f"{video.stem}.png"}, options.out / video.stem) for video in videos
    ]


def _parse_masks(arguments: Sequence[str]) -> dict[int | None, Path]:
    masks: dict[int | None, Path] = {}
    for argument in arguments:
        frame, equals, name = argument.partition("=")
        index = int(frame) if equals and frame.isdecimal() else None
        path = Path(name if index is not None else argument)
        if index in masks:
            raise UsageError(
                "E135", f"two masks for {'the first frame' if index is None else f'frame {index}'}"
            )
        masks[index] = path
    return masks


def _propagate(
    propagator: Propagator, job: Job, options: argparse.Namespace, say: Callable[[str], None]
) -> dict[str, Any]:
    from vosnet.export.clip import ExportOptions, propagate_clip
    from vosnet.export.folder import ResultFolder
    from vosnet.video import open_video
    from vosnet.video.selection import FrameSelection

    with open_video(
        job.video, on_bad_frame=options.on_bad_frame, decode_timeout_s=options.decode_timeout
    ) as reader:
        selection = FrameSelection(reader, options.start, options.end, options.stride)
        masks = _read_masks(job, selection, options, say)
        direction = options.direction
        if direction == "auto":
            direction = "both" if min(masks) > 0 else "forward"
        settings = {
            "video": str(job.video.resolve()),
            "frames": [selection.indices.start, selection.indices.stop, selection.indices.step],
            "masks": {
                str(place): hashlib.sha256(mask.tobytes()).hexdigest() for place, mask in masks.items()
            },
            "encoder": propagator.source,
            "protocol": {key: str(value) for key, value in vars(propagator.protocol).items()},
            "direction": direction,
        }
        if options.adaptation is not None:
            settings["adaptation"] = dataclasses.asdict(options.adaptation)
        existing: Literal["refuse", "resume", "overwrite"]
        existing = "overwrite" if options.overwrite else "resume" if options.resume else "refuse"
        folder = ResultFolder(job.out, settings, existing=existing)
        finished = folder.root / "result.json"
        if folder.resumed and finished.is_file():
            say(f"{finished} is there: this result is complete")
            return {"out": str(job.out), **json.loads(finished.read_text())}
        export = ExportOptions(
            formats=tuple(options.format),
            overlay=not options.no_overlay,
            colors=options.colors,
            opacity=options.opacity,
            progress=options.progress,
            save_every=options.save_every,
        )
        say(f"video: {job.video}, {len(selection)} frames, read by {reader.decoder} ({reader.reason})")
        report = propagate_clip(
            propagator, selection, masks, folder, export, direction=direction, adaptation=options.adaptation
        )
    say(f"masks: {job.out / 'masks'} ({report['frames_per_s']:.2f} frames/s)")
    if export.overlay:
        say(f"overlay: {job.out / 'overlay.mp4'}")
    say(f"pictures: {job.out / 'sheet.jpg'}; summary: {job.out / 'result.json'}")
    for warning in report["warnings"]:
        say(f"{job.video}: {warning}")
    if options.adaptation is not None and report["adaptation"]["kept_propagated"]:
        say(f"{job.video}: propagated masks kept, {report['adaptation']['kept_propagated']}")
    return {"out": str(job.out), **report}


def _read_masks(
    job: Job, selection: FrameSelection, options: argparse.Namespace, say: Callable[[str], None]
) -> dict[int, NDArray[np.uint8]]:
    """Label maps by place in the selection, upright and in the video's size."""
    from vosnet.masks import fit_mask, read_mask

    reader = selection.reader
    masks: dict[int, NDArray[np.uint8]] = {}
    colors: dict[int, tuple[int, int, int]] = {}
    for frame, path in sorted(job.masks.items(), key=lambda item: -1 if item[0] is None else item[0]):
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


def _write_summary(out: Path, results: list[dict[str, Any]], failures: list[dict[str, Any]]) -> None:
    from vosnet.files import write_json

    write_json(out / "summary.json", {"results": results, "failures": failures})


def _printer(*, to_stderr: bool) -> Callable[[str], None]:
    def say(text: str) -> None:
        print(text, file=sys.stderr if to_stderr else sys.stdout, flush=True)

    return say
