"""J&F on labeled sequences while training, measured on the weights just saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vosnet.errors import InputError
from vosnet.evaluation.davis import DavisBenchmark
from vosnet.evaluation.evaluator import evaluate_in_memory
from vosnet.propagation import Propagator
from vosnet.recipe.schema import ValidationSection


class Validator:
    """Propagates the first mask of named DAVIS sequences and scores the result.

    Args:
        section: the recipe's section.
        device: where the encoder runs.

    Raises:
        InputError: the data set or a sequence is missing.
    """

    def __init__(self, section: ValidationSection, device: torch.device) -> None:
        self.section, self.device = section, device
        self.benchmark = DavisBenchmark(section.root, section.split or "val", names=section.sequences)
        for name in self.benchmark.names:
            counts = len(self.benchmark.annotations(name)), len(self.benchmark.frames(name))
            if counts[0] != counts[1]:
                raise InputError(
                    "E232", f"sequence {name} is annotated in {counts[0]} of {counts[1]} frames only"
                )

    def measure(self, weights: Path) -> dict[str, Any]:
        """J&F, J and F over the objects of all sequences, and J&F of each sequence, in [0, 1].

        Args:
            weights: a safetensors file.
        """
        propagator = Propagator.from_checkpoint(
            weights, self.section.preset, str(self.device), empty_objects="lose"
        )
        evaluation = evaluate_in_memory(propagator, self.benchmark)
        names = {"J&F": "JF_mean", "J": "J_mean", "F": "F_mean"}
        scores = {short: evaluation.overall[name] for short, name in names.items()}
        sequences = {name: evaluation.sequence_means(name)["JF_mean"] for name in self.benchmark.names}
        return {**scores, "sequences": sequences}


def open_validator(
    section: ValidationSection | None, device: torch.device, say: Callable[[str], None]
) -> Validator | None:
    """The validator of a recipe; None, with a note, when its data is missing and the section is optional.

    Raises:
        InputError: the data is missing and `optional` is false.
    """
    if section is None:
        return None
    try:
        return Validator(section, device)
    except InputError as error:
        if not section.optional:
            raise
        say(f"no validation, and so no `best` checkpoint: {error.message}")
        return None
