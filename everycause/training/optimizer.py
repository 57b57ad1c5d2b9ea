"""Which weights learn, and how: which parameters decay, how the rate falls from layer to layer and over the steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from pydantic import Field
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from everycause.errors import UserError
from everycause.models import Classifier
from everycause.networks import last_layers
from everycause.params import Section

EVERYTHING = ["all"]
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


def trainable_modules(classifier: Classifier, names: list[str]) -> list[nn.Module]:
    """The modules whose weights learn: `all`, `head`, or dotted names within the network.

    Raises:
        UserError: the network has no module of that name.
    """
    if names == EVERYTHING:
        return [classifier.network]
    modules = dict(classifier.network.named_modules())
    if unknown := [name for name in names if name != "head" and (name not in modules or not name)]:
        top = ", ".join(name for name, _ in classifier.network.named_children())
        raise UserError(
            f"trainable: '{unknown[0]}' is neither 'all' nor 'head' nor a module of {classifier.params.name} "
            f"(top level: {top})"
        )
    heads = last_layers(classifier.network)
    return [module for name in names for module in (heads if name == "head" else [modules[name]])]


def trainable_parameters(classifier: Classifier, names: list[str]) -> list[nn.Parameter]:
    """The parameters that learn, each once.

    Raises:
        UserError: as trainable_modules, or there are none.
    """
    modules = trainable_modules(classifier, names)
    parameters = list(dict.fromkeys(value for module in modules for value in module.parameters()))
    if not parameters:
        raise UserError(
            f"trainable: {', '.join(names)} of {classifier.params.name} holds no weights: name modules that do"
        )
    return parameters


@contextmanager
def training_mode(classifier: Classifier, names: list[str], frozen_statistics: bool = False) -> Iterator[None]:
    """Training mode within the block, evaluation mode afterwards; only trainable weights require a gradient.

    Dropout and stochastic depth are active in the whole network. Normalization that is not trainable, or all of it
    with `frozen_statistics`, keeps its running statistics, and uses them.
    """
    wanted = {id(value) for value in trainable_parameters(classifier, names)}
    learning = {id(part) for module in trainable_modules(classifier, names) for part in module.modules()}
    before = [(value, value.requires_grad) for value in classifier.parameters()]
    for module in classifier.train().modules():
        if (frozen_statistics or id(module) not in learning) and has_statistics(module):
            module.training = False
    for value, _ in before:
        value.requires_grad_(id(value) in wanted)
    try:
        yield
    finally:
        for value, required in before:
            value.requires_grad_(required)
        classifier.eval()


def has_statistics(module: nn.Module) -> bool:
    """Whether a module itself keeps running statistics of its inputs, as batch normalization does."""
    return any(name.startswith("running_") for name, _ in module.named_buffers(recurse=False))


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
