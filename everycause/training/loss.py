"""The terms of the joint objective, as pure functions, and their sum.

    L = CE(f(x), y) + λ_aug · CE(f(x'), y) − λ1 · L_MC(x) + λ2 · L_nonMC(x)

Papers: arXiv 2511.12100 (second term), arXiv 2501.11087 section "debugging loss" (third and fourth).
"""

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from everycause.params import Section
from everycause.shapes import Bool, Float, Int64

PAPER_BATCH = 16
"""Batch over which arXiv 2501.11087 sums its terms: with it, λ1 and λ2 keep their meaning at any batch size."""


SMALLEST = 1e-6
"""Below it neither a share nor a sum of activations is told from zero."""
Surrogate = Literal["sigmoid_threshold", "raw", "share"]


class LossParams(Section):
    """The weights of the terms."""

    lambda_augment: float = Field(ge=0)
    """Weight of the cross-entropy of counterfactual images, λ_aug."""
    lambda_mc: float = Field(ge=0)
    """Weight that rewards activity on the filters of the image's class, λ1."""
    lambda_nonmc: float = Field(ge=0)
    """Weight that punishes activity on the other filters, λ2."""
    surrogate: Surrogate
    """What counts as activity: `sigmoid_threshold` is the paper's, `raw` the activation itself, `share` its distribution over the filters."""


class FilterTerms(NamedTuple):
    """Activity on a class's filters and beside them."""

    mc: Float[Tensor, ""]
    nonmc: Float[Tensor, ""]
    active: Float[Tensor, ""]
    """Filters above 0 per image; watched, not minimized."""


def activity(activations: Float[Tensor, "batch filters"]) -> Float[Tensor, "batch filters"]:
    """sigmoid(a) where it exceeds one half, else 0: the paper's differentiable stand-in for "active"."""
    squashed = activations.sigmoid()
    return squashed * (squashed > 0.5)


def filter_terms(
    activations: Float[Tensor, "batch filters"],
    labels: Int64[Tensor, "batch"],
    filters: Bool[Tensor, "classes filters"],
    surrogate: Surrogate = "sigmoid_threshold",
) -> FilterTerms:
    """L_MC and L_nonMC, per image and times the paper's batch.

    With `share` they are the logarithm of the share of an image's activation that falls on its class's filters, and the
    share that falls beside them: neither changes with the scale of the activations.
    """
    own = filters[labels].to(activations.dtype)
    scale, positive = PAPER_BATCH / len(labels), activations.relu()
    active = (activations > 0).sum() / len(labels)
    if surrogate == "share":
        total = positive.sum(dim=1)
        share = torch.where(
            total > SMALLEST, (positive * own).sum(dim=1) / total.clamp_min(SMALLEST), 1.0
        )  # nothing to share is no fault
        return FilterTerms(share.clamp_min(SMALLEST).log().sum() * scale, (1 - share).sum() * scale, active)
    activity_of = activity(activations) if surrogate == "sigmoid_threshold" else positive
    return FilterTerms((activity_of * own).sum() * scale, (activity_of * (1 - own)).sum() * scale, active)


def joint_terms(
    logits: Float[Tensor, "batch classes"],
    labels: Int64[Tensor, "batch"],
    counterfactual_logits: Float[Tensor, "augmented classes"],
    counterfactual_labels: Int64[Tensor, "augmented"] | Float[Tensor, "augmented classes"],
    activity_terms: FilterTerms | None,
    weights: LossParams,
) -> dict[str, Float[Tensor, ""]]:
    """Every term by name, unweighted, and their weighted sum as `loss`.

    A term without samples, or with weight 0, is left out of the sum rather than added as 0, so that the limiting case
    is plain cross-entropy to the last bit.
    """
    terms = {"cross_entropy": cross_entropy(logits, labels)}
    loss = terms["cross_entropy"]
    if len(counterfactual_labels) and weights.lambda_augment > 0:
        terms["augment"] = cross_entropy(counterfactual_logits, counterfactual_labels)
        loss = loss + weights.lambda_augment * terms["augment"]
    if activity_terms is not None:
        terms["mc"], terms["nonmc"], terms["active"] = activity_terms
        if weights.lambda_mc > 0:
            loss = loss - weights.lambda_mc * terms["mc"]
        if weights.lambda_nonmc > 0:
            loss = loss + weights.lambda_nonmc * terms["nonmc"]
    return {**terms, "loss": loss}


def accuracy(logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, "batch"]) -> float:
    """Share of images whose largest logit is their label's."""
    return float((logits.argmax(dim=1) == labels).to(torch.float64).mean())
