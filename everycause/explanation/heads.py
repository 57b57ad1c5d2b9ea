"""Counterfactual explanation heads: the filters that an image needs in order to be a class, and those that it lacks.

One affine map per class on the pooled activations a of the frozen classifier. Minimum correct (MC), minimum incorrect (MI):

    z = sigmoid(U_c a + u_c),  M = z where z > ½ else 0,  a' = a · M
    L = CE(head(a'), c) + λ · 0.001 · Σ|M| − 0.001 · Σ logit_c      (sums over the batch and the filters)

    v = relu(V_c a + v_c),  a' = a + v,  L = CE(head(a'), c) + 0.001 · Σ|v|

The classifier is frozen, so its activations are computed once and the heads of all classes are trained together. Trained step
by step, one head after the other, the weights would be the same.

Source: Tariq, Zia, Ghafoor, Knowledge-Based Systems 257 (2022), arXiv 2501.06831; used by arXiv 2501.11087.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import linear
from tqdm import tqdm

from everycause.errors import UserError
from everycause.params import Section
from everycause.shapes import Bool, Float, Int64

# MERGED DOC: """Gradient descent with momentum on many affine maps at once: the same iterates as step by step, with few passes over the weights.
#
# Every map sees a handful of images per step, so its gradient has a low rank, and reading and writing all weights, their
# gradients and their velocities in each step costs far more than the arithmetic. Here the weights stay as they are for a block
# of steps; what the steps of a block do to each other passes through the images' inner products, a few numbers, and the block
# is applied to the weights at its end. With velocity V, gradient G, rate η and momentum μ, at step t of a block
#
#     V_t = μ^t V_0 + Σ_{s<t} μ^{t−1−s} G_s,    W_t = W_0 − η [ (μ + … + μ^t) V_0 + Σ_{s<t} (1 + … + μ^{t−1−s}) G_s ]
#
# which is torch.optim.SGD, rearranged. Source: ours; a test holds it against the optimizer.
# """


MOMENTUM = 0.9


def series(steps: float | Tensor) -> float | Tensor:
    """1 + μ + … + μ^{steps−1}."""
    return (1 - MOMENTUM**steps) / (1 - MOMENTUM)


@dataclass
class Descent:
    """Affine maps on their way down. The last input is the constant 1, so that the last column is the bias."""

    weight: Float[Tensor, "maps rows inputs"]
    velocity: Float[Tensor, "maps rows inputs"]
    rate: float

    @classmethod
    def begin(cls, weight: Float[Tensor, "maps rows inputs"], rate: float) -> "Descent":
        """At rest."""
        return cls(weight.clone(), torch.zeros_like(weight), rate)

    def block(self, inputs: Sequence[Float[Tensor, "_ _ inputs"]], slope: Callable[[int, Tensor], Tensor]) -> None:
        """Some steps. `inputs` holds the images of each, for all maps together (first size 1) or for each map its own.

        `slope` gives the derivative of a step's loss with respect to what the maps say of its images, maps × images × rows.

        Raises:
            FloatingPointError: a slope is not finite; its argument is the number of the step.
        """
        device, count = self.weight.device, len(self.weight)
        sizes = [one.shape[1] for one in inputs]
        step_of = torch.arange(len(sizes), dtype=torch.float64, device=device).repeat_interleave(
            torch.tensor(sizes, device=device)
        )
        together = torch.cat(list(inputs), dim=1)
        shared, products = together.expand(count, -1, -1), together @ together.transpose(1, 2)
        still, drift = shared.bmm(self.weight.transpose(1, 2)), shared.bmm(self.velocity.transpose(1, 2))
        gradients, begin = torch.empty_like(still), 0
        for step, size in enumerate(sizes):
            rows = slice(begin, begin + size)
            said = still[:, rows]
            if step:
                said = said - self.rate * MOMENTUM * series(step) * drift[:, rows]
                earlier = products[:, rows, :begin] * (self.rate * series(step - step_of[:begin]).to(products))
                said = torch.baddbmm(said, earlier.expand(count, -1, -1), gradients[:, :begin], alpha=-1)
            gradients[:, rows] = slope(step, said)
            begin += size
        if not bool(gradients.sum().isfinite()) and bool(
            (wrong := ~gradients.isfinite()).any()
        ):  # the sum first: one pass
            raise FloatingPointError(int(step_of[wrong.any(dim=2).any(dim=0)][0]))
        self._apply(gradients, together, len(sizes) - step_of, len(sizes))

    def _apply(self, gradients: Tensor, together: Tensor, left: Tensor, steps: int) -> None:
        """The end of a block of steps; `left` is the number of steps from each image to the end."""
        count, turned = len(self.weight), gradients.transpose(1, 2)
        self.weight.add_(self.velocity, alpha=-self.rate * MOMENTUM * series(steps))
        moved = together * series(left).to(together)[:, None]
        self.weight.baddbmm_(turned, moved.expand(count, -1, -1), alpha=-self.rate)
        pushed = together * (MOMENTUM ** (left - 1)).to(together)[:, None]
        self.velocity.baddbmm_(turned, pushed.expand(count, -1, -1), beta=MOMENTUM**steps)


