"""The rows of the results table: what each one adds to the continued base, controls included."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from everycause.data.sources import DataParams
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.explanation.filters import FilterBank, permuted, random_like
from everycause.explanation.masks import MaskParams, Masks, orders
from everycause.explanation.regions import random_sets
from everycause.models import Classifier
from everycause.shapes import Bool
from everycause.training.background import BackgroundParams, background_of
from everycause.training.counterfactuals import CutMix, Erasing, Pool, Removals, oracle_parts
from everycause.training.fit import Goal
from everycause.training.loss import LossParams
from everycause.training.steps import Counterfactuals

Selector = Literal["counterfactual", "factual", "grad_cam", "random"]


class Row(NamedTuple):
    """One way to retrain."""

    meaning: str
    """What the row is, for tables."""
    removes: Selector | None = None
    """Which regions the counterfactual images lose; all rows lose as many regions of the same images."""
    extent: Literal["region", "scene"] = "region"
    """`region` replaces the set alone (the paper's); `scene` also what lies away from it, so that the evidence that is kept stands in another scene."""
    augments: Literal["erasing", "cutmix", "oracle_parts"] | None = None
    """Another source of counterfactual images."""
    filters: Literal["own", "random", "permuted"] | None = None
    """Whose filters the terms λ1 and λ2 reward: the class's own, as many random ones, another class's; without any the terms are watched."""


ROWS = {
    "continued": Row("control: the same steps and images, cross-entropy only"),
    "filters": Row("filter terms λ1, λ2 (arXiv 2501.11087)", filters="own"),
    "filters_random": Row("control: the same terms with as many random filters", filters="random"),
    "filters_permuted": Row("control: the same terms with the filters of another class", filters="permuted"),
    "masks": Row("counterfactual images λ_aug (arXiv 2511.12100)", removes="counterfactual"),
    "masks_scene": Row(
        "the same, and what lies away from the set replaced too (ours)", removes="counterfactual", extent="scene"
    ),
    "masks_random": Row("control: as many random regions replaced", removes="random"),
    "masks_grad_cam": Row("control: as many regions by Grad-CAM", removes="grad_cam"),
    "masks_factual": Row("control: as many regions by LIMA's factual objective", removes="factual"),
    "joint": Row("both", removes="counterfactual", filters="own"),
    "erasing": Row("control: random erasing of every image", augments="erasing"),
    "cutmix": Row("control: CutMix with another image of the batch", augments="cutmix"),
    "oracle_parts": Row(
        "the ceiling: true parts rendered away, in a scene independent of the class", augments="oracle_parts"
    ),
}
ROUNDS = "masks_rounds"
"""The row that a stage of its own makes: masks searched again and again on the model as it learns (ours)."""
ROUNDS_MEANING = "counterfactual images from a pool of masks that grows round by round (ours)"


@dataclass(frozen=True)
class Upstream:
    """What rows are made from: the base with its explanations, and the training images."""

    base: Classifier
    bank: FilterBank | None
    """Rows with filter terms need one; the others watch the terms where there is one."""
    masks: Masks
    train: Split


class Recipe(NamedTuple):
    """The sections of params.yaml that decide what a row minimizes."""

    data: DataParams
    masks: MaskParams
    background: BackgroundParams
    weights: LossParams
    frequency_threshold: float
    threads: int


def goal_of(row: Row, upstream: Upstream, recipe: Recipe, seed: int) -> Goal:
    """What a row minimizes, from the base model's filters and masks.

    Only searched images whose prediction flipped have a counterfactual; every other selector replaces as many regions of
    the same images.

    Raises:
        UserError: the row needs counterfactual images and no searched image has one, or parts that nobody knows.
    """
    assert upstream.bank is not None or not row.filters
    filters = upstream.bank.global_filters(recipe.frequency_threshold) if upstream.bank is not None else None
    weights = (
        recipe.weights if row.filters else recipe.weights.model_copy(update={"lambda_mc": 0.0, "lambda_nonmc": 0.0})
    )
    if filters is not None and row.filters in ("random", "permuted"):
        filters = (random_like if row.filters == "random" else permuted)(filters, seed)
    return Goal(weights, counterfactuals_of(row, upstream, recipe, seed), filters)


def counterfactuals_of(row: Row, upstream: Upstream, recipe: Recipe, seed: int) -> Counterfactuals | None:
    """The counterfactual images of a row.

    Raises:
        UserError: as goal_of.
    """
    rate = recipe.background.augment_rate
    match row.augments:
        case "erasing":
            return Erasing(upstream.base.statistics.mean, rate)
        case "cutmix":
            return CutMix(upstream.train.num_classes, rate)
        case "oracle_parts":
            return oracle_parts(recipe.data, recipe.threads, rate)
    if row.removes is None:
        return None
    masks = with_flips(upstream.masks)
    sets = sets_of(row.removes, upstream, masks, recipe.masks, seed)
    background = background_of(upstream.masks, upstream.train, upstream.base.statistics, recipe.background)
    return Removals(pool_of(masks, sets), background, rate, scene=row.extent == "scene")


def with_flips(masks: Masks) -> Masks:
    """The images whose prediction flips.

    Raises:
        UserError: there are none.
    """
    if not bool(masks.flipped.any()):
        raise UserError(
            f"none of the {len(masks.flipped)} searched images changes its prediction, so there is nothing to retrain on: raise masks.max_regions, masks.regions or masks.images"
        )
    return masks.rows(masks.flipped.nonzero()[:, 0])


def sets_of(
    selector: Selector, upstream: Upstream, masks: Masks, params: MaskParams, seed: int
) -> Bool[Tensor, "images regions"]:
    """For each image as many regions as its counterfactual set has, chosen by a selector."""
    if selector == "counterfactual":
        return masks.removed
    if selector == "random":
        return random_sets(masks.sizes, masks.areas > 0, seed)
    return orders(upstream.base, upstream.train, masks, selector, params).argsort(dim=1) < masks.sizes[:, None]


def pool_of(masks: Masks, sets: Bool[Tensor, "images regions"]) -> Pool:
    """One set for each image."""
    index = masks.index.tolist()
    return Pool(
        dict(zip(index, sets[:, None], strict=True)), masks.partition, dict(zip(index, range(len(index)), strict=True))
    )
