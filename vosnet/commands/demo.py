"""`vosnet demo`: train on generated video, propagate through an unseen clip, evaluate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vosnet.commands import train
from vosnet.commands.cli import make_parser, printer
from vosnet.export.options import PropagateOptions

_UNSEEN_SEED = 7  # no recipe trains on this seed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and print J&F of random and of trained weights, and where the pictures are."""
    parser = make_parser(
        "demo",
        "Train 120 steps on generated video, then carry the first mask of an unseen clip, whose "
        "objects occlude each other, leave and come back, through it with random and with trained weights.",
        ["", "--out demo", "--frames 24 schedule.minutes=0.1"],
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="recipe overrides for the training part"
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), help="replaced if an earlier demo made it")
    parser.add_argument("--frames", type=int, default=60, help="length of the unseen clip (default 60)")
    parser.add_argument(
        "--seed", type=int, default=_UNSEEN_SEED, help=f"of the unseen clip (default {_UNSEEN_SEED})"
    )
    options = parser.parse_intermixed_args(argv)
    out: Path = options.out
    began = time.monotonic()

    print("1/3 training on generated video")
    run = out / "run"
    code = train.main(["demo", *options.overrides, "--out", str(run), "--overwrite"])
    if code:
        return code

    from vosnet.export.propagate import propagate_batch

    print("\n2/3 propagating the first mask of an unseen clip")
    true = _write_clip(out, options.seed, options.frames)
    results = {"random": out / "random", "trained": out / "trained"}
    for name, checkpoint in (("random", "random"), ("trained", str(run))):
        clip = PropagateOptions(
            video=out / "clip.mp4",
            masks={None: out / "first.png"},
            out=results[name],
            checkpoint=checkpoint,
            switches={"layer": "layer3"},  # the recipe's; random weights would be read at layer4
            existing="overwrite",
        )
        propagate_batch([clip], printer(to_stderr=False))

    print("\n3/3 evaluating")
    scores = {name: _score(folder, true) for name, folder in results.items()}
    for name, score in scores.items():
        rows = ", ".join(f"{key} {value:.3f}" for key, value in score.items())
        print(f"{name:8} {rows}")
    gain = scores["trained"]["J&F"] - scores["random"]["J&F"]
    print(
        f"\nJ&F {scores['trained']['J&F']:.3f}, {gain:+.3f} against random weights; "
        f"{time.monotonic() - began:.0f} s in all"
    )
    print(f"overlay video:   {results['trained'] / 'overlay.mp4'}")
    print(f"with random:     {results['random'] / 'overlay.mp4'}")
    print(f"pictures:        {results['trained'] / 'sheet.jpg'}, {run / 'curves.png'}")
    print(f"masks:           {results['trained'] / 'masks'}")
    return 0


def _write_clip(out: Path, seed: int, num_frames: int) -> list[NDArray[np.uint8]]:
    """Write the unseen clip as `clip.mp4` with `first.png`; returns its exact masks, [H, W] each."""
    from vosnet.masks import write_mask
    from vosnet.synthetic import make_clip, write_video

    clip = make_clip(seed, num_frames=num_frames)
    write_video(out / "clip.mp4", clip)
    write_mask(out / "first.png", clip.masks[0])
    return list(clip.masks)


def _score(folder: Path, true: list[NDArray[np.uint8]]) -> dict[str, float]:
    from vosnet.evaluation.results import Truth, score_folder
    from vosnet.evaluation.tables import collect

    stems = tuple(f"{t:05d}" for t in range(len(true)))  # as the frames of a video are named
    truth = Truth("clip", stems, tuple(true), frozenset(stems))
    means = collect([score_folder(truth, folder / "masks")]).sequence_means("clip")
    return {"J&F": means["JF_mean"], "J": means["J_mean"], "F": means["F_mean"]}
