"""The interface between objectives and the training loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vosnet.datasets.frames import StoredVideo
from vosnet.errors import SettingError
from vosnet.models import MaskSegmenter
from vosnet.transforms import Clip


class ObjectiveOutput(NamedTuple):
    """The loss of one batch.

    Args:
        total: what is minimized, scalar float32 with gradient.
        terms: named scalars for the log, detached.
    """

    total: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class RefreshInterval:
    """How often an objective makes its files anew, counted in epochs, steps or minutes.

    Raises:
        SettingError: none or several are given, or one is not positive.
    """

    epochs: float | None = None
    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        clocks = {"epochs": self.epochs, "steps": self.steps, "minutes": self.minutes}
        given = {name: value for name, value in clocks.items() if value is not None}
        if len(given) != 1 or min(given.values()) <= 0:
            raise SettingError(
                f"refresh_{[*given, 'epochs'][0]}",
                "exactly one of refresh_epochs, refresh_steps and refresh_minutes must be given and be "
                f"positive, got {self.epochs}, {self.steps} and {self.minutes}",
            )

    def passed(self, step: int, seconds: float, steps_per_epoch: int) -> int:
        """Whole intervals before `step` and `seconds`; a refresh is due when the number grows."""
        if self.minutes is not None:
            return int(seconds / (60 * self.minutes))
        steps = self.steps if self.steps is not None else (self.epochs or 1) * steps_per_epoch
        return int(step / steps)


@dataclass(frozen=True)
class RefreshJob:
    """One rank's part of a refresh.

    Args:
        folder: where files go; the ranks share it.
        videos: the training videos, each once, in an order that all ranks agree on.
        part: which share this rank makes: the videos `part`, `part + parts`, ...
        parts: number of ranks.
        bfloat16: whether the networks run in bfloat16, as they do in training, or in float32.
    """

    folder: Path
    videos: Sequence[StoredVideo]
    part: int = 0
    parts: int = 1
    bfloat16: bool = False

    def share(self) -> Sequence[StoredVideo]:
        """The videos of this rank."""
        return self.videos[self.part :: self.parts]


class Objective(nn.Module):
    """A loss that owns the networks it trains; `encoder` is the one that is kept after training.

    It is built from an encoder and its `ObjectiveSettings`, see `vosnet.objectives.table`.

    Some objectives learn from files, e.g. pseudo masks, that they make of the training videos with the
    networks as they are. Those state a `refresh_interval` and implement `refresh` and `use_refreshed`, which
    training calls before the first step and at each interval.

    Attributes:
        refresh_interval: how often `refresh` is due; None: never.
        graphs: methods that are compiled, each as one graph.
    """

    encoder: nn.Module
    graphs: tuple[str, ...] = ()
    refresh_interval: RefreshInterval | None = None

    @property
    def trains_encoder(self) -> bool:
        """Whether the loss reaches the encoder; if not, an earlier phase must have trained it."""
        return True

    def forward(self, clip: Clip) -> ObjectiveOutput:
        raise NotImplementedError

    def kept_segmenter(self) -> MaskSegmenter | None:
        """Networks beside the encoder that propagation needs; saved with it."""
        return None

    def after_step(self) -> None:
        """Called after every optimizer step, for networks that follow the trained one."""

    def collapse_reason(self, terms: dict[str, float]) -> str | None:
        """Reason to consider training collapsed though all numbers are finite, e.g. equal features; or None.

        Args:
            terms: the named values of one step, averaged over the ranks.
        """
        return None

    def refresh(self, job: RefreshJob) -> Iterator[str]:
        """Make this rank's part of the files and yield the name of each video that is done.

        The global random state and the networks are left as they were. Training may stop in between; what
        was written is then removed.
        """
        raise NotImplementedError

    def use_refreshed(self, folder: Path) -> None:
        """Read what `refresh` wrote there from now on; called on every rank, also after a resume."""
        raise NotImplementedError

    def compile_graphs(self, backend: str = "inductor") -> None:
        """Compile the networks and the loss in place, whole graphs only; parameter names do not change."""
        compile_methods(self, self.graphs, backend)


def compile_methods(owner: object, names: Sequence[str], backend: str) -> None:
    """Replace methods by compiled ones: each one graph for fixed shapes, an error where it cannot be one."""
    for name in names:
        method = torch.compile(getattr(owner, name), fullgraph=True, dynamic=False, backend=backend)
        setattr(owner, name, method)
