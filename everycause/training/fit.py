"""The training loop: a generator that yields epochs and knows no logger."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

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
from everycause.training.counterfactual import Counterfactuals, Step, training_steps
from everycause.training.objective import FilterTerms, ObjectiveParams, accuracy, filter_terms, joint_terms
from everycause.training.optim import OptimizerParams, optimizer, schedule


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


def fit(classifier: Classifier, train: Split, validation: Split, params: FitParams, seed: int, goal: Goal = PLAIN, row: str = "base") -> Iterator[Epoch]:
    """Train in place, epoch by epoch; the last epoch is the result, nothing is selected.

    Raises:
        ValueError: the loss is not finite; the sentence names row, epoch and batch.
    """
    per_epoch = max(1, len(train) // params.batch_size)
    optimization = optimizer(classifier, params.optimizer)
    rate = schedule(optimization, params.optimizer, params.epochs * per_epoch)
    generator = torch.Generator().manual_seed(seed)
    steps = training_steps(train, min(params.batch_size, 2 * len(train)), params.shift, goal.counterfactuals, generator)
    for number in range(1, params.epochs + 1):
        classifier.train()
        sums: dict[str, float] = {}
        progress = tqdm(islice(steps, per_epoch), total=per_epoch, desc=f"{row} epoch {number}/{params.epochs}", disable=None, leave=False)
        for batch_number, step in enumerate(progress, 1):
            terms = step_terms(classifier, step, goal)
            if not torch.isfinite(terms["loss"]):
                raise ValueError(
                    f"row {row}: the loss is {terms['loss'].item()} at epoch {number}, batch {batch_number}: lower the learning rate or the weights of the terms"
                )
            optimization.zero_grad(set_to_none=True)
            terms["loss"].backward()
            optimization.step()
            rate.step()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.item()
        classifier.eval()
        measures = {f"train/{name}": value / per_epoch for name, value in sums.items()}
        measures["validation/accuracy"] = accuracy(logits_of(classifier, validation), validation.labels)
        yield Epoch(number, measures)


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
