"""The rows of the results table: what each one adds to the continued training of the base, controls included.

To add a row, write how its counterfactual images are made in a module of its own, as a class like those in
counterfactuals.py and a function `(upstream, recipe, seed) -> Counterfactuals`, and name the function here in a new
line of ROWS. Stages, sweeps and reports take the row from there.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from everycause.data.sources import DataParams, has_groups, renderer
from everycause.errors import UserError
from everycause.explanation.filters import FilterBank, permuted, random_like
from everycause.explanation.masks import MaskParams, Masks, orders
from everycause.explanation.regions import random_sets
from everycause.explanation.selectors import SelectorName
from everycause.shapes import Bool
from everycause.training.background import Background, OtherImages, background_of
from everycause.training.counterfactuals import (
    CutMix,
    Erasing,
    OracleParts,
    PatchReplacement,
    Pool,
    Recipe,
    Removals,
    Upstream,
)
from everycause.training.edits import (
    counterfactual_images,
    counterfactual_images_random,
    counterfactual_pairs,
    counterfactual_pairs_random,
)
from everycause.training.examples import Pictures, example_pictures
from everycause.training.exchange import ObjectExchange, exchange
from everycause.training.fit import Epoch, FitParams, Goal, Training, fit
from everycause.training.objectives import (
    Objective,
    group_dro,
    masked_distillation,
    self_challenging,
    spectral_decoupling,
)
from everycause.training.rounds import Observe, Rounds, RoundsParams
from everycause.training.steps import Counterfactuals
from everycause.unfinished import Unfinished

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """One way to retrain the base."""

    meaning: str
    """What the row is, for tables."""
    removes: SelectorName | None = None
    """What chooses the regions that counterfactual images lose. Every selector takes as many regions of the same
    images."""
    extent: Literal["region", "scene"] = "region"
    """`region` replaces the set alone (as the paper does); `scene` also the pixels away from it, so that what is kept
    stands in another scene."""
    augments: Callable[[Upstream, Recipe, int], Counterfactuals] | None = None
    """Makes counterfactual images in another way, with a seed."""
    filters: Literal["own", "random", "permuted"] | None = None
    """The filters that the loss terms λ1 and λ2 reward: the class's own, as many random ones, or another class's."""
    rounds: bool = False
    """Whether masks are searched again on the model as it learns."""
    others: bool = False
    """Whether removed regions show another training image instead of background."""
    objective: Callable[[Upstream, Recipe], Objective] | None = None
    """Makes what is minimized in place of the joint loss."""
    exchanges: bool = False
    """Whether the row reads the section `exchange` of params.yaml."""
    needs_parts: bool = False
    """Whether the row needs images whose parts are known."""
    needs_groups: bool = False
    """Whether the row needs images whose groups are known."""

    def check(self, data: DataParams) -> None:
        """Refuse data that the row cannot be made from.

        Raises:
            UserError: the row needs images whose parts, or groups, are known, and those of these data are not.
        """
        lacks = "parts" if self.needs_parts and data.source != "codebirds" else ""
        if self.needs_groups and not has_groups(data):
            lacks = "groups"
        if lacks:
            name = next((name for name, row in ROWS.items() if row is self), self.meaning)
            known = "codebirds" if lacks == "parts" else "codebirds or waterbirds"
            raise UserError(
                f"the row '{name}' needs data whose {lacks} are known (data.source: {known}): leave it out of rows"
            )


def erasing(upstream: Upstream, recipe: Recipe, _seed: int) -> Erasing:
    """Random erasing of every image."""
    return Erasing(upstream.base.statistics.mean, recipe.background.augment_rate)


def cutmix(upstream: Upstream, recipe: Recipe, _seed: int) -> CutMix:
    """CutMix of every image."""
    return CutMix(upstream.train.num_classes, recipe.background.augment_rate)


def oracle_parts(_upstream: Upstream, recipe: Recipe, _seed: int) -> OracleParts:
    """True parts of every image rendered away."""
    return OracleParts(renderer(recipe.data, recipe.threads), recipe.background.augment_rate)


def object_exchange(upstream: Upstream, recipe: Recipe, seed: int) -> ObjectExchange:
    """What is left of every object, in another scene."""
    return exchange(upstream.base, upstream.train, recipe.exchange, recipe.background.augment_rate, seed)


def patch_replacement(upstream: Upstream, recipe: Recipe, _seed: int) -> PatchReplacement:
    """Random cells of every image from another image."""
    return PatchReplacement(upstream.train, recipe.background.augment_rate)


ROWS = {
    "continued": Row("control: the same steps and images, cross-entropy only"),
    "filters": Row("filter terms λ1, λ2 (arXiv 2501.11087)", filters="own"),
    "filters_random": Row("control: the same terms with as many random filters", filters="random"),
    "filters_permuted": Row("control: the same terms with the filters of another class", filters="permuted"),
    "masks": Row("counterfactual images λ_aug (arXiv 2511.12100)", removes="counterfactual"),
    "masks_scene": Row(
        "the same, and what lies away from the set replaced too (ours)", removes="counterfactual", extent="scene"
    ),
    "masks_rounds": Row(
        "counterfactual images from a pool of masks that grows round by round (ours)",
        removes="counterfactual", extent="scene", rounds=True,
    ),
    "object_exchange": Row(
        "the object without random discs of it, in the scene of another image (ours)",
        augments=object_exchange, exchanges=True,
    ),
    "counterfactual_images": Row("edits of spurious factors, label kept (ours)", augments=counterfactual_images),
    "counterfactual_pairs": Row("edits that show the base its runner-up, labelled so", augments=counterfactual_pairs),
    "counterfactual_images_random": Row(
        "control: random changes as large as those of counterfactual_images", augments=counterfactual_images_random
    ),
    "counterfactual_pairs_random": Row(
        "control: random changes as large, the labels of counterfactual_pairs", augments=counterfactual_pairs_random
    ),
    "masks_random": Row("control: as many random regions replaced", removes="random"),
    "masks_grad_cam": Row("control: as many regions by Grad-CAM", removes="grad_cam"),
    "masks_factual": Row("control: as many regions by LIMA's factual objective", removes="factual"),
    "masks_fido": Row("control: as many regions by FIDO (arXiv 1807.08024)", removes="fido"),
    "masks_cell_swap": Row("control: as many regions by cell swaps (arXiv 1904.07451)", removes="cell_swap"),
    "masks_cam": Row("control: as many regions of CAM object masks (arXiv 2303.03052)", removes="cam_masks"),
    "joint": Row("both", removes="counterfactual", filters="own"),
    "erasing": Row("control: random erasing of every image", augments=erasing),
    "cutmix": Row("control: CutMix with another image of the batch", augments=cutmix),
    "patch_replacement": Row("control: random cells of another image (arXiv 2504.01396)", augments=patch_replacement),
    "masked_distillation": Row(
        "control: features of images without their Grad-CAM regions stay those of the base (arXiv 2303.03052, adapted)",
        removes="grad_cam", others=True, objective=masked_distillation,
    ),
    "self_challenging": Row(
        "control: the features that raise the label most are muted (arXiv 2007.02454)", objective=self_challenging
    ),
    "spectral_decoupling": Row(
        "control: logits are kept small (arXiv 2011.09468)", objective=spectral_decoupling
    ),
    "group_dro": Row(
        "control: groups of class and scene with a high loss weigh more (arXiv 1911.08731); it must know them",
        objective=group_dro, needs_groups=True,
    ),
    "oracle_parts": Row(
        "the ceiling: true parts rendered away, in a scene independent of the class",
        augments=oracle_parts, needs_parts=True,
    ),
}  # fmt: skip
"""Name of a row → how it is retrained."""


class Retraining:
    """A row that is about to be retrained; the base classifier in `upstream` becomes the result."""

    def __init__(
        self, row: str, upstream: Upstream, recipe: Recipe, params: FitParams, rounds: RoundsParams, seed: int
    ) -> None:
        self._upstream, self._params, self._row, self._seed = upstream, params, row, seed
        self._goal = goal_of(row, upstream, recipe, seed)
        self._rounds: Rounds | None = None
        if ROWS[row].rounds:
            training = Training(upstream.base, upstream.train, upstream.validation, params, seed, row)
            self._rounds = Rounds(training, self._goal, upstream, recipe.masks, rounds)

    def __iter__(self) -> Iterator[Epoch]:
        return self.epochs()

    def epochs(self, folder: Path | None = None, observe: Observe | None = None) -> Iterator[Epoch]:
        """Train, epoch by epoch.

        Args:
            folder: Where the unfinished state is kept, and that of a killed run is found.
            observe: Measures the model before the first and after each round; its measures are yielded as entries.

        Raises:
            UserError: the loss is not finite; the sentence names row, epoch and batch.
        """
        if self._rounds is not None:
            return self._rounds.epochs(folder, observe)
        upstream, unfinished = self._upstream, Unfinished(folder)
        images = upstream.train, upstream.validation
        return fit(upstream.base, *images, self._params, self._seed, self._goal, self._row, unfinished)

    def pictures(self) -> Pictures | None:
        """Examples of the counterfactual images that were shown last; None if the row has none."""
        goal = self._goal if self._rounds is None else self._rounds.goal
        if goal.counterfactuals is None:
            return None
        return example_pictures(goal.counterfactuals, self._upstream.train, self._seed)


def retrain(
    row: str, upstream: Upstream, recipe: Recipe, params: FitParams, rounds: RoundsParams, seed: int
) -> Retraining:
    """Prepare the retraining of a row; the base classifier is trained as epochs are drawn.

    Args:
        row: A row of ROWS.
        upstream: The base with its explanations, and the images.
        recipe: The sections of params.yaml that decide what the row minimizes.
        params: How long and how fast to train.
        rounds: How often rows with rounds search again.
        seed: Seed of order, augmentation, backgrounds and dropout.

    Raises:
        UserError: there is no such row, or it needs masks, filters or parts that are not there.
    """
    if row not in ROWS:
        raise UserError(f"'{row}' is not a retraining row (known: {', '.join(ROWS)})")
    return Retraining(row, upstream, recipe, params, rounds, seed)


def goal_of(name: str, upstream: Upstream, recipe: Recipe, seed: int) -> Goal:
    """What a row minimizes, from the filters and masks of the base.

    Only searched images whose prediction flipped have a counterfactual. Every other selector replaces as many regions
    of the same images.

    Raises:
        UserError: the row needs masks, filters or parts that are not there; the sentence names the row.
    """
    row = ROWS[name]
    row.check(recipe.data)
    weights = recipe.loss if row.filters else recipe.loss.model_copy(update={"lambda_mc": 0.0, "lambda_nonmc": 0.0})
    filters = None
    if row.filters:
        filters = filters_of(name, upstream).global_filters(recipe.frequency_threshold)
    elif upstream.watch_filters and row.objective is None:  # an objective of its own records its own terms
        filters = upstream.filters.global_filters(recipe.frequency_threshold)
    if filters is not None and row.filters in ("random", "permuted"):
        filters = (random_like if row.filters == "random" else permuted)(filters, seed)
    objective = None if row.objective is None else row.objective(upstream, recipe)
    return Goal(weights, counterfactuals_of(name, upstream, recipe, seed), filters, objective)


def filters_of(row: str, upstream: Upstream) -> FilterBank:
    """The filters that a row needs. Images of a class that has none take no part in the filter terms, with a warning.

    Raises:
        UserError: there are none, or no class has any; the sentence names the row.
    """
    try:
        bank = upstream.filters
    except UserError as error:
        raise UserError(f"the row '{row}' needs the filters of the base: {error}") from error
    empty = (bank.support == 0).nonzero()[:, 0].tolist()
    reason = "is predicted correctly with p ≥ filters.confidence_threshold"
    if len(empty) == len(bank.support):
        raise UserError(
            f"the row '{row}' needs filters, and no class has any, since none of the training images {reason}: train "
            "the base longer, lower the threshold if it is above 0, or leave the row out of rows"
        )
    if empty:
        names = [f"'{upstream.train.class_names[label]}'" for label in empty]
        log.warning(
            "row %s: %d of %d classes (%s) have no filters, since none of their training images %s: their images take "
            "no part in the filter terms",
            *(row, len(empty), len(bank.support), ", ".join(names[:5]) + (", …" if len(names) > 5 else ""), reason),
        )
    return bank


def counterfactuals_of(name: str, upstream: Upstream, recipe: Recipe, seed: int) -> Counterfactuals | None:
    """The counterfactual images of a row; None if it has none.

    Raises:
        UserError: the row needs masks, and there are none, or no prediction flips.
    """
    row = ROWS[name]
    if row.augments is not None:
        return row.augments(upstream, recipe, seed)
    if row.removes is None:
        return None
    try:
        masks = with_flips(upstream.masks)
    except UserError as error:
        raise UserError(f"the row '{name}' needs the masks of the base: {error}") from error
    sets = sets_of(row.removes, upstream, masks, recipe.masks, seed)
    background: Background = OtherImages(upstream.train)
    if not row.others:
        statistics, open_prior = upstream.base.statistics, upstream.open_prior
        background = background_of(upstream.masks, upstream.train, statistics, recipe.background, open_prior)
    probability = recipe.background.augment_rate
    return Removals(pool_of(masks, sets), background, probability, scene=row.extent == "scene")


def with_flips(masks: Masks) -> Masks:
    """The masks of the images whose prediction flips.

    Raises:
        UserError: there are none.
    """
    if not bool(masks.flipped.any()):
        raise UserError(
            f"none of the {len(masks.flipped)} searched images changes its prediction, so there is nothing to retrain "
            "on: raise masks.max_regions, masks.regions or masks.images"
        )
    return masks.rows(masks.flipped.nonzero()[:, 0])


def sets_of(
    selector: SelectorName, upstream: Upstream, masks: Masks, params: MaskParams, seed: int
) -> Bool[Tensor, "images regions"]:
    """For each image as many regions as its counterfactual set has, chosen by a selector."""
    if selector == "counterfactual":
        return masks.removed
    if selector == "random":
        return random_sets(masks.sizes, masks.areas > 0, seed)
    return orders(upstream.base, upstream.train, masks, selector, params).argsort(dim=1) < masks.sizes[:, None]


def pool_of(masks: Masks, sets: Bool[Tensor, "images regions"]) -> Pool:
    """A pool with one set for each image."""
    index = masks.index.tolist()
    place = dict(zip(index, range(len(index)), strict=True))
    return Pool(dict(zip(index, sets[:, None], strict=True)), masks.partition, place, masks.shared)
