"""Optimizer and learning rate: which parameters decay, how the rate falls from layer to layer and over the steps."""

from typing import Literal

import torch
from pydantic import Field
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from everycause.params import Section

MOMENTUM = 0.9
"""Momentum of stochastic gradient descent, as in both papers."""


class OptimizerParams(Section):
    """Optimizer and learning rate schedule."""

    name: Literal["adamw", "sgd"]
    """AdamW, or stochastic gradient descent with momentum 0.9."""
    schedule: Literal["one_cycle", "constant"]
    """Up to the peak and down again along cosines, or the same learning rate throughout."""
    learning_rate: float = Field(gt=0, le=1000)
    """Learning rate at the peak."""
    weight_decay: float = Field(ge=0, le=1000)
    """Weight decay, decoupled with AdamW. Biases, normalization and what timm names for a network are not decayed."""
    warmup: float = Field(ge=0, lt=1)
    """Share of the steps that lead up to the peak; ignored with a constant schedule."""
    layer_decay: float = Field(gt=0, le=1)
    """Factor of the learning rate from each layer to the one below it, as timm counts layers; 1: the same for all."""


def optimizer(network: nn.Module, params: OptimizerParams) -> torch.optim.Optimizer:
    """An optimizer of the parameters that require a gradient; weight decay and layer decay are those of timm."""
    spared = undecayed(network)
    if params.layer_decay == 1:
        groups = param_groups_weight_decay(network, params.weight_decay, no_weight_decay_list=spared)
    else:
        groups = param_groups_layer_decay(
            network, params.weight_decay, no_weight_decay_list=spared, layer_decay=params.layer_decay
        )
        for group in groups:
            group["lr"] = params.learning_rate * group["lr_scale"]
    # one kernel for all weights of a GPU; on a CPU torch's own choice, whose bytes are promised
    fused = {"fused": True} if next(network.parameters()).is_cuda else {}
    if params.name == "sgd":
        return torch.optim.SGD(groups, lr=params.learning_rate, momentum=MOMENTUM, **fused)
    return torch.optim.AdamW(groups, lr=params.learning_rate, **fused)


def undecayed(network: nn.Module) -> set[str]:
    """Parameters that timm never decays, such as position embeddings, by their names within the network."""
    names = set()
    for prefix, module in network.named_modules():
        if hasattr(module, "no_weight_decay"):
            names |= {f"{prefix}.{name}" if prefix else name for name in module.no_weight_decay()}
    return names


def schedule(
    optimizer: torch.optim.Optimizer, params: OptimizerParams, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate over `steps` steps."""
    if params.schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    total, warmup = max(steps, 2), params.warmup
    if warmup * total == 1.0:
        warmup *= 1 - 1e-9  # PyTorch divides by the length of the warm-up less one step: 0 for a warm-up of one step
    peaks = [params.learning_rate * group.get("lr_scale", 1.0) for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peaks, total_steps=total, pct_start=warmup, cycle_momentum=False
    )
