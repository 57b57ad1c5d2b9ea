"""The training loop: a generator that yields epochs and knows no logger."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from everycause.data.batches import normalized
from everycause.data.split import Split
from everycause.inference import logits_of
from everycause.model import Classifier
from everycause.section import Section
from everycause.training.objective import FilterTerms, ObjectiveParams, accuracy, filter_terms, joint_terms
from everycause.training.optim import OptimizerParams, optimizer, schedule
from everycause.training.steps import Counterfactuals, Step, training_steps


class FitParams(Section):
    """How long and how fast."""

    epochs: int = Field(ge=1)
    """One epoch shows as many images as the training split has, counterfactuals counted."""
    batch_size: int = Field(ge=2)
    """Images per step, counterfactuals counted."""
    shift: int = Field(ge=0)
    """Largest random shift, in pixels; images are also mirrored at random."""
    optimizer: OptimizerParams


class Epoch(NamedTuple):
    """What an epoch came to."""

    number: int
    """From 1."""
    measures: dict[str, float]
    """Means of the terms over the steps, and the validation accuracy."""


class Goal(NamedTuple):
    """What is minimized, beyond plain cross-entropy."""

    weights: ObjectiveParams
    counterfactuals: Counterfactuals | None
    filters: Bool[Tensor, "classes filters"] | None


PLAIN = Goal(ObjectiveParams(lambda_augment=0.0, lambda_mc=0.0, lambda_nonmc=0.0), None, None)


class Training:
    """A classifier in training: it can go on with another goal, and its state can be kept and taken up again."""

    def __init__(self, classifier: Classifier, train: Split, validation: Split, params: FitParams, seed: int, row: str) -> None:
        self.classifier, self.train, self.validation, self.params, self.row = classifier, train, validation, params, row
        self.per_epoch = max(1, len(train) // params.batch_size)
        self.optimizer = optimizer(classifier, params.optimizer)
        self.rate = schedule(self.optimizer, params.optimizer, params.epochs * self.per_epoch)
        self.generator = torch.Generator().manual_seed(seed)
        self.epoch = 0

    def epochs(self, goal: Goal, count: int) -> Iterator[Epoch]:
        """Some more epochs; the order of the images begins anew with each call.

        Raises:
            ValueError: the loss is not finite; the sentence names row, epoch and batch.
        """
        size = min(self.params.batch_size, 2 * len(self.train))
        steps = training_steps(self.train, size, self.params.shift, goal.counterfactuals, self.generator)
        for _ in range(count):
            self.epoch += 1
            yield Epoch(self.epoch, self._epoch(islice(steps, self.per_epoch), goal))

    def _epoch(self, steps: Iterator[Step], goal: Goal) -> dict[str, float]:
        self.classifier.train()
        sums: dict[str, float] = {}
        title = f"{self.row} epoch {self.epoch}/{self.params.epochs}"
        for number, step in enumerate(tqdm(steps, total=self.per_epoch, desc=title, disable=None, leave=False), 1):
            terms = step_terms(self.classifier, step, goal)
            if not torch.isfinite(terms["loss"]):
                raise ValueError(
                    f"row {self.row}: the loss is {terms['loss'].item()} at epoch {self.epoch}, batch {number}: lower the learning rate or the weights of the terms"
                )
            self.optimizer.zero_grad(set_to_none=True)
            terms["loss"].backward()
            self.optimizer.step()
            self.rate.step()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.item()
        self.classifier.eval()
        measures = {f"train/{name}": value / self.per_epoch for name, value in sums.items()}
        return measures | {"validation/accuracy": accuracy(logits_of(self.classifier, self.validation), self.validation.labels)}

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


def fit(classifier: Classifier, train: Split, validation: Split, params: FitParams, seed: int, goal: Goal = PLAIN, row: str = "base") -> Iterator[Epoch]:
    """Train in place, epoch by epoch; the last epoch is the result, nothing is selected.

    Raises:
        ValueError: the loss is not finite; the sentence names row, epoch and batch.
    """
    return Training(classifier, train, validation, params, seed, row).epochs(goal, params.epochs)


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
        activity_terms = filter_terms(seen.activations[:count], labels, goal.filters.to(inputs.device))
    return joint_terms(logits[:count], labels, logits[count:], step.counterfactual_labels.to(inputs.device), activity_terms, goal.weights)
