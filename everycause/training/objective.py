"""The terms of the joint objective, as pure functions, and their sum.

    L = CE(f(x), y) + λ_aug · CE(f(x'), y) − λ1 · L_MC(x) + λ2 · L_nonMC(x)

Papers: arXiv 2511.12100 (second term), arXiv 2501.11087 section "debugging loss" (third and fourth).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from everycause.section import Section

PAPER_BATCH = 16
"""Batch over which arXiv 2501.11087 sums its terms: with it, λ1 and λ2 keep their meaning at any batch size."""


class ObjectiveParams(Section):
    """The weights of the terms."""

    lambda_augment: float = Field(ge=0)
    """Weight of the cross-entropy of counterfactual images, λ_aug."""
    lambda_mc: float = Field(ge=0)
    """Weight that rewards activity on the filters of the image's class, λ1."""
    lambda_nonmc: float = Field(ge=0)
    """Weight that punishes activity on the other filters, λ2."""


class FilterTerms(NamedTuple):
    """Activity on a class's filters and beside them."""

    mc: Float[Tensor, ""]
    nonmc: Float[Tensor, ""]


def activity(activations: Float[Tensor, "batch filters"]) -> Float[Tensor, "batch filters"]:
    """sigmoid(a) where it exceeds one half, else 0: the paper's differentiable stand-in for "active"."""
    squashed = activations.sigmoid()
    return squashed * (squashed > 0.5)


def filter_terms(activations: Float[Tensor, "batch filters"], labels: Int64[Tensor, "batch"], filters: Bool[Tensor, "classes filters"]) -> FilterTerms:
    """L_MC and L_nonMC, per image and times the paper's batch."""
    active = activity(activations)
    own = filters[labels].to(active.dtype)
    scale = PAPER_BATCH / len(labels)
    return FilterTerms((active * own).sum() * scale, (active * (1 - own)).sum() * scale)


def joint_terms(
    logits: Float[Tensor, "batch classes"],
    labels: Int64[Tensor, "batch"],
    counterfactual_logits: Float[Tensor, "augmented classes"],
    counterfactual_labels: Int64[Tensor, "augmented"] | Float[Tensor, "augmented classes"],
    activity_terms: FilterTerms | None,
    weights: ObjectiveParams,
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
        terms["mc"], terms["nonmc"] = activity_terms
        if weights.lambda_mc > 0:
            loss = loss - weights.lambda_mc * terms["mc"]
        if weights.lambda_nonmc > 0:
            loss = loss + weights.lambda_nonmc * terms["nonmc"]
    return {**terms, "loss": loss}


def accuracy(logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, "batch"]) -> float:
    """Share of images whose largest logit is their label's."""
    return float((logits.argmax(dim=1) == labels).to(torch.float64).mean())
