"""Optimizer and schedule."""

import torch
from pydantic import Field
from torch import nn

from everycause.section import Section


class OptimizerParams(Section):
    """AdamW with a one-cycle schedule."""

    learning_rate: float = Field(gt=0)
    """At the peak of the cycle."""
    weight_decay: float = Field(ge=0)
    """Decoupled; not applied to biases and normalization."""
    warmup: float = Field(ge=0, lt=1)
    """Share of the steps that lead up to the peak."""


def optimizer(network: nn.Module, params: OptimizerParams) -> torch.optim.AdamW:
    """AdamW over all parameters."""
    decayed = [value for value in network.parameters() if value.ndim > 1]
    free = [value for value in network.parameters() if value.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": params.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=params.learning_rate)


def schedule(optimizer: torch.optim.Optimizer, params: OptimizerParams, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Up to the peak and down again along cosines, in `steps` steps."""
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, params.learning_rate, total_steps=max(steps, 2), pct_start=params.warmup, cycle_momentum=False)
