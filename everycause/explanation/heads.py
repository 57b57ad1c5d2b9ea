"""Counterfactual explanation heads: for each class, the filters that an image needs in order to be that class.

One linear map per class on the pooled activations a of the frozen classifier:

    z = sigmoid(U_c a + u_c),  M = z where z > ½ else 0,  a' = a · M
    L = CE(head(a'), c) + λ · 0.001 · Σ|M| − 0.001 · Σ logit_c      (sums over the batch and the filters)

All classes are trained together, as one batched matrix product over activations computed once.

Source: Tariq, Zia, Ghafoor, Knowledge-Based Systems 257 (2022), arXiv 2501.06831; used by arXiv 2501.11087.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from tqdm import tqdm

from everycause.section import Section

PENALTY = 1e-3
"""The papers' factor of both the sparsity and the logit term."""


class HeadParams(Section):
    """How the minimum-correct heads are trained. The paper: λ = 2, rate 1e-3, 10 epochs, batches of 16."""

    sparsity: float = Field(ge=0)
    """λ: the weight of the number of filters kept."""
    learning_rate: float = Field(gt=0)
    """Of stochastic gradient descent with momentum 0.9."""
    epochs: int = Field(ge=1)
    """Passes over the activations."""
    batch_size: int = Field(ge=1)
    """Images per step; each is pushed towards every class."""


@dataclass(frozen=True)
class Heads:
    """The trained maps of all classes."""

    weight: Float[Tensor, "classes filters filters"]
    bias: Float[Tensor, "classes filters"]

    def gates(self, activations: Float[Tensor, "batch filters"]) -> Float[Tensor, "classes batch filters"]:
        """z of every image for every class."""
        return torch.baddbmm(self.bias[:, None], activations.expand(len(self.weight), -1, -1), self.weight.transpose(1, 2)).sigmoid()

    def minimum_correct(self, activations: Float[Tensor, "batch filters"], classes: Tensor) -> Bool[Tensor, "batch filters"]:
        """The filters that each image needs in order to be the given class."""
        chosen = torch.einsum("bfk,bk->bf", self.weight[classes], activations) + self.bias[classes]
        return chosen > 0


def train_heads(
    activations: Float[Tensor, "images filters"],
    head_weight: Float[Tensor, "classes filters"],
    head_bias: Float[Tensor, "classes"],
    params: HeadParams,
    seed: int,
) -> Heads:
    """Minimum-correct heads for all classes of a linear classifier head, trained where the activations lie, returned on the CPU.

    Raises:
        ValueError: the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    classes, filters = head_weight.shape
    bound = filters**-0.5
    weight = torch.empty(classes, filters, filters).uniform_(-bound, bound, generator=generator).to(activations.device).requires_grad_()
    bias = torch.empty(classes, filters).uniform_(-bound, bound, generator=generator).to(activations.device).requires_grad_()
    optimizer = torch.optim.SGD([weight, bias], lr=params.learning_rate, momentum=0.9)
    for epoch in tqdm(range(1, params.epochs + 1), desc="training heads", disable=None):
        for number, rows in enumerate(torch.randperm(len(activations), generator=generator).split(params.batch_size), 1):
            loss = heads_loss(Heads(weight, bias), activations[rows], head_weight, head_bias, params.sparsity)
            if not torch.isfinite(loss):
                raise ValueError(f"the loss of the filter heads is {loss.item()} at epoch {epoch}, batch {number}: lower filters.heads.learning_rate")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return Heads(weight.detach().cpu(), bias.detach().cpu())


def heads_loss(heads: Heads, activations: Float[Tensor, "batch filters"], head_weight: Tensor, head_bias: Tensor, sparsity: float) -> Float[Tensor, ""]:
    """The sum over classes of each head's loss; the heads do not share parameters, so each is trained on its own."""
    gates = heads.gates(activations)
    kept = gates * (gates > 0.5)
    logits = linear(activations * kept, head_weight, head_bias)
    classes, batch = logits.shape[:2]
    target = torch.arange(classes, device=logits.device).repeat_interleave(batch)
    towards = cross_entropy(logits.flatten(0, 1), target, reduction="sum") / batch
    own = logits.gather(2, target.view(classes, batch, 1)).sum()
    return towards + sparsity * PENALTY * kept.sum() - PENALTY * own
