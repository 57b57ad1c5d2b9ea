"""The training loop: steps, and epochs.

Training is a generator of epochs that knows no logger: stages and sweeps record what it yields. All random numbers
follow the seed: order, augmentation and counterfactual images come from one generator, dropout and stochastic depth
from torch's global one, which is seeded anew for every epoch and restored afterwards.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
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
from everycause.training.objectives import Objective, Stateful
from everycause.training.optimizer import OptimizerParams, optimizer, schedule, training_mode
from everycause.training.position import Position
from everycause.training.prefetch import prefetched
from everycause.training.steps import AugmentationParams, Counterfactuals, Drawn, Order, Step, training_steps
from everycause.unfinished import Unfinished

FIRST_SCALE = 2.0**8
"""Of the loss in float16; it grows by itself. From torch's own, 2¹⁶, a short training would skip its first steps."""
APART = 2_654_435_761
"""Between the seeds of two processes: a prime near 2³² / 1.618, so that no two of them are near each other."""
EPOCHS_APART = 1_640_531_527
"""The same between two epochs: an odd number near 2³² / 1.618²."""


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
        self.position: Position | None = None
        """Where it stands within the epochs that are under way; None between calls of `epochs`."""
        self.after_step: Callable[[], None] = lambda: None
        """Called after every step, when the state can be saved."""

    @property
    def finished(self) -> int:
        """Epochs that are over."""
        return self.epoch - (self.position is not None and self.position.step > 0)

    def epochs(self, goal: Goal, count: int) -> Iterator[Epoch]:
        """Some more epochs; the order of the images begins anew with each call, unless a saved one goes on.

        Raises:
            UserError: the loss is not finite; the sentence names row, epoch and batch.
        """
        size, augmentation = min(self.params.batch_size, 2 * len(self.train)), self.params.augmentation
        if self.position is None:
            self.position = Position(Order(len(self.train), self.generator))
        at = self.position
        steps = training_steps(self.train, size, augmentation, goal.counterfactuals, self.generator, at.order)
        for left in reversed(range(count)):
            self.epoch += at.step == 0  # an epoch that goes on has its number
            mode = training_mode(self.classifier, self.params.trainable, self.params.frozen_statistics)
            with mode, self._seeded(), whole_batch_statistics():
                drawn = prefetched(steps, self.per_epoch - at.step, self.classifier.device, at.order.drawn)
                terms = self._epoch(drawn, goal)
            if not left:
                self.position = None
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
            assert self.position is not None
            # on a CPU torch takes the low 32 bits of a seed alone
            self.position.seed((self.seed + ranks.number() * APART + self.epoch * EPOCHS_APART) % 2**32, device)
            yield

    def _epoch(self, steps: Iterator[tuple[Step, Drawn]], goal: Goal) -> dict[str, float]:
        """One epoch of optimizer steps; the mean of each loss term over the steps.

        The terms are read once, at the end, so that no step waits for a GPU.
        """
        at = self.position
        assert at is not None
        title = f"{self.row} epoch {self.epoch}/{self.params.epochs}"
        hidden = ranks.without_progress()
        shown = tqdm(steps, total=self.per_epoch, initial=at.step, desc=title, disable=hidden, leave=False)
        for step, at.drawn in shown:
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
                at.terms.setdefault(name, []).append(value.detach())
            at.step += 1
            self.after_step()
        values = {name: torch.stack(some).double().cpu() for name, some in at.next_epoch().items()}
        if len(diverged := (~values["loss"].isfinite()).nonzero()):
            number = int(diverged[0, 0])
            raise UserError(
                f"row {self.row}: the loss is {float(values['loss'][number])} at epoch {self.epoch}, batch "
                f"{number + 1}: lower the learning rate or the weights of the terms"
            )
        return {f"train/{name}": float(some.sum()) / self.per_epoch for name, some in values.items()}

    def state(self, goal: Goal = PLAIN) -> dict[str, Any]:
        """Everything that the next step depends on, in a form that torch.save takes; `goal` is what is minimized."""
        return {
            "network": self.classifier.network.state_dict(),
            "average": None if self.average is None else self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "objective": goal.objective.state() if isinstance(goal.objective, Stateful) else None,
            "scaler": self.scaler.state_dict(),
            "generator": self.generator.get_state() if self.position is None else self.position.generator_state(),
            "epoch": self.epoch,
            "position": None if self.position is None else self.position.state(self.classifier.device),
        }

    def load_state(self, state: dict[str, Any], goal: Goal = PLAIN) -> None:
        """Go on from a saved state."""
        self.classifier.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if isinstance(goal.objective, Stateful):
            goal.objective.load_state(state["objective"])
        self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"].cpu())  # torch.load puts it where the network lies
        self.epoch, at = state["epoch"], state["position"]
        self.position = None if at is None else Position.restored(at, Order(len(self.train), self.generator))


def fit(
    classifier: Classifier, train: Split, validation: Split, params: FitParams, seed: int,
    goal: Goal = PLAIN, row: str = "base", unfinished: Unfinished | None = None,
) -> Iterator[Epoch]:  # fmt: skip
    """Train a classifier in place, epoch by epoch; at the end it is the epoch that `keep` names.

    With `unfinished`, a training that was killed goes on; the epochs that it had recorded come first.

    Raises:
        UserError: the loss is not finite; the sentence names row, epoch and batch.
    """
    unfinished, training = unfinished or Unfinished(), Training(classifier, train, validation, params, seed, row)
    best, result, recorded = -1.0, None, list[Epoch]()

    def keep_state() -> None:
        if unfinished.due():
            epochs = [tuple(epoch) for epoch in recorded]
            unfinished.save({"training": training.state(goal), "best": best, "result": result, "epochs": epochs})

    training.after_step = keep_state
    if (state := unfinished.load(classifier.device)) is not None:
        training.load_state(state["training"], goal)
        best, result, recorded = state["best"], state["result"], [Epoch(*epoch) for epoch in state["epochs"]]
        yield from recorded
    for epoch in training.epochs(goal, params.epochs - training.finished):
        if params.keep == "best" and epoch.measures["validation/accuracy"] > best:
            best, result = epoch.measures["validation/accuracy"], training.weights()
        recorded.append(epoch)
        keep_state()
        yield epoch
    if result is None and params.average:
        result = training.weights()
    if result is not None:
        classifier.network.load_state_dict(result)


def train_base(
    model: ModelParams, params: BaseParams, train: Split, validation: Split, seed: int, device: torch.device,
    folder: Path | None = None,
) -> tuple[Classifier, Iterator[Epoch]]:  # fmt: skip
    """A new base classifier, trained as its epochs are drawn: `head_epochs` of the head alone, then the others.

    With the folder of an unfinished artifact, a training that was killed goes on.

    Raises:
        UserError: the network does not exist; drawing epochs raises it if the loss is not finite.
    """
    torch.manual_seed(seed)  # initial weights come from torch's global generator
    classifier = new_classifier(model, train).to(device=device, memory_format=torch.channels_last)

    def epochs() -> Iterator[Epoch]:
        if params.head_epochs:
            slower = params.optimizer.model_copy(update={"learning_rate": params.head_learning_rate})
            changes = {"epochs": params.head_epochs, "trainable": ["head"], "optimizer": slower}
            alone, kept = params.model_copy(update=changes), Unfinished(folder, "head")
            yield from fit(classifier, train, validation, alone, seed, unfinished=kept)
        for epoch in fit(classifier, train, validation, params, seed, unfinished=Unfinished(folder)):
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
