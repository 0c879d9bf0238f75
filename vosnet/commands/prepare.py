"""`prepare`: index a data set, so that training starts immediately and skips what is broken."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vosnet.commands.cli import make_parser

if TYPE_CHECKING:
    from vosnet.datasets.index import VideoIndex

EXAMPLES = [
    "ytvos /data/ytvos --out ytvos.json",
    "folder ~/videos --out videos.json --verify",
    "kinetics /data/k400 --out k400.json --extract /data/k400_256 --short-side 256",
]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the index of a data set; an interrupted run continues where it was.

    Returns:
        0, or 3 when some videos cannot be read; the index lists them.
    """
    options = _parser().parse_args(argv)
    from vosnet.datasets.index import VideoIndex, build_index, write_index
    from vosnet.datasets.layouts import find_videos
    from vosnet.files import expand
    from vosnet.progress import Progress

    out = expand(options.out)
    located = find_videos(
        options.layout, options.root, split=options.split, names=options.names, pattern=options.pattern
    )
    root = expand(options.extract or options.root).resolve()
    index = _unfinished(out, str(root), options) or VideoIndex(str(root), options.layout)
    done = len(index.videos) + len(index.bad)
    if done:
        print(f"continuing {out}: {done} of {len(located)} videos are known")
    convert = None
    if options.extract:
        from vosnet.datasets.extract import extract_frames

        convert = functools.partial(extract_frames, folder=root, short_side=options.short_side)
    with Progress(len(located), "videos", unit="video", start=done) as progress:
        build_index(
            located,
            index,
            verify=options.verify,
            convert=convert,
            save=functools.partial(write_index, out),
            report=lambda name: progress.advance(),
        )
    frames = sum(entry.num_frames for entry in index.videos)
    print(f"{out}: {len(index.videos)} videos with {frames} frames, {len(index.bad)} unreadable")
    for name, reason in index.bad.items():
        print(f"  unreadable: {name}: {reason}")
    return 3 if index.bad else 0


def _unfinished(out: Path, root: str, options: argparse.Namespace) -> VideoIndex | None:
    from vosnet.datasets.index import read_index
    from vosnet.errors import UsageError

    if not out.exists() or options.overwrite:
        return None
    index = read_index(out)
    if index.complete:
        raise UsageError("E153", f"{out} is a finished index", "Choose another --out, or --overwrite it.")
    if (index.root, index.layout) != (root, options.layout):
        hint = "Choose another --out, or --overwrite it."
        raise UsageError("E153", f"{out} was begun for {index.layout} {index.root}", hint)
    return index


def _parser() -> argparse.ArgumentParser:
    from vosnet.datasets.layouts import EXPECTED

    description = "Index a data set: frames, size and rate of every video, and which ones cannot be read."
    parser = make_parser("prepare", description, EXAMPLES)
    parser.add_argument("layout", choices=sorted(EXPECTED), help="how the data set lies on disk")
    parser.add_argument("root", help="the data set's folder")
    parser.add_argument("--out", required=True, metavar="INDEX", help="JSON file to write")
    parser.add_argument("--split", help="part of the data set, such as 2017/train (davis) or train (ytvos)")
    parser.add_argument("--names", metavar="FILE", help="take only the videos that this text file lists")
    parser.add_argument("--pattern", default="*", help="take only names that match, as in a shell")
    parser.add_argument("--verify", action="store_true", help="decode every frame and note SHA-256 sums")
    parser.add_argument("--extract", metavar="FOLDER", help="also write every video as small JPEGs there")
    parser.add_argument(
        "--short-side", type=int, default=256, metavar="PX", help="shorter side of those (default 256)"
    )
    parser.add_argument("--overwrite", action="store_true", help="begin again if INDEX exists")
    return parser
