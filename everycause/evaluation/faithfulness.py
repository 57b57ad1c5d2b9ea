"""Faithfulness of explanations: do the chosen regions matter to the model, and do they lie on what is known to matter?

Every selector explains the same images. Its sets are measured by how many flip the prediction and how small they are,
its rankings by insertion and deletion curves. Two references exist: the true minimum, found by trying every subset of
16 regions, and on Codebirds the parts of the birds, which determine the class.
"""

from functools import partial
from itertools import combinations
from pathlib import Path

import torch
from pydantic import Field, model_validator
from torch import Tensor

from everycause.data.erasures import ValidationErasures
from everycause.data.sources import DataParams, SplitName, renderer
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.evaluation.completeness import completeness_score, effective_causes, profile, reliance
from everycause.explanation.masks import MaskParams, Masks, orders, searched, select_images
from everycause.explanation.objectives import log_odds
from everycause.explanation.partitions import numbers
from everycause.explanation.regions import masked_images, other_images, partitions, random_sets
from everycause.explanation.scoring import Scorer
from everycause.explanation.search import SearchInputs
from everycause.explanation.selectors import SelectorName, area_under, curves
from everycause.inference import logits_of_images
from everycause.models import Classifier
from everycause.networks import folded
from everycause.params import Section
from everycause.shapes import Bool, Float, Int64
from everycause.training.rounds import size_at_flip
from everycause.unfinished import kept

MOST_REGIONS = 16
"""Regions among which the true minimum is found: all sets of up to 4 of 16 regions are 2,516."""
DESTROYED = 0.5
"""A part counts as destroyed when at least this share of its visible pixels is removed."""
NO_MEASURES = ("screened", "misclassified", "not_confident")
"""Counts of Masks.summary that say nothing of a selector."""

NEEDS_FILTERS = "which only the base with filters can be explained by: name another selector as well"


class FaithfulnessParams(Section):
    """Which explanations are judged, and on how many images."""

    rows: list[str]
    """Rows whose models are explained."""
    selectors: list[SelectorName]
    """The selectors that are compared; `filter_cam` is left out for models that have no filter bank."""
    images: int = Field(ge=1, le=1_000_000)
    """Validation images, evenly over the classes."""
    exact_images: int = Field(ge=0, le=1_000_000)
    """How many of them are also compared with the true minimum among 16 regions."""

    @model_validator(mode="after")
    def _every_row_is_judged(self) -> "FaithfulnessParams":
        if self.selectors == ["filter_cam"] and self.rows != ["base"]:
            raise ValueError(f"selectors names 'filter_cam' alone, {NEEDS_FILTERS}")
        return self


def faithfulness(
    classifier: Classifier,
    split: Split,
    data: DataParams,
    masks: MaskParams,
    params: FaithfulnessParams,
    threads: int,
    filters: Tensor | None = None,
    folder: Path | None = None,
) -> dict[str, dict[str, float]]:
    """The measures of each selector on the same images: those that the model predicts correctly and confidently.

    Args:
        classifier: The model to explain.
        split: The images are chosen from it.
        data: The data set, for the parts of Codebirds.
        masks: How to search.
        params: The selectors, and the number of images.
        threads: Number of threads that render.
        filters: Filters of each class, for the selector `filter_cam`, which is left out without them.
        folder: Folder of an unfinished artifact: selectors that were measured before are not measured again.

    Raises:
        UserError: no image is predicted correctly and confidently, or every selector is left out.
    """
    if params.selectors == ["filter_cam"] and filters is None:
        raise UserError(f"faithfulness.selectors names 'filter_cam' alone, {NEEDS_FILTERS}")
    index = select_images(classifier, split, masks.confidence, params.images).index
    coarse = masks.model_copy(update={"partition": "grid", "regions": MOST_REGIONS})
    exact = index[: params.exact_images]
    smallest = kept(folder, "smallest", lambda: smallest_sizes(classifier, split, exact, coarse))

    def measured(selector: SelectorName) -> dict[str, float]:
        found = sets_of(classifier, split, index, masks.model_copy(update={"selector": selector}), filters)
        measures = {name: value for name, value in found.summary().items() if name not in NO_MEASURES}
        order = region_order(classifier, split, found, selector, masks)
        measures |= areas_under_curves(classifier, split, found, order, masks)
        if len(smallest):
            own = coarse.model_copy(update={"selector": selector})
            small = sets_of(classifier, split, index[: len(smallest)], own, filters)
            both = small.flipped & (smallest > 0)
            if bool(both.any()):
                measures["optimality_ratio"] = float(small.sizes[both].sum() / smallest[both].sum())
        return measures | against_truth(found, data, threads, 0, "validation")

    return {
        selector: kept(folder, selector, partial(measured, selector))
        for selector in params.selectors
        if selector != "filter_cam" or filters is not None
    }


