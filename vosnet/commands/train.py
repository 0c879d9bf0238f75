"""`train`: an encoder from raw video, as a recipe says."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vosnet.commands.cli import make_parser

EXAMPLES = (
    "recipes/demo.yaml",
    "recipes/dul_clips.yaml data.sources.0.root=/my/videos schedule.minutes=25",
    "recipes/dul_ytvos.yaml data.sources.0.root=/data/ytvos --resume auto",
)


def make_train_parser() -> argparse.ArgumentParser:
    """The parser of `train`."""
    parser = make_parser(
        "train",
        "Train an encoder without labels, as a recipe says.\n"
        "`torchrun --standalone --nproc-per-node=N tools/train.py ...` uses N GPUs.\n"
        "The first Ctrl-C finishes the step and saves; --resume auto continues.",
        EXAMPLES,
    )
    parser.add_argument("recipe", help="a YAML file, or a name from `vosnet recipes list`")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as optimizer.lr=1e-3")
    parser.add_argument("--out", type=Path, help="run folder (default: runs/RECIPE)")
    parser.add_argument(
        "--resume",
        default="never",
        metavar="auto|never|PATH",
        help="continue the run in --out, or start from a checkpoint or run folder (default: never)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in --out")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument(
        "--progress",
        choices=["auto", "bar", "lines", "json", "quiet"],
        default="auto",
        help="a bar on a terminal, else a line every 30 s; json: one object a line on stderr",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `train`; returns the exit code."""
    options = make_train_parser().parse_intermixed_args(argv)

    from vosnet import files
    from vosnet.commands.recipes import find_recipe
    from vosnet.recipe import load_recipe

    loaded = load_recipe(find_recipe(options.recipe), options.overrides)
    out = options.out or Path("runs") / Path(options.recipe).stem

    from vosnet.training.train import RunOptions, train

    result = train(
        loaded,
        RunOptions(
            out=files.expand(out),
            resume=options.resume,
            overwrite=options.overwrite,
            device=options.device,
            progress=options.progress,
            argv=tuple(argv if argv is not None else sys.argv[1:]),
        ),
    )
    return result.exit_code
