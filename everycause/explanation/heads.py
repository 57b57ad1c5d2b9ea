"""Counterfactual explanation heads: which filters an image needs for a class (MC), and what it lacks for one (MI).

One affine map per class reads the pooled activations a of the frozen classifier. Minimum correct (MC) and minimum
incorrect (MI) filters of class c:

    z = sigmoid(U_c a + u_c),  M = z where z > ½ else 0,  a' = a · M
    L = CE(head(a'), c) + λ · 0.001 · Σ|M| − 0.001 · Σ logit_c      (sums over the batch and the filters)

    v = relu(V_c a + v_c),  a' = a + v,  L = CE(head(a'), c) + 0.001 · Σ|v|

The classifier is frozen, so its activations are computed once. The heads of a block of classes are trained together:
one step is one batched matrix product for all of them, with gradients written out by hand. The weights are those of
torch.optim.SGD, one head after the other. A block is written before the next is trained, and heads are read back one
by one: those of 1,000 classes and 2,048 filters take 17 GB.

Source: Tariq, Zia, Ghafoor, Knowledge-Based Systems 257 (2022), arXiv 2501.06831; used by arXiv 2501.11087.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import linear, pad
from tqdm import tqdm

from everycause.errors import UserError
from everycause.explanation.filter_heads import FilterHeads
from everycause.params import Section
from everycause.shapes import Float, Int64
from everycause.unfinished import Unfinished

MOST_BYTES = 2**26
"""Weights of a block: training takes some three times as much."""
MOMENTUM = 0.9
PENALTY = 1e-3
"""The papers' factor of both the sparsity and the logit term."""
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
    folder: Path | None = None,
) -> FilterHeads:
    """Minimum-correct heads of a linear classifier head, trained where the activations lie, returned on the CPU.

    Raises:
        UserError: the loss is not finite.
    """
    return together(head_blocks(activations, labels, head, params, seed, variant, folder))


def head_blocks(
    activations: Float[Tensor, "images filters"],
    labels: Int64[Tensor, "images"],
    head: LastLayer,
    params: HeadParams,
    seed: int,
    variant: Variant = "all_classes",
    folder: Path | None = None,
) -> Iterator[FilterHeads]:
    """The same heads, block of classes by block of classes.

    Raises:
        UserError: the loss is not finite.
    """
    through = variant == "straight_through"
    gradient = partial(minimum_correct_gradient, sparsity=params.sparsity, straight_through=through)
    return _trained(activations, labels, head, params, seed, gradient, variant, folder)


def train_incorrect_heads(
    activations: Float[Tensor, "images filters"],
    labels: Int64[Tensor, "images"],
    head: LastLayer,
    params: HeadParams,
    seed: int,
    folder: Path | None = None,
) -> FilterHeads:
    """Minimum-incorrect heads, likewise.

    Raises:
        UserError: the loss is not finite.
    """
    return together(incorrect_head_blocks(activations, labels, head, params, seed, folder))


def incorrect_head_blocks(
    activations: Float[Tensor, "images filters"],
    labels: Int64[Tensor, "images"],
    head: LastLayer,
    params: HeadParams,
    seed: int,
    folder: Path | None = None,
) -> Iterator[FilterHeads]:
    """The same heads, block of classes by block of classes.

    Raises:
        UserError: the loss is not finite.
    """
    return _trained(activations, labels, head, params, seed, minimum_incorrect_gradient, "all_classes", folder)


def together(blocks: Iterable[FilterHeads]) -> FilterHeads:
    """The heads of all blocks in memory."""
    found = list(blocks)
    if len(found) == 1:
        return found[0]
    return FilterHeads(torch.cat([one.weight for one in found]), torch.cat([one.bias for one in found]))


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
    folder: Path | None,
) -> Iterator[FilterHeads]:
    """All heads, after gradient descent, block by block; every block draws what it would draw in a single block.

    With the folder of an unfinished artifact, a block that was killed goes on after the last epoch that was kept.
    """
    generator, order_generator = torch.Generator().manual_seed(seed), torch.Generator()
    labels = labels.to(activations.device)
    count, filters = 1 if variant == "singular" else len(head.weight), activations.shape[1]
    blocks = torch.arange(count).split(max(1, MOST_BYTES // (4 * filters * (filters + 1))))
    *starts, after = _states(blocks, filters, generator)
    progress = tqdm(total=params.epochs * len(blocks), desc=f"training heads ({variant})", disable=None, leave=False)
    for block, start in zip(blocks, starts, strict=True):
        generator.set_state(start)
        order_generator.set_state(after)
        weight = _drawn(len(block), filters, generator).to(activations)
        order = _orders(labels, len(head.weight), params, variant, order_generator)
        velocity = torch.zeros_like(weight)
        # the derivative of correct and of incorrect heads is not the same function
        kind = "incorrect" if gradient is minimum_incorrect_gradient else variant
        unfinished, done = Unfinished(folder, f"heads-{kind}-{int(block[0])}", "these heads are trained again"), 0
        if (state := unfinished.load(weight.device)) is not None:
            done, weight, velocity = state["epochs"], state["weight"], state["velocity"]
        for epoch, steps in enumerate(order, 1):
            if epoch <= done:  # only its order is drawn again
                progress.update()
                continue
            for number, index in enumerate(steps, 1):
                own = index if len(index) == 1 else index[block.to(index.device)]
                batch = StepBatch(activations[own], _targets(labels[own], block, variant))
                # the last column is the bias
                images = pad(batch.activations, (0, 1), value=1.0).expand(len(block), -1, -1)
                onto_outputs = gradient(batch, head, images.bmm(weight.transpose(1, 2)))
                if not bool(onto_outputs.sum().isfinite()):
                    raise UserError(
                        f"the loss of the filter heads is not finite at epoch {epoch}, batch {number}: "
                        "lower filters.heads.learning_rate"
                    )
                descend(weight, velocity, onto_outputs, images, params.learning_rate)
            progress.update()
            if unfinished.due() or epoch == params.epochs:
                unfinished.save({"epochs": epoch, "weight": weight, "velocity": velocity})
        made = FilterHeads(weight[:, :, :-1].cpu().contiguous(), weight[:, :, -1].cpu().contiguous())
        del weight, velocity
        yield made
    progress.close()


def _states(blocks: Sequence[Tensor], filters: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The state of the generator before the maps of each block are drawn, and after all."""
    for block in blocks:
        yield generator.get_state()
        _drawn(len(block), filters, generator)
    yield generator.get_state()


def _drawn(count: int, filters: int, generator: torch.Generator) -> Float[Tensor, "maps filters inputs"]:
    """The maps before training."""
    return torch.empty(count, filters, filters + 1).uniform_(-(filters**-0.5), filters**-0.5, generator=generator)


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


def _targets(
    labels: Int64[Tensor, "_ images"], heads: Int64[Tensor, "maps"], variant: Variant
) -> Int64[Tensor, "maps images"]:
    """The class that each of some heads pushes its images towards."""
    return labels if variant == "singular" else heads.to(labels.device)[:, None].expand(-1, labels.shape[1])
