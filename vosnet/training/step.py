"""One optimizer step, and everything that must be restored to take the next one exactly."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vosnet.errors import OutOfMemoryError
from vosnet.objectives import Objective
from vosnet.recipe import Recipe
from vosnet.recipe.schema import TrainingSection
from vosnet.runtime import Ranks, is_out_of_memory, lost_rank_is_an_error, peak_memory_bytes
from vosnet.training.optimizer import build_optimizer, set_learning_rate
from vosnet.transforms import Clip, Crops, assemble_clip


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What one step did on this rank.

    Args:
        loss: mean over the micro-batches.
        terms: the objective's named values, averaged likewise.
        grad_norm: L2 norm of the gradient before clipping.
    """

    loss: float
    terms: dict[str, float]
    grad_norm: float

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are usable."""
        return bool(torch.isfinite(torch.tensor([self.loss, self.grad_norm])).all())


class OptimizerStep:
    """Takes optimizer steps; owns the objective, its optimizer and the averaged encoder.

    Args:
        objective: the loss around the encoder.
        recipe: the settings.
        ranks: this process among those that share a batch.
        device: where it computes.
    """

    def __init__(self, objective: Objective, recipe: Recipe, ranks: Ranks, device: torch.device) -> None:
        settings = recipe.training
        self.settings, self.device = settings, device
        self._color_space = recipe.encoder.color_space
        if settings.sync_batchnorm and ranks.size > 1 and device.type == "cuda":
            objective = nn.SyncBatchNorm.convert_sync_batchnorm(objective)  # type: ignore[no-untyped-call]
        layout = torch.channels_last if settings.channels_last else torch.preserve_format
        self.objective: Objective = objective.to(device).to(memory_format=layout)  # type: ignore[call-overload]
        self.objective.train()
        self.parameters = [p for p in self.objective.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(self.objective, recipe.optimizer)
        self.average = _averaged(self.objective.encoder, settings.ema_decay)
        self._buffers = [buffer for buffer in self.objective.buffers() if buffer.numel()]
        self._buffers_before = [torch.empty_like(buffer) for buffer in self._buffers]
        if settings.compile:
            self.objective.compile_graphs()
        self._module: nn.Module = self.objective
        if ranks.size > 1:
            device_ids = [device] if device.type == "cuda" else None
            self._module = DistributedDataParallel(self.objective, device_ids=device_ids)

    @property
    def encoder(self) -> nn.Module:
        """The encoder to keep: the averaged one when the recipe asks for it."""
        if self.average is None:
            return self.objective.encoder
        averaged: nn.Module = self.average.module
        return averaged

    def compute(self, crops: Crops, lr: float) -> StepResult:
        """Loss and gradient of one batch; `apply` or `discard` must follow.

        Args:
            crops: this rank's share of the batch.
            lr: learning rate of the step.

        Raises:
            OutOfMemoryError: with the peak and ways out (E502).
            VosnetError: another rank is gone (E109).
        """
        set_learning_rate(self.optimizer, lr)
        _copy(self._buffers, self._buffers_before)
        self.optimizer.zero_grad(set_to_none=True)
        outputs = []
        with _explained_out_of_memory(self.settings, self.device), lost_rank_is_an_error():
            parts = self._parts(assemble_clip(crops, self.device, self._color_space))
            for index, part in enumerate(parts):
                with self._sync_only(last=index == len(parts) - 1):
                    outputs.append(self._backward(part, 1 / len(parts)))
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            grad_norm = nn.utils.get_total_norm(gradients)
            stacked = torch.stack([torch.stack([total, *terms.values()]) for total, terms in outputs]).mean(0)
            loss, norm, *values = torch.stack([stacked[0], grad_norm.float(), *stacked[1:]]).tolist()
        return StepResult(loss, dict(zip(outputs[0][1], values, strict=True)), norm)

    def apply(self, grad_norm: float) -> None:
        """Take the step that `compute` prepared, clipping the gradient when the recipe asks for it."""
        limit = self.settings.clip_grad_norm
        if limit is not None and grad_norm > limit:
            torch._foreach_mul_([p.grad for p in self.parameters if p.grad is not None], limit / grad_norm)
        self.optimizer.step()
        self.objective.after_step()
        if self.average is not None:
            self.average.update_parameters(self.objective.encoder)

    def discard(self) -> None:
        """Forget the step: parameters stay, and running statistics go back to what they were."""
        self.optimizer.zero_grad(set_to_none=True)
        _copy(self._buffers_before, self._buffers)

    def continue_from(self, before: OptimizerStep, *, keep_optimizer: bool) -> None:
        """Take over what an earlier phase has learned: tensors of the same name and shape.

        Args:
            before: the earlier phase's.
            keep_optimizer: also its optimizer's state of those parameters.
        """
        own, learned = self.objective.state_dict(), before.objective.state_dict()
        fitting = {k: v for k, v in learned.items() if k in own and own[k].shape == v.shape}
        self.objective.load_state_dict(fitting, strict=False)
        if self.average is not None and before.average is not None:
            self.average.load_state_dict(before.average.state_dict())
        if keep_optimizer:
            parameters = dict(self.objective.named_parameters())
            for name, parameter in before.objective.named_parameters():
                if name in fitting and parameter in before.optimizer.state:
                    state = before.optimizer.state[parameter]
                    self.optimizer.state[parameters[name]] = copy.deepcopy(state)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values from which `load` continues bit for bit."""
        return {
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], self.device)

    def _parts(self, clip: Clip) -> list[Clip]:
        size = len(clip) // self.settings.accumulate
        return [clip.part(i * size, (i + 1) * size) for i in range(self.settings.accumulate)]

    def _backward(self, clip: Clip, scale: float) -> tuple[Tensor, dict[str, Tensor]]:
        bf16 = self.settings.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            output = self._module(clip)
        (output.total * scale).backward()
        terms = {name: value.float() for name, value in output.terms.items()}
        return output.total.detach().float(), terms

    def _sync_only(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are summed over the ranks once per step, with the last micro-batch."""
        if last or not isinstance(self._module, DistributedDataParallel):
            return contextlib.nullcontext()
        no_sync: contextlib.AbstractContextManager[None] = self._module.no_sync()
        return no_sync


@torch.no_grad()
def _copy(sources: list[Tensor], targets: list[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)


def _averaged(encoder: nn.Module, decay: float | None) -> AveragedModel | None:
    if decay is None:
        return None
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(encoder, multi_avg_fn=average, use_buffers=True)


@contextlib.contextmanager
def _explained_out_of_memory(settings: TrainingSection, device: torch.device) -> Iterator[None]:
    """Adds the measured peak and the ways out, in order of effect, to an out-of-memory error (E502)."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        peak = peak_memory_bytes(device)
        used = "" if peak is None else f"; the peak was {peak / 1e9:.1f} GB"
        ways = [f"training.accumulate={2 * settings.accumulate} (halves it; half the anchors per loss)"]
        if settings.precision == "float32":
            ways.append("training.precision=bfloat16 (about 0.6 of it)")
        ways += ["a smaller data.crop_size (by its square)", "encoder.layer=layer3 (a smaller network)"]
        hint = f"In order of effect: {'; '.join(ways[:3])}."
        message = f"out of memory on {device} in a training step{used}"
        raise OutOfMemoryError("E502", message, hint) from error
