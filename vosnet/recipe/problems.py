"""What is wrong with a recipe: every finding with its line, a suggestion, and one error for all of them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Sequence

from vosnet.errors import UsageError

# Words that other code bases use for our keys.
ALIASES = {
    "learning_rate": "lr",
    "base_lr": "lr",
    "lr_scheduler": "schedule",
    "scheduler": "schedule",
    "optim": "optimizer",
    "loss": "objective",
    "criterion": "objective",
    "dataset": "data",
    "datasets": "data",
    "backbone": "encoder",
    "network": "encoder",
    "batch": "batch_size",
    "bs": "batch_size",
    "wd": "weight_decay",
    "tau": "temperature",
    "amp": "precision",
    "dtype": "precision",
    "num_epochs": "epochs",
    "max_epochs": "epochs",
    "num_steps": "steps",
    "iterations": "steps",
    "max_steps": "steps",
    "num_workers": "workers",
    "n_workers": "workers",
    "num_frames": "clip_len",
    "video_len": "clip_len",
    "gap": "frame_gap",
    "image_size": "crop_size",
    "crop_px": "crop_size",
    "crop": "crop_size",
    "out_dim": "embedding_dim",
    "feature_dim": "embedding_dim",
    "grid_size_ref": "cross_view_grid_size",
    "lambda": "cross_view_weight",
    "ce_ref": "cross_view_weight",
    "grad_accum": "accumulate",
    "grad_clip": "clip_grad_norm",
    "max_norm": "clip_grad_norm",
    "ema": "ema_decay",
    "warmup": "warmup_steps",
    "random_seed": "seed",
    "val": "validation",
    "evaluation": "validation",
    "path": "root",
    "dir": "root",
    "folder": "root",
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """One finding.

    Args:
        where: file and line, such as "dul.yaml:12", or "command line" for an override.
        message: what is wrong and what to write instead.
        order: line number by which findings are listed; overrides come last.
    """

    where: str
    message: str
    order: int = 0

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


class RecipeError(UsageError):
    """A recipe cannot be used; `problems` holds every finding, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: problem.order)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__("E101", f"the recipe has {count}:\n{lines}")

    def __reduce__(self) -> tuple[type[RecipeError], tuple[list[Problem]]]:  # type: ignore[override]
        return type(self), (self.problems,)


def suggest(unknown: str, allowed: Iterable[str]) -> str | None:
    """The allowed key that `unknown` most likely means, or None.

    An alias takes precedence over similar spelling: no edit distance leads from `learning_rate` to `lr`.
    """
    allowed = list(allowed)
    folded = unknown.strip().lower().replace("-", "_").replace(" ", "_")
    if folded in allowed:
        return folded
    if (alias := ALIASES.get(folded)) in allowed:
        return alias
    close = difflib.get_close_matches(folded, allowed, n=1, cutoff=0.6)
    if close:
        return close[0]
    contained = [key for key in allowed if len(folded) >= 4 and (folded in key or key in folded)]
    return max(contained, key=len, default=None)


def unknown_key(key: str, section: str, allowed: Iterable[str]) -> str:
    """The message for an unknown key: the nearest key if there is one, else all that are allowed."""
    allowed = sorted(allowed)
    place = f"in section {section!r}" if section else "at the top level"
    guess = suggest(key, allowed)
    if guess is not None:
        return f"unknown key {key!r} {place}; did you mean {guess!r}?"
    return f"unknown key {key!r} {place}; allowed: {', '.join(allowed)}"