def sets_of(
    classifier: Classifier, split: Split, index: Int64[Tensor, "images"], params: MaskParams, filters: Tensor | None
) -> Masks:
    """The sets that the selector of `params` chooses on some images of a split."""
    return Masks.joined(list(searched(classifier, split, index, params, filters)))


def region_order(
    classifier: Classifier, split: Split, found: Masks, selector: SelectorName, params: MaskParams
) -> Int64[Tensor, "images regions"]:
    """All regions of each image in the order of the selector that found these sets, the first to be removed first.

    The counterfactual search stops at the flip and is carried on here. The other selectors rank all regions before they
    cut their order at the flip, and their ranking is that of `effect`.
    """
    if selector == "counterfactual":
        return orders(classifier, split, found, selector, params)
    unused = found.areas == 0
    return found.effect.masked_fill(unused, -torch.inf).argsort(dim=1, descending=True, stable=True)


def areas_under_curves(
    classifier: Classifier, split: Split, masks: Masks, order: Int64[Tensor, "images regions"], params: MaskParams
) -> dict[str, float]:
    """The mean areas, in [0, 1], under p(y) over the share of the image that is inserted, or deleted, in an order."""
    scorer, device = Scorer(classifier.network, params.batch_size, fast=True), classifier.device
    images, regions = split.read(masks.index.numpy()), masks.effect.shape[1]
    masking = masked_images(
        images, classifier.statistics, device, numbers(masks.partition), regions, "mean", masks.shared
    )
    labels, order = split.labels[masks.index].to(device), order.to(device)
    inserted, deleted = (area_under(*curves(scorer, masking, labels, order, way)) for way in (True, False))
    return {"insertion_auc": float(inserted.mean()), "deletion_auc": float(deleted.mean())}


def smallest_sizes(
    classifier: Classifier, split: Split, index: Int64[Tensor, "images"], params: MaskParams
) -> Int64[Tensor, "images"]:
    """The size of the smallest flipping set of each image on a grid of 16 regions; 0 where no set flips."""
    if len(index) == 0:
        return index
    exact, images = Scorer(classifier.network, params.batch_size), split.read(index.numpy())
    partition = partitions("grid", images, MOST_REGIONS)
    statistics, device, others = classifier.statistics, classifier.device, other_images(split, index, params.baseline)
    masking = masked_images(images, statistics, device, partition, MOST_REGIONS, params.baseline, True, others)
    labels = split.labels[index].to(device)
    whole = exact.logits(masking, torch.arange(len(index), device=labels.device), torch.ones_like(masking.exists))
    inputs = SearchInputs(masking, labels, labels, log_odds(whole, labels))
    return minimum_sizes(inputs, exact, params.largest_set).cpu()


def minimum_sizes(task: SearchInputs, exact: Scorer, largest: int) -> Int64[Tensor, "images"]:
    """The size of the smallest set whose removal flips the prediction; 0 where no set of up to `largest` regions does.

    Every subset is tried, in order of size, so the result is exact.

    Raises:
        UserError: there are more than 16 regions.
    """
    regions = task.masking.regions
    if regions > MOST_REGIONS:
        raise UserError(f"the exact minimum is searched for at most {MOST_REGIONS} regions, not {regions}")
    device = task.labels.device
    sizes = torch.zeros_like(task.labels)
    for size in range(1, largest + 1):
        chosen = torch.tensor(list(combinations(range(regions), size)), device=device)
        subsets = torch.zeros(len(chosen), regions, dtype=torch.bool, device=device).scatter(1, chosen, True)
        for row in (sizes == 0).nonzero()[:, 0].tolist():
            valid = subsets[(subsets <= task.masking.exists[row]).all(dim=1)]
            if len(valid) == 0:
                continue
            logits = exact.logits(task.masking, torch.full((len(valid),), row, device=device), ~valid)
            if bool((logits.argmax(dim=1) != task.labels[row]).any()):
                sizes[row] = size
    return sizes


