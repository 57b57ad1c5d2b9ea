"""Counterfactual explanation heads: which filters an image needs for a class (MC), and what it lacks for one (MI).

One affine map per class reads the pooled activations a of the frozen classifier. Minimum correct (MC) and minimum
incorrect (MI) filters of class c:

    z = sigmoid(U_c a + u_c),  M = z where z > ½ else 0,  a' = a · M
    L = CE(head(a'), c) + λ · 0.001 · Σ|M| − 0.001 · Σ logit_c      (sums over the batch and the filters)

    v = relu(V_c a + v_c),  a' = a + v,  L = CE(head(a'), c) + 0.001 · Σ|v|

The classifier is frozen, so its activations are computed once. The heads of all classes are trained together: one step
is one batched matrix product for all of them, with gradients written out by hand. The weights are those of
torch.optim.SGD, one head after the other.

Source: Tariq, Zia, Ghafoor, Knowledge-Based Systems 257 (2022), arXiv 2501.06831; used by arXiv 2501.11087.
"""

from collections.abc import Callable, Iterator
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
from everycause.unfinished import Unfinished

MOMENTUM = 0.9
PENALTY = 1e-3
"""The papers' factor of both the sparsity and the logit term."""
LARGEST_KEPT = 2**30
"""Bytes of weights above which no unfinished state is written: it would take as much memory again, and its time."""
Variant = Literal["all_classes", "only_class", "singular", "straight_through"]
"""Which images each head is trained on, and towards which class.

`all_classes`: every image, towards the head's class (the paper). `only_class`: images of the head's class alone.
`singular`: one head for all classes, every image, towards its label. `straight_through`: as the paper, with a gradient
that passes below the threshold of the gates."""


class HeadParams(Section):
    """How the heads are trained. The paper: λ = 2, learning rate 1e-3, 10 epochs, batches of 16."""

    sparsity: float = Field(ge=0, le=1_000_000)
    """λ: the weight of the number of filters kept."""
    learning_rate: float = Field(gt=0, le=1000)
    """Learning rate of stochastic gradient descent with momentum 0.9."""
    epochs: int = Field(ge=1, le=100_000)
    """Passes over the activations."""
    batch_size: int = Field(ge=1, le=100_000)
    """Images per step."""


class LastLayer(NamedTuple):
    """The classifier's last layer."""

    weight: Float[Tensor, "classes filters"]
    bias: Float[Tensor, "classes"]

    def to(self, device: torch.device | str) -> "LastLayer":
        """The same layer on another device."""
        return LastLayer(self.weight.to(device), self.bias.to(device))

    def predictions(self, activations: Float[Tensor, "batch filters"]) -> Int64[Tensor, "batch"]:
        """The class of pooled activations."""
        return linear(activations, self.weight, self.bias).argmax(dim=1)


@dataclass(frozen=True)
class FilterHeads:
    """Trained affine maps: one for each class, or a single one for all classes."""

    weight: Float[Tensor, "heads filters filters"]
    bias: Float[Tensor, "heads filters"]

    def outputs(
        self, activations: Float[Tensor, "batch filters"], classes: Int64[Tensor, "batch"]
    ) -> Float[Tensor, "batch filters"]:
        """The map of each image's class, applied to its activations, before any gate."""
        result = torch.empty(len(activations), self.bias.shape[1])
        heads = classes if len(self.weight) > 1 else torch.zeros_like(classes)
        # one weight at a time: weights gathered image by image would not fit into memory
        for head in heads.unique().tolist():
            rows = heads == head
            result[rows] = linear(activations[rows], self.weight[head], self.bias[head])
        return result

    def minimum_correct(
        self, activations: Float[Tensor, "batch filters"], classes: Int64[Tensor, "batch"]
    ) -> Bool[Tensor, "batch filters"]:
        """The filters that each image needs in order to be the given class: gates above one half (MC heads)."""
        return self.outputs(activations, classes) > 0

    def minimum_incorrect(
        self, activations: Float[Tensor, "batch filters"], classes: Int64[Tensor, "batch"]
    ) -> Float[Tensor, "batch filters"]:
        """What each image's activations lack in order to be the given class, in units of activation (MI heads)."""
        return self.outputs(activations, classes).relu()


class StepBatch(NamedTuple):
    """The images of one step, and the class that each head pushes them towards."""

    activations: Float[Tensor, "_ images filters"]
    """The same images for all heads (first size 1), or other images for each head."""
    target: Int64[Tensor, "maps images"]


LossGradient = Callable[[StepBatch, LastLayer, Tensor], Tensor]


def train_heads(
    activations: Float[Tensor, "images filters"],
    labels: Int64[Tensor, "images"],
    head: LastLayer,
    params: HeadParams,
    seed: int,
    variant: Variant = "all_classes",
    unfinished: Unfinished | None = None,
) -> FilterHeads:
    """Minimum-correct heads of a linear classifier head, trained where the activations lie, returned on the CPU.

    Raises:
        UserError: the loss is not finite.
    """
    through = variant == "straight_through"
    gradient = partial(minimum_correct_gradient, sparsity=params.sparsity, straight_through=through)
    return _trained(activations, labels, head, params, seed, gradient, variant, unfinished)