PENALTY = 1e-3
"""The papers' factor of both the sparsity and the logit term."""
BLOCK = 8
"""Steps between two passes over the weights: beyond 8 the matrix products are not faster (measured)."""
Variant = Literal["all_classes", "only_class", "singular", "straight_through"]
"""Whose images push a head: all (the paper), its class's own; one head for all classes, pushed to each image's label; or the
paper's with a gradient that passes below the threshold."""


class HeadParams(Section):
    """How the heads are trained. The paper: λ = 2, rate 1e-3, 10 epochs, batches of 16."""

    sparsity: float = Field(ge=0)
    """λ: the weight of the number of filters kept."""
    learning_rate: float = Field(gt=0)
    """Of stochastic gradient descent with momentum 0.9."""
    epochs: int = Field(ge=1)
    """Passes over the activations."""
    batch_size: int = Field(ge=1)
    """Images per step; each is pushed towards every class."""


class LastLayer(NamedTuple):
    """The classifier's last layer."""

    weight: Float[Tensor, "classes filters"]
    bias: Float[Tensor, "classes"]

    def to(self, device: torch.device | str) -> "LastLayer":
        """The same head elsewhere."""
        return LastLayer(self.weight.to(device), self.bias.to(device))

    def predictions(self, activations: Float[Tensor, "batch filters"]) -> Int64[Tensor, "batch"]:
        """The class of pooled activations."""
        return linear(activations, self.weight, self.bias).argmax(dim=1)


@dataclass(frozen=True)
class FilterHeads:
    """The trained maps: one for each class, or a single one for all."""

    weight: Float[Tensor, "heads filters filters"]
    bias: Float[Tensor, "heads filters"]

    def said(
        self, activations: Float[Tensor, "batch filters"], classes: Int64[Tensor, "batch"]
    ) -> Float[Tensor, "batch filters"]:
        """What the map of each image's class says of it, before any gate."""
        result = torch.empty(len(activations), self.bias.shape[1])
        heads = classes if len(self.weight) > 1 else torch.zeros_like(classes)
        for (
            head
        ) in heads.unique().tolist():  # one weight at a time: weights gathered image by image would not fit into memory
            rows = heads == head
            result[rows] = linear(activations[rows], self.weight[head], self.bias[head])
        return result

    def minimum_correct(
        self, activations: Float[Tensor, "batch filters"], classes: Int64[Tensor, "batch"]
    ) -> Bool[Tensor, "batch filters"]:
        """The filters that each image needs in order to be the given class (heads trained as MC): gates above one half."""
        return self.said(activations, classes) > 0

    def minimum_incorrect(
        self, activations: Float[Tensor, "batch filters"], classes: Int64[Tensor, "batch"]
    ) -> Float[Tensor, "batch filters"]:
        """What each image's activations lack in order to be the given class (heads trained as MI), in units of activation."""
        return self.said(activations, classes).relu()


class StepBatch(NamedTuple):
    """One step's images and where each is pushed."""

    activations: Float[Tensor, "_ images filters"]
    """For all maps together (first size 1), or each map's own."""
    target: Int64[Tensor, "maps images"]


LossGradient = Callable[[StepBatch, LastLayer, Tensor], Tensor]


def train_heads(
    activations: Float[Tensor, "images filters"],
    labels: Int64[Tensor, "images"],
    head: LastLayer,
    params: HeadParams,
    seed: int,
    variant: Variant = "all_classes",
) -> FilterHeads:
    """Minimum-correct heads of a linear classifier head, trained where the activations lie, returned on the CPU.

    Raises:
        UserError: the loss is not finite.
    """
    through = variant == "straight_through"
    return _trained(
        activations,
        labels,
        head,
        params,
        seed,
        partial(minimum_correct_gradient, sparsity=params.sparsity, straight_through=through),
        variant,
    )


def train_incorrect_heads(
    activations: Float[Tensor, "images filters"],
    labels: Int64[Tensor, "images"],
    head: LastLayer,
    params: HeadParams,
    seed: int,
) -> FilterHeads:
    """Minimum-incorrect heads, likewise.

    Raises:
        UserError: the loss is not finite.
    """
    return _trained(activations, labels, head, params, seed, minimum_incorrect_gradient, "all_classes")


