"""The terms of the joint loss as pure functions, and their weighted sum.

    L = CE(f(x), y) + λ_aug · CE(f(x'), y) − λ1 · L_MC(x) + λ2 · L_nonMC(x)

Papers: arXiv 2511.12100 (second term), arXiv 2501.11087 section "debugging loss" (third and fourth).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from everycause.params import Section
from everycause.shapes import Bool, Float, Int64

PAPER_BATCH = 16
"""Batch size of arXiv 2501.11087, which sums its terms over the batch. Scaled to it, λ1 and λ2 mean the same at any
batch size."""
SMALLEST = 1e-6
"""Shares and sums of activations below this value are treated as zero."""
Surrogate = Literal["sigmoid_threshold", "raw", "share"]


class LossParams(Section):
    """The weights of the loss terms."""

    lambda_augment: float = Field(ge=0, le=1_000_000)
    """λ_aug, the weight of the cross-entropy of counterfactual images."""
    lambda_mc: float = Field(ge=0, le=1_000_000)
    """λ1, the weight that rewards activity of the filters of the image's class."""
    lambda_nonmc: float = Field(ge=0, le=1_000_000)
    """λ2, the weight that punishes activity of the other filters."""
    surrogate: Surrogate
    """How activity is measured: `sigmoid_threshold` as in the paper, `raw` by the activation itself, `share` by its
    distribution over the filters."""


PLAIN_LOSS = LossParams(lambda_augment=0.0, lambda_mc=0.0, lambda_nonmc=0.0, surrogate="sigmoid_threshold")
"""Plain cross-entropy."""


class FilterTerms(NamedTuple):
    """Activity of the filters of an image's class (minimum correct, MC) and of the other filters."""

    mc: Float[Tensor, ""]
    """L_MC."""
    nonmc: Float[Tensor, ""]
    """L_nonMC."""
    active: Float[Tensor, ""]
    """Mean number of filters above 0 per image; recorded, not minimized."""


def activity(activations: Float[Tensor, "batch filters"]) -> Float[Tensor, "batch filters"]:
    """sigmoid(a) where it exceeds one half, otherwise 0: the paper's differentiable measure of an active filter."""
    squashed = activations.sigmoid()
    return squashed * (squashed > 0.5)


def filter_terms(
    activations: Float[Tensor, "batch filters"],
    labels: Int64[Tensor, "batch"],
    filters: Bool[Tensor, "classes filters"],
    surrogate: Surrogate = "sigmoid_threshold",
) -> FilterTerms:
    """L_MC and L_nonMC, means over the images times the paper's batch size.

    An image whose class has no filters adds 0 to both, or everything that it activates would be punished. With `share`,
    L_MC is the logarithm of the share of an image's activation that the filters of its class have, and L_nonMC the
    share that the others have. Neither changes with the scale of the activations.
    """
    known = filters[labels].any(dim=1, keepdim=True)
    own, others = (sets.to(activations.dtype) for sets in (filters[labels], ~filters[labels] & known))
    scale, positive = PAPER_BATCH / len(labels), activations.relu()
    active = (activations > 0).sum() / len(labels)
    if surrogate == "share":
        total = positive.sum(dim=1)
        # an image without any activation has no wrong filters: its share is 1, and its gradient 0
        share = torch.where(
            (total > SMALLEST) & known[:, 0], (positive * own).sum(dim=1) / total.clamp_min(SMALLEST), 1.0
        )
        return FilterTerms(share.clamp_min(SMALLEST).log().sum() * scale, (1 - share).sum() * scale, active)
    activity_of = activity(activations) if surrogate == "sigmoid_threshold" else positive
    return FilterTerms((activity_of * own).sum() * scale, (activity_of * others).sum() * scale, active)


def joint_terms(
    logits: Float[Tensor, "batch classes"],
    labels: Int64[Tensor, "batch"],
    counterfactual_logits: Float[Tensor, "augmented classes"],
    counterfactual_labels: Int64[Tensor, "augmented"] | Float[Tensor, "augmented classes"],
    activity_terms: FilterTerms | None,
    weights: LossParams,
    entropy: Callable[..., Tensor] = cross_entropy,
) -> dict[str, Float[Tensor, ""]]:
    """Every term by name, without its weight, and the weighted sum of all terms as `loss`.

    A term without images, or with weight 0, is left out of the sum instead of being added as 0, so that with all
    weights 0 the loss is plain cross-entropy to the last bit. `entropy` is cross_entropy, or that with smoothed labels.
    """
    terms = {"cross_entropy": entropy(logits, labels)}
    loss = terms["cross_entropy"]
    if len(counterfactual_labels) and weights.lambda_augment > 0:
        terms["augment"] = entropy(counterfactual_logits, counterfactual_labels)
        loss = loss + weights.lambda_augment * terms["augment"]
    if activity_terms is not None:
        terms["mc"], terms["nonmc"], terms["active"] = activity_terms
        if weights.lambda_mc > 0:
            loss = loss - weights.lambda_mc * terms["mc"]
        if weights.lambda_nonmc > 0:
            loss = loss + weights.lambda_nonmc * terms["nonmc"]
    return {**terms, "loss": loss}


def accuracy(logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, "batch"]) -> float:
    """Share of images whose largest logit is that of their label, 0 to 1."""
    return float((logits.argmax(dim=1) == labels).to(torch.float64).mean())