def train_incorrect_heads(
    activations: Float[Tensor, "images filters"],
    labels: Int64[Tensor, "images"],
    head: LastLayer,
    params: HeadParams,
    seed: int,
    unfinished: Unfinished | None = None,
) -> FilterHeads:
    """Minimum-incorrect heads, likewise.

    Raises:
        UserError: the loss is not finite.
    """
    return _trained(activations, labels, head, params, seed, minimum_incorrect_gradient, "all_classes", unfinished)


def minimum_correct_gradient(
    batch: StepBatch,
    head: LastLayer,
    outputs: Float[Tensor, "maps images filters"],
    sparsity: float,
    straight_through: bool,
) -> Tensor:
    """The derivative of the MC loss with respect to the outputs of the maps."""
    gates = outputs.sigmoid()
    kept = gates.masked_fill(outputs <= 0, 0)
    onto_logits = _logit_gradient(linear(batch.activations * kept, head.weight, head.bias), batch.target, PENALTY)
    onto_mask = onto_logits.matmul(head.weight).mul_(batch.activations).add_(sparsity * PENALTY)
    return onto_mask.mul_(gates if straight_through else kept).mul_(1 - gates)


def minimum_incorrect_gradient(
    batch: StepBatch, head: LastLayer, outputs: Float[Tensor, "maps images filters"]
) -> Tensor:
    """The derivative of the MI loss with respect to the outputs of the maps."""
    onto_logits = _logit_gradient(linear(batch.activations + outputs.relu(), head.weight, head.bias), batch.target, 0.0)
    return (onto_logits.matmul(head.weight) + PENALTY) * (outputs > 0)


def _logit_gradient(
    logits: Float[Tensor, "maps images classes"], target: Int64[Tensor, "maps images"], reward: float
) -> Tensor:
    """The derivative of mean cross-entropy minus `reward` times the target's logits."""
    gradient = logits.softmax(dim=2).div_(logits.shape[1])
    wanted = target[:, :, None]
    return gradient.scatter_add_(
        2, wanted, torch.full_like(wanted, -1 / logits.shape[1] - reward, dtype=gradient.dtype)
    )


def _trained(
    activations: Float[Tensor, "images filters"],
    labels: Int64[Tensor, "images"],
    head: LastLayer,
    params: HeadParams,
    seed: int,
    gradient: LossGradient,
    variant: Variant,
    unfinished: Unfinished | None,
) -> FilterHeads:
    """All heads, after gradient descent. What was killed goes on after the last epoch that was kept."""
    generator, classes = torch.Generator().manual_seed(seed), len(head.weight)
    count, filters = 1 if variant == "singular" else classes, activations.shape[1]
    bound = filters**-0.5
    weight = torch.empty(count, filters, filters + 1).uniform_(-bound, bound, generator=generator).to(activations)
    velocity, labels = torch.zeros_like(weight), labels.to(activations.device)
    inputs = torch.cat([activations, torch.ones_like(activations[:, :1])], dim=1)  # the last column is the bias
    order = _orders(labels, classes, params, variant, generator)
    done, unfinished = 0, unfinished if unfinished and weight.nbytes <= LARGEST_KEPT else Unfinished()
    if (state := unfinished.load(weight.device)) is not None:
        done, weight, velocity = state["epochs"], state["weight"], state["velocity"]
    progress = tqdm(order, total=params.epochs, desc=f"training heads ({variant})", disable=None, leave=False)
    for epoch, steps in enumerate(progress, 1):
        if epoch <= done:  # only its order is drawn again
            continue
        for number, index in enumerate(steps, 1):
            batch = StepBatch(activations[index], _targets(labels[index], classes, variant))
            images = inputs[index].expand(count, -1, -1)
            onto_outputs = gradient(batch, head, images.bmm(weight.transpose(1, 2)))
            if not bool(onto_outputs.sum().isfinite()):
                raise UserError(
                    f"the loss of the filter heads is not finite at epoch {epoch}, batch {number}: "
                    "lower filters.heads.learning_rate"
                )
            descend(weight, velocity, onto_outputs, images, params.learning_rate)
        if unfinished.due() or epoch == params.epochs:
            unfinished.save({"epochs": epoch, "weight": weight, "velocity": velocity})
    return FilterHeads(weight[:, :, :-1].cpu().contiguous(), weight[:, :, -1].cpu().contiguous())


def descend(
    weight: Float[Tensor, "maps rows inputs"],
    velocity: Float[Tensor, "maps rows inputs"],
    onto_outputs: Float[Tensor, "maps images rows"],
    images: Float[Tensor, "maps images inputs"],
    learning_rate: float,
) -> None:
    """One step of torch.optim.SGD with momentum, in place: V ← μV + G, W ← W − ηV, where G = onto_outputsᵀ images."""
    velocity.baddbmm_(onto_outputs.transpose(1, 2), images, beta=MOMENTUM)
    weight.add_(velocity, alpha=-learning_rate)


def _orders(
    labels: Int64[Tensor, "images"], classes: int, params: HeadParams, variant: Variant, generator: torch.Generator
) -> Iterator[list[Tensor]]:
    """The images of each step, epoch by epoch: 1 × images for all heads, or heads × images where each has its own.

    With `only_class`, the images of small classes are repeated, so that all heads take the same number of steps.
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
            "filters: the variant 'only_class' needs training images of every class, and class number "
            f"{empty[0]} has none: take 'all_classes'"
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
    """The class that each head pushes its images towards."""
    return (
        labels
        if variant == "singular"
        else torch.arange(classes, device=labels.device)[:, None].expand(-1, labels.shape[1])
    )
