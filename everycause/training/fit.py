"""The training loop: a generator that yields epochs and knows no logger."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from tqdm import tqdm

from everycause.data.split import AugmentationParams, Split, normalized
from everycause.errors import UserError
from everycause.inference import logits_of
from everycause.models import Classifier
from everycause.params import Section
from everycause.shapes import Bool
from everycause.training.loss import FilterTerms, LossParams, accuracy, filter_terms, joint_terms
from everycause.training.steps import Counterfactuals, Step, training_steps

# MERGED DOC: """Optimizer and schedule."""
# MERGED DOC: """Which weights learn: everything, or some modules while the rest stands still."""


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


def schedule(
    optimizer: torch.optim.Optimizer, params: OptimizerParams, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate over `steps` steps."""
    if params.schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, params.learning_rate, total_steps=max(steps, 2), pct_start=params.warmup, cycle_momentum=False
    )


EVERYTHING = ["all"]


def trainable_modules(classifier: Classifier, names: list[str]) -> list[nn.Module]:
    """The modules that learn: `all`, `head`, or dotted names within the network.

    Raises:
        UserError: the network has no module of that name.
    """
    if names == EVERYTHING:
        return [classifier.network]
    modules = dict(classifier.network.named_modules())
    if unknown := [name for name in names if name != "head" and (name not in modules or not name)]:
        top = ", ".join(name for name, _ in classifier.network.named_children())
        raise UserError(
            f"trainable: '{unknown[0]}' is neither 'all' nor 'head' nor a module of {classifier.params.name} (top level: {top})"
        )
    return [classifier.network.get_classifier() if name == "head" else modules[name] for name in names]


def trainable_parameters(classifier: Classifier, names: list[str]) -> list[nn.Parameter]:
    """The parameters of the learners, each once.

    Raises:
        UserError: as learners, or there are none.
    """
    parameters = list(
        dict.fromkeys(value for module in trainable_modules(classifier, names) for value in module.parameters())
    )
    if not parameters:
        raise UserError(
            f"trainable: {', '.join(names)} of {classifier.params.name} holds no weights: name modules that do"
        )
    return parameters


@contextmanager
def training_mode(classifier: Classifier, names: list[str]) -> Iterator[None]:
    """Training mode for the learners alone: what stands still needs no gradient and keeps its statistics. Ends in evaluation mode."""
    wanted = {id(value) for value in trainable_parameters(classifier, names)}
    before = [(value, value.requires_grad) for value in classifier.parameters()]
    classifier.eval()
    for module in trainable_modules(classifier, names):
        module.train()
    for value, _ in before:
        value.requires_grad_(id(value) in wanted)
    try:
        yield
    finally:
        for value, required in before:
            value.requires_grad_(required)
        classifier.eval()


class FitParams(Section):
    """How long and how fast."""

    epochs: int = Field(ge=1)
    """One epoch shows as many images as the training split has, counterfactuals counted."""
    batch_size: int = Field(ge=2)
    """Images per step, counterfactuals counted."""
    trainable: list[str] = Field(min_length=1)
    """`all`, or the modules that learn while the rest stands still: `head` and dotted names such as layer4."""
    keep: Literal["last", "best"]
    """Which epoch is the result: the last, or the first of those with the best validation accuracy (in rounds always the last)."""
    augmentation: AugmentationParams
    optimizer: OptimizerParams


class BaseParams(FitParams):
    """How the base is trained: first its head alone, if at all, then what is trainable."""

    head_epochs: int = Field(ge=0)
    """Epochs of the head alone, before the others; 0 with a network that starts from nothing."""
    head_learning_rate: float = Field(gt=0)
    """Of these epochs."""


class Epoch(NamedTuple):
    """What an epoch came to."""

    number: int
    """From 1."""
    measures: dict[str, float]
    """Means of the terms over the steps, and the validation accuracy."""


class Goal(NamedTuple):
    """What is minimized, beyond plain cross-entropy."""

    weights: LossParams
    counterfactuals: Counterfactuals | None
    filters: Bool[Tensor, "classes filters"] | None
    """The filters whose terms are computed; with weights of 0 they are only watched."""


PLAIN = Goal(LossParams(lambda_augment=0.0, lambda_mc=0.0, lambda_nonmc=0.0, surrogate="sigmoid_threshold"), None, None)


