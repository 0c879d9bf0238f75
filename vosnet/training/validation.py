"""J&F on labelled sequences while training, measured on the weights just saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from vosnet.errors import InputError
from vosnet.evaluation.davis import DavisRoot, Sequence
from vosnet.masks import read_mask
from vosnet.metrics import evaluate_sequence, object_statistics, summarize
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
        root = DavisRoot(section.root)
        names = list(section.sequences) or root.split(section.split or "val")
        self.sequences = [root.sequence(name) for name in names]
        for sequence in self.sequences:
            if len(sequence.annotations) != len(sequence.frames):
                counts = f"{len(sequence.annotations)} of {len(sequence.frames)} frames"
                raise InputError("E232", f"sequence {sequence.name} is annotated in {counts} only")

    def measure(self, weights: Path) -> dict[str, Any]:
        """J&F, J and F over the objects of all sequences, and J&F of each sequence, in [0, 1].

        Args:
            weights: a safetensors file.
        """
        propagator = Propagator.from_checkpoint(
            weights, self.section.preset, str(self.device), empty_objects="lose"
        )
        objects: dict[str, dict[str, float]] = {}
        sequences: dict[str, float] = {}
        for sequence in self.sequences:
            scored = _score(propagator, sequence)
            objects |= {f"{sequence.name}_{key}": value for key, value in scored.items()}
            sequences[sequence.name] = summarize({str(k): v for k, v in scored.items()})["JF_mean"]
        overall = summarize(objects)
        scores = {"J&F": overall["JF_mean"], "J": overall["J_mean"], "F": overall["F_mean"]}
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


@torch.no_grad()
def _score(propagator: Propagator, sequence: Sequence) -> dict[int, dict[str, float]]:
    annotated = [read_mask(path).ids for path in sequence.annotations]
    results = propagator.propagate(_frames(sequence), {0: annotated[0]})
    scores = evaluate_sequence((result.mask for result in results), annotated)
    return {key: object_statistics(value) for key, value in scores.items()}


def _frames(sequence: Sequence) -> Iterator[npt.NDArray[np.uint8]]:
    for path in sequence.frames:
        with Image.open(path) as image:
            yield np.asarray(image.convert("RGB"))
