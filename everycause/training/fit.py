"""The training loop: which weights learn, and epochs.

Training is a generator of epochs that knows no logger: stages and sweeps record what it yields. All random numbers
follow the seed: order, augmentation and counterfactual images come from one generator, dropout and stochastic depth
from torch's global one, which is seeded anew for every epoch and restored afterwards.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from everycause import ranks
from everycause.data.images import normalized
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.inference import logits_divided
from everycause.models import Classifier, ModelParams, new_classifier
from everycause.networks import last_layers
from everycause.params import Section
from everycause.precision import Precision, autocast
from everycause.shapes import Bool
from everycause.training.division import (
    all_rows,
    average_gradients,
    check_divisible,
    own_rows,
    whole_batch_statistics,
)
from everycause.training.loss import PLAIN_LOSS, FilterTerms, LossParams, accuracy, filter_terms, joint_terms
from everycause.training.objectives import Objective
from everycause.training.optimizer import OptimizerParams, optimizer, schedule
from everycause.training.prefetch import prefetched
from everycause.training.steps import AugmentationParams, Counterfactuals, Step, training_steps

EVERYTHING = ["all"]
FIRST_SCALE = 2.0**8
"""Of the loss in float16; it grows by itself. From torch's own, 2¹⁶, a short training would skip its first steps."""
APART = 2_654_435_761
"""Between the seeds of two processes: a prime near 2³² / 1.618, so that no two of them are near each other."""


class FitParams(Section):
    """How long and how fast a network is trained."""

    epochs: int = Field(ge=1, le=100_000)
    """Epochs. One epoch shows as many images as the training split has, counterfactual images counted."""
    batch_size: int = Field(ge=2, le=100_000)
    """Images per step, counterfactual images counted."""
    trainable: list[str] = Field(min_length=1)
    """`all`, or the modules whose weights learn: `head` and dotted names such as layer4."""
    keep: Literal["last", "best"]
    """Which epoch is the result: the last, or the first of those with the best validation accuracy (in rounds always
    the last)."""
    label_smoothing: float = Field(ge=0, lt=1)
    """Probability that the labels of training images spread evenly over all classes."""
    average: float = Field(ge=0, lt=1)
    """Decay per step of an exponential moving average of the weights, which then is the result; 0: none. Rows with
    rounds ignore it."""
    frozen_statistics: bool
    """Whether batch normalization uses, and keeps, the statistics that the network came with."""
    precision: Precision
    """Of the forward and backward passes; weights and loss stay float32. With float16 the loss is scaled."""
    augmentation: AugmentationParams
    """Random changes of training images."""
    optimizer: OptimizerParams
    """Optimizer and learning rate schedule."""


class BaseParams(FitParams):
    """How the base is trained: first its head alone, if at all, then everything that is trainable."""

    head_epochs: int = Field(ge=0, le=100_000)
    """Epochs of the head alone, before the others; 0 for a network without pretrained weights."""
    head_learning_rate: float = Field(gt=0, le=1000)
    """Learning rate of these epochs at the peak."""


class Epoch(NamedTuple):
    """The measures of one epoch."""

    number: int
    """From 1; 0 for measures of the base before any training."""
    measures: dict[str, float]
    """Means of the loss terms over the steps, and the validation accuracy."""


class Goal(NamedTuple):
    """What training minimizes, beyond plain cross-entropy."""

    weights: LossParams
    """The weights of the loss terms."""
    counterfactuals: Counterfactuals | None
    """Counterfactual images that are shown beside the originals."""
    filters: Bool[Tensor, "classes filters"] | None
    """The filters whose loss terms are computed; with weights of 0 the terms are only recorded."""
    objective: Objective | None = None
    """What is minimized in place of the joint loss."""


PLAIN = Goal(PLAIN_LOSS, None, None)


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