class Training:
    """A classifier in training: it can go on with another goal, and its state can be kept and taken up again."""

    def __init__(
        self, classifier: Classifier, train: Split, validation: Split, params: FitParams, seed: int, row: str
    ) -> None:
        self.classifier, self.train, self.validation, self.params, self.row = classifier, train, validation, params, row
        self.per_epoch = max(1, len(train) // params.batch_size)
        self.optimizer = optimizer(trainable_parameters(classifier, params.trainable), params.optimizer)
        self.rate = schedule(self.optimizer, params.optimizer, params.epochs * self.per_epoch)
        self.generator = torch.Generator().manual_seed(seed)
        self.epoch = 0

    def epochs(self, goal: Goal, count: int) -> Iterator[Epoch]:
        """Some more epochs; the order of the images begins anew with each call.

        Raises:
            UserError: the loss is not finite; the sentence names row, epoch and batch.
        """
        size = min(self.params.batch_size, 2 * len(self.train))
        steps = training_steps(self.train, size, self.params.augmentation, goal.counterfactuals, self.generator)
        for _ in range(count):
            self.epoch += 1
            with training_mode(self.classifier, self.params.trainable):
                terms = self._epoch(islice(steps, self.per_epoch), goal)
            yield Epoch(
                self.epoch,
                terms
                | {
                    "validation/accuracy": accuracy(logits_of(self.classifier, self.validation), self.validation.labels)
                },
            )

    def _epoch(self, steps: Iterator[Step], goal: Goal) -> dict[str, float]:
        sums: dict[str, float] = {}
        title = f"{self.row} epoch {self.epoch}/{self.params.epochs}"
        for number, step in enumerate(tqdm(steps, total=self.per_epoch, desc=title, disable=None, leave=False), 1):
            terms = step_terms(self.classifier, step, goal)
            if not torch.isfinite(terms["loss"]):
                raise UserError(
                    f"row {self.row}: the loss is {terms['loss'].item()} at epoch {self.epoch}, batch {number}: lower the learning rate or the weights of the terms"
                )
            self.optimizer.zero_grad(set_to_none=True)
            terms["loss"].backward()
            self.optimizer.step()
            self.rate.step()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.item()
        return {f"train/{name}": value / self.per_epoch for name, value in sums.items()}

    def state(self) -> dict[str, Any]:
        """Everything that the next epoch depends on, as torch.save takes it."""
        return {
            "network": self.classifier.network.state_dict(), "optimizer": self.optimizer.state_dict(), "rate": self.rate.state_dict(),
            "generator": self.generator.get_state(), "epoch": self.epoch,
        }  # fmt: skip

    def take_up(self, state: dict[str, Any]) -> None:
        """Go on where `state` was kept."""
        self.classifier.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rate.load_state_dict(state["rate"])
        self.generator.set_state(state["generator"])
        self.epoch = state["epoch"]


def fit(
    classifier: Classifier,
    train: Split,
    validation: Split,
    params: FitParams,
    seed: int,
    goal: Goal = PLAIN,
    row: str = "base",
) -> Iterator[Epoch]:
    """Train in place, epoch by epoch; at the end the classifier is the epoch that `keep` names.

    Raises:
        UserError: the loss is not finite; the sentence names row, epoch and batch.
    """
    best, state = -1.0, None
    for epoch in Training(classifier, train, validation, params, seed, row).epochs(goal, params.epochs):
        yield epoch
        if params.keep == "best" and epoch.measures["validation/accuracy"] > best:
            best = epoch.measures["validation/accuracy"]
            state = {name: value.clone() for name, value in classifier.network.state_dict().items()}
    if state is not None:
        classifier.network.load_state_dict(state)


def fit_base(classifier: Classifier, train: Split, validation: Split, params: BaseParams, seed: int) -> Iterator[Epoch]:
    """Train the base in place: the head alone for `head_epochs`, then what is trainable.

    Raises:
        UserError: as fit.
    """
    if params.head_epochs:
        rate = params.optimizer.model_copy(update={"learning_rate": params.head_learning_rate})
        yield from fit(
            classifier,
            train,
            validation,
            params.model_copy(update={"epochs": params.head_epochs, "trainable": ["head"], "optimizer": rate}),
            seed,
        )
    for epoch in fit(classifier, train, validation, params, seed):
        yield epoch._replace(number=params.head_epochs + epoch.number)


def step_terms(classifier: Classifier, step: Step, goal: Goal) -> dict[str, Tensor]:
    """The terms of one step, from a single forward pass over originals and counterfactuals together."""
    together = torch.cat([step.images, step.counterfactuals])
    inputs = normalized(together, classifier.statistics, classifier.device)
    count = len(step.labels)
    labels = step.labels.to(inputs.device)
    activity_terms: FilterTerms | None = None
    if goal.filters is None:
        logits = classifier(inputs)
    else:
        seen = classifier.readout(inputs)
        logits = seen.logits
        activity_terms = filter_terms(
            seen.activations[:count], labels, goal.filters.to(inputs.device), goal.weights.surrogate
        )
    return joint_terms(
        logits[:count],
        labels,
        logits[count:],
        step.counterfactual_labels.to(inputs.device),
        activity_terms,
        goal.weights,
    )
