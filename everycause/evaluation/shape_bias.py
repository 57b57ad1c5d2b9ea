"""Shape bias: does a classifier follow the shape of an object or its texture, where the two are of different classes?

    shape bias = decisions for the shape / (decisions for the shape + decisions for the texture)

A decision is the most probable of 16 everyday classes. The probability of each is the mean probability of those classes
of the classifier that belong to it: a sum would favor dogs, of which ImageNet has 109. Decisions for a third class
count in neither. Intervals are bootstrapped over images, for a class over the images of its shape.

Source: Geirhos et al., ICLR 2019 (arXiv 1811.12231), section 3 and figure 4. The mean is the authors' later advice (the
repository of the paper; arXiv 1808.08750, appendix): by it their ResNet-50 has a shape bias of 21.4 %.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from everycause.data.cue_conflict import CATEGORIES, MEMBERS
from everycause.errors import UserError
from everycause.evaluation.statistics import RESAMPLES, Interval
from everycause.shapes import Bool, Float, Int64

ALL = "all"
"""What stands for the class in measures of all images."""


class Finding(NamedTuple):
    """One measure of one class."""

    class_name: str
    """One of the 16, the class of the shape, or `all`."""
    measure: str
    """`shape_bias`, or the share of decisions for the `shape`, for the `texture` or for any `other` class."""
    interval: Interval
    """From 0 to 1; not a number where no decision was for shape or texture."""


def members(class_names: tuple[str, ...]) -> list[Int64[Tensor, "members"]]:
    """Which of a classifier's classes belong to each of the 16.

    Args:
        class_names: The classifier's classes, in the order of its logits: the 16 by name, with others beside them or
            not, or WordNet ids, among them all 207 that belong to one of the 16.

    Raises:
        UserError: they are neither.
    """
    place = {name: number for number, name in enumerate(class_names)}
    if all(name in place for name in CATEGORIES):
        return [torch.tensor([place[name]]) for name in CATEGORIES]
    wanted = [one for ids in MEMBERS.values() for one in ids]
    missing = [one for one in wanted if one not in place]
    if len(missing) == len(wanted):
        raise UserError(
            f"the model's {len(class_names)} classes ('{class_names[0]}' …) have no mapping to the 16 of cue conflict: "
            f"give one that tells ImageNet's 1,000 classes (WordNet ids), or {', '.join(CATEGORIES)}"
        )
    if missing:
        raise UserError(
            f"the model's {len(class_names)} classes lack {len(missing)} of the {len(wanted)} of ImageNet that belong "
            f"to the 16 of cue conflict ('{missing[0]}' …): give one that tells all 1,000 classes of ImageNet"
        )
    return [torch.tensor([place[one] for one in ids]) for ids in MEMBERS.values()]


def category_probabilities(
    logits: Float[Tensor, "images classes"], belonging: list[Int64[Tensor, "_"]]
) -> Float[Tensor, "images categories"]:
    """The mean probability of the classes that belong to each category; the 16 do not add up to 1."""
    probabilities = logits.double().softmax(dim=1)
    return torch.stack([probabilities[:, own].mean(dim=1) for own in belonging], dim=1)


def findings(
    decisions: Int64[np.ndarray, "images"], shapes: Int64[np.ndarray, "images"], textures: Int64[np.ndarray, "images"]
) -> list[Finding]:
    """All measures, of all images and of the images of each shape, with 95 % intervals.

    Args:
        decisions: The category that the classifier decides for; ties have gone to the first.
        shapes: The category of the shape.
        textures: The category of the texture, another one.
    """
    assert (shapes != textures).all(), "images without a conflict tell nothing"
    groups = {ALL: np.ones(len(shapes), dtype=bool)}
    groups |= {name: shapes == number for number, name in enumerate(CATEGORIES) if (shapes == number).any()}
    return [
        Finding(name, measure, interval)
        for name, own in groups.items()
        for measure, interval in measures(decisions[own] == shapes[own], decisions[own] == textures[own]).items()
    ]


def measures(
    for_shape: Bool[np.ndarray, "images"], for_texture: Bool[np.ndarray, "images"], seed: int = 0
) -> dict[str, Interval]:
    """Shape bias and the shares of decisions, with bootstrap intervals.

    Args:
        for_shape: Whether the decision on each image is the class of its shape.
        for_texture: Whether it is the class of its texture.
        seed: Of the random draws.
    """
    outcomes = np.stack([for_shape, for_texture, ~(for_shape | for_texture)], axis=1).astype(float)
    count = len(outcomes)
    # how often each image is drawn is all that a resample changes
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    whole, resampled = outcomes.mean(axis=0), drawn @ outcomes / count
    found = {"shape_bias": _interval(bias(whole), bias(resampled))}
    return found | {
        name: _interval(whole[column], resampled[:, column])
        for column, name in enumerate(("shape", "texture", "other"))
    }


def bias(shares: Float[np.ndarray, "*resamples 3"]) -> Float[np.ndarray, "*resamples"]:
    """Shape bias from the shares of decisions for shape, texture and others; not a number where the first two are 0."""
    decided = shares[..., 0] + shares[..., 1]
    return np.divide(shares[..., 0], decided, out=np.full_like(decided, np.nan), where=decided > 0)


def _interval(value: np.ndarray | float, resampled: Float[np.ndarray, "resamples"]) -> Interval:
    """A value with the range of 95 % of its resamples; those without a decision for shape or texture say nothing."""
    known = resampled[~np.isnan(resampled)]
    low, high = np.quantile(known, (0.025, 0.975)) if len(known) else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high))
