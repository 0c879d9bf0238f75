"""`vosnet propagate`: carry first-frame masks through a video and write masks, overlay and a summary."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from vosnet.commands.cli import add_method_options, make_parser, method_options, printer
from vosnet.errors import InputError, PartialFailureError, UsageError
from vosnet.export.options import ExportOptions, PropagateOptions
from vosnet.files import write_json
from vosnet.options import add_options, given_options

_EXAMPLES = [
    "--video clip.mp4 --mask first.png",
    "--video frames/ --mask 0=first.png 57=later.png --out result",
    "--video clip.mov --mask 120=middle.png --start 100 --end 200 --format palette coco-video",
    "--video clip.mp4 --mask first.png --checkpoint runs/dul --set k=5 radius=15",
    "--video clip.mp4 --mask first.png --adapt --adapt-set iterations=150",
    "--videos clips/ --masks first_masks/ --out results",
]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, do every clip with one encoder, report; exit status 3 when some clips failed."""
    arguments = _parser().parse_args(argv)
    clips = _clips(arguments)
    from vosnet.export.propagate import propagate_batch

    results, failures = propagate_batch(clips, printer(to_stderr=arguments.json))
    summary = {"results": results, "failures": failures}
    if len(clips) > 1:
        write_json(clips[0].out.parent / "summary.json", summary)
    if arguments.json:
        print(json.dumps(summary))
    if failures:
        hint = f"See {clips[0].out.parent / 'summary.json'}"
        raise PartialFailureError("E301", f"{len(failures)} of {len(clips)} clips failed", hint)
    bad = sum(len(result["bad_frames"]) for result in results)
    if bad:
        raise PartialFailureError(
            "E303", f"{bad} frames could not be decoded and hold the picture before them", "See result.json."
        )
    return 0


def _clips(arguments: argparse.Namespace) -> list[PropagateOptions]:
    """One for --video, one per file of --videos."""
    if bool(arguments.video) == bool(arguments.videos):
        raise UsageError("E132", "name either --video with --mask, or --videos with --masks")
    if arguments.resume and arguments.overwrite:
        raise UsageError("E133", "--resume and --overwrite exclude each other")
    if arguments.adapt_set and not arguments.adapt:
        raise UsageError("E138", "--adapt-set goes with --adapt only")
    same = {
        **given_options(PropagateOptions, arguments),
        **method_options(arguments),
        "export": ExportOptions(**given_options(ExportOptions, arguments)),
    }
    if arguments.video:
        if not arguments.mask:
            raise UsageError("E132", "--video needs --mask FIRST.png")
        out = arguments.out or Path(f"result_{arguments.video.stem}")
        return [PropagateOptions(**same, video=arguments.video, masks=_parse_masks(arguments.mask), out=out)]
    if not arguments.masks or arguments.mask:
        raise UsageError("E132", "--videos needs --masks FOLDER (and no --mask)")
    from vosnet.video import list_videos

    clips = []
    for video in list_videos(arguments.videos):
        masks: dict[int | None, Path] = {None: arguments.masks / f"{video.stem}.png"}
        out = (arguments.out or Path("results")) / video.stem
        clips.append(PropagateOptions(**same, video=video, masks=masks, out=out))
    if not clips:
        raise InputError("E210", f"no videos in {arguments.videos}")
    return clips


def _parse_masks(arguments: Sequence[str]) -> dict[int | None, Path]:
    masks: dict[int | None, Path] = {}
    for argument in arguments:
        frame, equals, name = argument.partition("=")
        index = int(frame) if equals and frame.isdecimal() else None
        if index in masks:
            where = "the first frame" if index is None else f"frame {index}"
            raise UsageError("E135", f"two masks for {where}")
        masks[index] = Path(argument if index is None else name)
    return masks


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "propagate", "Carry object masks from annotated frames through a whole video.", _EXAMPLES
    )
    groups = {name: parser.add_argument_group(name) for name in ("input", "method", "output")}
    source, output = groups["input"], groups["output"]
    source.add_argument("--video", type=Path, help="video file, folder of frames, or one picture")
    source.add_argument(
        "--mask",
        nargs="+",
        metavar="[FRAME=]FILE",
        help="object ids of annotated frames; without FRAME the first frame that is processed",
    )
    source.add_argument("--videos", type=Path, help="folder of videos, instead of --video")
    source.add_argument("--masks", type=Path, help="folder with a mask <video stem>.png for each of --videos")
    output.add_argument("--out", type=Path, help="result folder (default: result_<video stem>)")
    add_method_options(groups["method"], output)
    add_options(PropagateOptions, groups)
    add_options(ExportOptions, groups)
    output.add_argument("--json", action="store_true", help="one JSON object on stdout, messages on stderr")
    return parser
