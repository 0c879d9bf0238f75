"""Optimizers with the papers' parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vosnet.recipe.schema import OptimizerSection

_NORMALIZATION = (
    nn.modules.batchnorm._BatchNorm,  # noqa: SLF001 - the only common base of BatchNorm1d, 2d and SyncBatchNorm
    nn.GroupNorm,
    nn.LayerNorm,
    nn.modules.instancenorm._InstanceNorm,  # noqa: SLF001
)


def parameter_groups(module: nn.Module, settings: OptimizerSection) -> list[dict[str, Any]]:
    """Trainable parameters as (other weights, weights of normalization layers, biases).

    DUL gives biases twice the learning rate and no weight decay, and does decay the weights of batch
    normalization; the switches are `bias_lr_factor`, `decay_bias` and `decay_norm`.

    Returns:
        Non-empty groups; `lr_factor` is what a group's learning rate is multiplied by.
    """
    weights, norms, biases = [], [], []
    seen: set[int] = set()
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if name.endswith("bias"):
                biases.append(parameter)
            elif isinstance(layer, _NORMALIZATION):
                norms.append(parameter)
            else:
                weights.append(parameter)
    groups = [
        (weights, True, 1.0),
        (norms, settings.decay_norm, 1.0),
        (biases, settings.decay_bias, settings.bias_lr_factor),
    ]
    return [
        {"params": params, "weight_decay": settings.weight_decay if decays else 0.0, "lr_factor": factor}
        for params, decays, factor in groups
        if params
    ]


def build_optimizer(module: nn.Module, settings: OptimizerSection) -> torch.optim.Optimizer:
    """The optimizer of a recipe over all trainable parameters of `module`.

    `adam` couples weight decay with the gradient as DUL does; `adamw` decouples it.
    """
    groups = parameter_groups(module, settings)
    optimizer: torch.optim.Optimizer
    if settings.name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=True)
    else:
        kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
        optimizer = kind(groups, lr=settings.lr, betas=settings.betas, fused=True)
    set_learning_rate(optimizer, settings.lr)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate to `lr` times the group's `lr_factor`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