class Training:
    """A classifier in training. It can go on with another goal, and its state can be saved and loaded."""

    def __init__(
        self, classifier: Classifier, train: Split, validation: Split, params: FitParams, seed: int, row: str
    ) -> None:
        self.classifier, self.train, self.validation, self.params, self.row = classifier, train, validation, params, row
        self.seed = seed
        self.per_epoch = max(1, len(train) // params.batch_size)
        check_divisible(params.batch_size)
        with training_mode(classifier, params.trainable):  # so that the optimizer takes trainable weights alone
            self.optimizer = optimizer(classifier.network, params.optimizer)
        self.schedule = schedule(self.optimizer, params.optimizer, params.epochs * self.per_epoch)
        scaled = params.precision == "float16"
        self.scaler = torch.amp.GradScaler(classifier.device.type, init_scale=FIRST_SCALE, enabled=scaled)
        self.generator = torch.Generator().manual_seed(seed)
        self.epoch = 0
        self.average = ModelEmaV3(classifier.network, params.average) if params.average else None

    def epochs(self, goal: Goal, count: int) -> Iterator[Epoch]:
        """Some more epochs; the order of the images begins anew with each call.

        Raises:
            UserError: the loss is not finite; the sentence names row, epoch and batch.
        """
        size = min(self.params.batch_size, 2 * len(self.train))
        steps = training_steps(self.train, size, self.params.augmentation, goal.counterfactuals, self.generator)
        for _ in range(count):
            self.epoch += 1
            mode = training_mode(self.classifier, self.params.trainable, self.params.frozen_statistics)
            with mode, self._seeded(), whole_batch_statistics():
                terms = self._epoch(prefetched(steps, self.per_epoch, self.classifier.device), goal)
            logits = logits_divided(self.classifier, self.validation, self._result)
            reached = accuracy(logits, self.validation.labels)
            yield Epoch(self.epoch, terms | {"validation/accuracy": reached})

    @property
    def _result(self) -> nn.Module:
        """The network whose weights are the result."""
        return self.classifier.network if self.average is None else self.average.module

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights that are the result of the epochs so far: their average, where one is kept."""
        return {name: value.clone() for name, value in self._result.state_dict().items()}

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Seed torch's global generators, which dropout draws from, by seed and epoch; restore them afterwards.

        So an epoch depends neither on what ran before in the process nor on whether the run was killed and went on.
        Each of several processes draws other numbers for its images.
        """
        device = self.classifier.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            own = (self.seed + ranks.number() * APART) % 2**32
            torch.manual_seed(self.epoch * 2**32 + own)
            yield

    def _epoch(self, steps: Iterator[Step], goal: Goal) -> dict[str, float]:
        """One epoch of optimizer steps; the mean of each loss term over the steps.

        The terms are read once, at the end, so that no step waits for a GPU.
        """
        seen: dict[str, list[Tensor]] = {}
        title = f"{self.row} epoch {self.epoch}/{self.params.epochs}"
        for step in tqdm(steps, total=self.per_epoch, desc=title, disable=ranks.without_progress(), leave=False):
            with autocast(self.classifier.device, self.params.precision):
                terms = step_terms(self.classifier, step, goal, self.params.label_smoothing)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(terms["loss"]).backward()
            average_gradients(self.optimizer)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.schedule.step()
            if self.average is not None:
                self.average.update(self.classifier.network)
            for name, value in terms.items():
                seen.setdefault(name, []).append(value.detach())
        values = {name: torch.stack(some).double().cpu() for name, some in seen.items()}
        if len(diverged := (~values["loss"].isfinite()).nonzero()):
            number = int(diverged[0, 0])
            raise UserError(
                f"row {self.row}: the loss is {float(values['loss'][number])} at epoch {self.epoch}, batch "
                f"{number + 1}: lower the learning rate or the weights of the terms"
            )
        return {f"train/{name}": float(some.sum()) / self.per_epoch for name, some in values.items()}

    def state(self) -> dict[str, Any]:
        """Everything that the next epoch depends on, in a form that torch.save takes."""
        return {
            "network": self.classifier.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.classifier.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"].cpu())  # torch.load puts it where the network lies
        self.epoch = state["epoch"]


def fit(
    classifier: Classifier, train: Split, validation: Split, params: FitParams, seed: int,
    goal: Goal = PLAIN, row: str = "base",
) -> Iterator[Epoch]:  # fmt: skip
    """Train a classifier in place, epoch by epoch; at the end it is the epoch that `keep` names.

    Raises:
        UserError: the loss is not finite; the sentence names row, epoch and batch.
    """
    best, state = -1.0, None
    training = Training(classifier, train, validation, params, seed, row)
    for epoch in training.epochs(goal, params.epochs):
        yield epoch
        if params.keep == "best" and epoch.measures["validation/accuracy"] > best:
            best, state = epoch.measures["validation/accuracy"], training.weights()
    if state is None and params.average:
        state = training.weights()
    if state is not None:
        classifier.network.load_state_dict(state)


def train_base(
    model: ModelParams, params: BaseParams, train: Split, validation: Split, seed: int, device: torch.device
) -> tuple[Classifier, Iterator[Epoch]]:
    """A new base classifier, trained as its epochs are drawn: `head_epochs` of the head alone, then the others.

    Raises:
        UserError: the network does not exist; drawing epochs raises it if the loss is not finite.
    """
    torch.manual_seed(seed)  # initial weights come from torch's global generator
    classifier = new_classifier(model, train).to(device=device, memory_format=torch.channels_last)

    def epochs() -> Iterator[Epoch]:
        if params.head_epochs:
            slower = params.optimizer.model_copy(update={"learning_rate": params.head_learning_rate})
            changes = {"epochs": params.head_epochs, "trainable": ["head"], "optimizer": slower}
            yield from fit(classifier, train, validation, params.model_copy(update=changes), seed)
        for epoch in fit(classifier, train, validation, params, seed):
            yield epoch._replace(number=params.head_epochs + epoch.number)

    return classifier, epochs()


def step_terms(classifier: Classifier, step: Step, goal: Goal, label_smoothing: float = 0.0) -> dict[str, Tensor]:
    """The loss terms of one step, from a single forward pass over originals and counterfactual images together."""
    entropy = partial(cross_entropy, label_smoothing=label_smoothing)
    together = torch.cat([step.images, step.counterfactuals])
    inputs = normalized(together, classifier.statistics, classifier.device)
    if goal.objective is not None:
        return goal.objective.terms(classifier, inputs, step, entropy)
    count, labels = len(step.labels), step.labels.to(inputs.device)
    activity_terms: FilterTerms | None = None
    if goal.filters is None:
        logits = all_rows(classifier(own_rows(inputs)), len(inputs))
    else:
        seen, filters = classifier.readout(own_rows(inputs)), goal.filters.to(inputs.device)
        logits, activations = all_rows(seen.logits, len(inputs)), all_rows(seen.activations, len(inputs))[:count]
        activity_terms = filter_terms(activations, labels, filters, goal.weights.surrogate)
    other_labels = step.counterfactual_labels.to(inputs.device)
    return joint_terms(logits[:count], labels, logits[count:], other_labels, activity_terms, goal.weights, entropy)