def minimum_correct_gradient(
    pull: StepBatch,
    head: LastLayer,
    said: Float[Tensor, "maps images filters"],
    sparsity: float,
    straight_through: bool,
) -> Tensor:
    """The derivative of the MC loss with respect to what the maps say."""
    gates = said.sigmoid()
    kept = gates.masked_fill(said <= 0, 0)
    onto_logits = _logit_gradient(linear(pull.activations * kept, head.weight, head.bias), pull.target, PENALTY)
    onto_mask = onto_logits.matmul(head.weight).mul_(pull.activations).add_(sparsity * PENALTY)
    return onto_mask.mul_(gates if straight_through else kept).mul_(1 - gates)


def minimum_incorrect_gradient(pull: StepBatch, head: LastLayer, said: Float[Tensor, "maps images filters"]) -> Tensor:
    """The derivative of the MI loss with respect to what the maps say."""
    onto_logits = _logit_gradient(linear(pull.activations + said.relu(), head.weight, head.bias), pull.target, 0.0)
    return (onto_logits.matmul(head.weight) + PENALTY) * (said > 0)


def _logit_gradient(
    logits: Float[Tensor, "maps images classes"], target: Int64[Tensor, "maps images"], reward: float
) -> Tensor:
    """The derivative of mean cross-entropy minus `reward` times the target's logits."""
    slope = logits.softmax(dim=2).div_(logits.shape[1])
    wanted = target[:, :, None]
    return slope.scatter_add_(
        2, wanted, torch.full(wanted.shape, -1 / logits.shape[1] - reward, dtype=slope.dtype, device=slope.device)
    )


def _trained(
    activations: Float[Tensor, "images filters"],
    labels: Int64[Tensor, "images"],
    head: LastLayer,
    params: HeadParams,
    seed: int,
    slope: LossGradient,
    variant: Variant,
) -> FilterHeads:
    """All maps down a slope."""
    generator, classes = torch.Generator().manual_seed(seed), len(head.weight)
    count, filters = 1 if variant == "singular" else classes, activations.shape[1]
    bound = filters**-0.5
    weight = torch.empty(count, filters, filters + 1).uniform_(-bound, bound, generator=generator).to(activations)
    inputs = torch.cat([activations, torch.ones_like(activations[:, :1])], dim=1)
    descent, labels = Descent.begin(weight, params.learning_rate), labels.to(activations.device)
    order = _orders(labels, classes, params, variant, generator)
    for epoch, batches in enumerate(
        tqdm(order, total=params.epochs, desc=f"training heads ({variant})", disable=None, leave=False), 1
    ):
        for first in range(0, len(batches), BLOCK):
            block = batches[first : first + BLOCK]
            pulls = [StepBatch(activations[index], _targets(labels[index], classes, variant)) for index in block]
            try:
                descent.block(
                    [inputs[index] for index in block], lambda step, said, pulls=pulls: slope(pulls[step], head, said)
                )
            except FloatingPointError as error:
                number = first + error.args[0] + 1
                raise UserError(
                    f"the loss of the filter heads is not finite at epoch {epoch}, batch {number}: lower filters.heads.learning_rate"
                ) from error
    return FilterHeads(descent.weight[:, :, :-1].cpu().contiguous(), descent.weight[:, :, -1].cpu().contiguous())


def _orders(
    labels: Int64[Tensor, "images"], classes: int, params: HeadParams, variant: Variant, generator: torch.Generator
) -> Iterator[list[Tensor]]:
    """The images of each step, epoch by epoch: 1 × images for all maps together, maps × images where each has its own.

    A class's own images come around again and again, so that all heads take the same number of steps.
    """
    if variant != "only_class":
        for _ in range(params.epochs):
            yield [
                index[None].to(labels.device)
                for index in torch.randperm(len(labels), generator=generator).split(params.batch_size)
            ]
        return
    members = [(labels == label).nonzero()[:, 0].cpu() for label in range(classes)]
    if empty := [label for label, own in enumerate(members) if len(own) == 0]:
        raise UserError(
            f"filters: the variant 'only_class' needs training images of every class, and class number {empty[0]} has none: take 'all_classes'"
        )
    per_epoch = max(1, len(labels) // (classes * params.batch_size))
    needed = params.epochs * per_epoch * params.batch_size
    stream = torch.stack(
        [
            torch.cat([own[torch.randperm(len(own), generator=generator)] for _ in range(-(-needed // len(own)))])[
                :needed
            ]
            for own in members
        ]
    )
    steps = stream.to(labels.device).split(params.batch_size, dim=1)
    yield from (list(steps[start : start + per_epoch]) for start in range(0, len(steps), per_epoch))


def _targets(labels: Int64[Tensor, "_ images"], classes: int, variant: Variant) -> Int64[Tensor, "maps images"]:
    """Where each map pushes its images."""
    return (
        labels
        if variant == "singular"
        else torch.arange(classes, device=labels.device)[:, None].expand(-1, labels.shape[1])
    )
