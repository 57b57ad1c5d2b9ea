"""The rows of the results table: what each one adds to the continued base, controls included."""

from typing import Literal, NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from everycause.data.batches import Statistics
from everycause.data.split import Split
from everycause.explanation.filters import FilterBank
from everycause.explanation.masks import Masks
from everycause.explanation.regions import random_sets
from everycause.training.counterfactual import Counterfactuals, FillParams, background_bank
from everycause.training.fit import Goal
from everycause.training.objective import ObjectiveParams


class Row(NamedTuple):
    """One way to retrain."""

    regions: Literal["none", "counterfactual", "random"] = "none"
    """Which regions are replaced in the counterfactual images."""
    extent: Literal["region", "scene"] = "region"
    """`region` replaces the set alone (the paper's); `scene` also the regions that matter least, so that the evidence that is kept stands in another scene."""
    filters: bool = False
    """Whether the filter terms are on."""
    meaning: str = ""
    """What the row is, for tables."""


ROWS = {
    "continued": Row(meaning="control: the same steps and images, cross-entropy only"),
    "filters": Row(filters=True, meaning="filter terms λ1, λ2 (arXiv 2501.11087)"),
    "masks": Row(regions="counterfactual", meaning="counterfactual images λ_aug (arXiv 2511.12100)"),
    "masks_scene": Row(regions="counterfactual", extent="scene", meaning="the same, and the least important regions replaced too (ours)"),
    "masks_random": Row(regions="random", meaning="control: as many random regions replaced"),
    "joint": Row(regions="counterfactual", filters=True, meaning="both"),
}


def goal_of(
    row: Row,
    bank: FilterBank,
    masks: Masks,
    train: Split,
    statistics: Statistics,
    weights: ObjectiveParams,
    fill: FillParams,
    frequency_threshold: float,
    seed: int,
) -> Goal:
    """What a row minimizes, from the base model's filters and masks.

    Only searched images whose prediction flipped have a counterfactual; the random control replaces as many regions of
    the same images.

    Raises:
        ValueError: the row needs counterfactual images and no searched image has one.
    """
    counterfactuals = None
    if row.regions != "none":
        flipped = masks.flipped
        if not bool(flipped.any()):
            raise ValueError(
                f"none of the {len(flipped)} searched images changes its prediction, so there is nothing to retrain on: raise masks.max_regions, masks.grid or masks.images"
            )
        sets = masks.removed[flipped]
        if row.regions == "random":
            sets = random_sets(sets.sum(dim=1), sets.shape[1], seed)
        if row.extent == "scene":
            sets = sets | least_important(masks.effect[flipped], fill.scene_share)
        removed = dict(zip(masks.index[flipped].tolist(), sets, strict=True))
        source = background_bank(train, masks.index, masks.effect, masks.partition, fill) if fill.source == "bank" else statistics
        counterfactuals = Counterfactuals(removed, masks.partition, source, fill.augment_rate)
    filters = bank.global_filters(frequency_threshold) if row.filters else None
    return Goal(weights, counterfactuals, filters)


def least_important(effect: Float[Tensor, "images regions"], share: float) -> Bool[Tensor, "images regions"]:
    """For each image the share of its regions whose single removal changes p(y) least."""
    rank = effect.argsort(dim=1, stable=True).argsort(dim=1)
    return rank < round(share * effect.shape[1])