def against_truth(
    masks: Masks, params: DataParams, threads: int, seed: int, split: SplitName = "train"
) -> dict[str, float]:
    """How the flipping sets lie on the parts of the birds, beside random sets of equal size.

    Empty for photographs, whose causes nobody knows. The flip distance is the number of parts destroyed by the set that
    flips the prediction; a classifier that has learned every cause needs at least the distance of the code. The
    pointing game counts how often the first region touches a part.
    """
    if params.source != "codebirds" or not bool(masks.flipped.any()):
        return {}
    birds = renderer(params, threads)
    flips = masks.rows(masks.flipped.nonzero()[:, 0])
    parts = torch.from_numpy(birds.part_masks(birds.factors(split, flips.index.numpy())))
    result = {"code_distance": float(birds.code.distance)}
    for name, chosen in (("", flips.removed), ("random/", random_sets(flips.sizes, flips.areas > 0, seed))):
        measures = part_measures(flips.pixels(chosen), parts)
        result |= {f"{name}{key}": value for key, value in measures.items()}
    first = flips.pixels(torch.zeros_like(flips.removed).scatter(1, flips.order[:, :1], True)) & parts.any(dim=1)
    result["pointing_game"] = float(first.flatten(1).any(dim=1).double().mean())
    return result


def part_measures(
    masks: Bool[Tensor, "images height width"], parts: Bool[Tensor, "images parts height width"]
) -> dict[str, float]:
    """Mean overlap of masks with parts, and the mean number of parts that a mask destroys.

    `share_on_parts` is the share of the mask that lies on parts, `part_recall` the share of the parts that it covers,
    `part_iou` their intersection over union.
    """
    covered = covered_share(masks, parts)
    anywhere = parts.any(dim=1)
    hit = (masks & anywhere).sum(dim=(1, 2)).double()
    on_parts, recall = hit / masks.sum(dim=(1, 2)), hit / anywhere.sum(dim=(1, 2)).clamp_min(1)
    return {
        "share_on_parts": float(on_parts.mean()),
        "part_recall": float(recall.mean()),
        "part_iou": float((hit / (masks | anywhere).sum(dim=(1, 2))).mean()),
        "flip_distance": float((covered >= DESTROYED).sum(dim=1).double().mean()),
    }


def covered_share(
    masks: Bool[Tensor, "images height width"], parts: Bool[Tensor, "images parts height width"]
) -> Float[Tensor, "images parts"]:
    """The removed share of each part's visible pixels; 0 for a part that is not visible."""
    return (masks[:, None] & parts).sum(dim=(2, 3)) / parts.sum(dim=(2, 3)).clamp_min(1)


def validation_causes(classifier: Classifier, erasures: ValidationErasures, every: int = 1) -> dict[str, float]:
    """Completeness and the reliance on each part, from erasures of validation images, or of every n-th of them."""
    accuracies, network = {}, folded(classifier.network)
    for parts, images, labels in erasures:
        logits = logits_of_images(classifier, images[::every], network)
        accuracies[parts] = float((logits.argmax(dim=1) == labels[::every]).double().mean())
    code = erasures.code
    shares = reliance(accuracies, code.length)
    measures = {
        "completeness": completeness_score(profile(accuracies, code), code.num_classes),
        "effective_causes": effective_causes(shares),
    }
    return measures | {f"reliance/{part}": share for part, share in enumerate(shares)}


def round_metrics(
    number: int,
    classifier: Classifier,
    masks: Masks | None,
    data: DataParams,
    erasures: ValidationErasures | None,
    threads: int,
    seed: int,
) -> dict[str, float]:
    """The measures of one round, under names that begin with `round/`.

    Args:
        number: Of the round; 0 is the base.
        classifier: The model after the round.
        masks: The masks that were added before the round; None where none were.
        data: The data set, for the parts of Codebirds.
        erasures: Erasures of validation images, for completeness and reliance; None for photographs.
        threads: Number of threads that render.
        seed: Of the random sets beside the masks.

    `regions_or_more` counts images that never flip with one region more than the largest set.
    """
    measures = {"round": float(number)}
    if masks is not None:
        measures |= {"regions_or_more": size_at_flip(masks)}
        measures |= masks.summary() | against_truth(masks, data, threads, seed)
    if erasures is not None:
        measures |= validation_causes(classifier, erasures)
    return {f"round/{name}": value for name, value in measures.items()}
