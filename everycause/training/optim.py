"""Optimizer and schedule."""

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from everycause.section import Section

MOMENTUM = 0.9
"""Of stochastic gradient descent, as in both papers."""


class OptimizerParams(Section):
    """How the weights move."""

    name: Literal["adamw", "sgd"]
    """AdamW, or stochastic gradient descent with momentum 0.9."""
    schedule: Literal["one_cycle", "constant"]
    """Up to the peak and down again along cosines, or the same rate throughout."""
    learning_rate: float = Field(gt=0)
    """At the peak."""
    weight_decay: float = Field(ge=0)
    """Not applied to biases and normalization; decoupled with AdamW."""
    warmup: float = Field(ge=0, lt=1)
    """Share of the steps that lead up to the peak; a constant schedule has none."""


def optimizer(parameters: Iterable[nn.Parameter], params: OptimizerParams) -> torch.optim.Optimizer:
    """An optimizer of some parameters."""
    parameters = list(parameters)
    decayed = [value for value in parameters if value.ndim > 1]
    free = [value for value in parameters if value.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": params.weight_decay}, {"params": free, "weight_decay": 0.0}]
    if params.name == "sgd":
        return torch.optim.SGD(groups, lr=params.learning_rate, momentum=MOMENTUM)
    return torch.optim.AdamW(groups, lr=params.learning_rate)


def schedule(optimizer: torch.optim.Optimizer, params: OptimizerParams, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate over `steps` steps."""
    if params.schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, params.learning_rate, total_steps=max(steps, 2), pct_start=params.warmup, cycle_momentum=False)
