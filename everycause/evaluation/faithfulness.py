"""What is watched from round to round, on training and validation images: nothing is selected by it."""

from itertools import combinations
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from codebirds.birds import Codebirds
from everycause.data.codebirds import ValidationErasures
from everycause.data.sources import DataParams, SplitName
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.explanation.masks import MaskParams, Masks, orders, searched, select_images
from everycause.explanation.objectives import log_odds
from everycause.explanation.regions import masked_images, partitions, random_sets
from everycause.explanation.scoring import Scorer
from everycause.explanation.search import SearchInputs
from everycause.explanation.selectors import area_under, curves
from everycause.models import Classifier
from everycause.params import Section
from everycause.shapes import Bool, Float, Int64
from everycause.training.rounds import size_at_flip
from everycause.tuning.trial import validation_causes

# MERGED DOC: """The true minimum, by trying every subset in order of size: for small numbers of regions, to judge the search by."""
# MERGED DOC: """Do the regions matter to the model, and do they hit what is known to matter? Only Codebirds can answer the second."""


MOST_REGIONS = 16


def minimum_sizes(task: SearchInputs, exact: Scorer, largest: int) -> Int64[Tensor, "images"]:
    """The size of the smallest set whose removal flips the prediction; 0 where no set of up to `largest` regions does.

    Raises:
        UserError: there are more than 16 regions.
    """
    regions = task.masking.regions
    if regions > MOST_REGIONS:
        raise UserError(f"the exact minimum is searched for at most {MOST_REGIONS} regions, not {regions}")
    device = task.labels.device
    sizes = torch.zeros_like(task.labels)
    for size in range(1, largest + 1):
        open_ = (sizes == 0).nonzero()[:, 0]
        chosen = torch.tensor(list(combinations(range(regions), size)), device=device)
        subsets = torch.zeros(len(chosen), regions, dtype=torch.bool, device=device).scatter(1, chosen, True)
        for row in open_.tolist():
            valid = subsets[(subsets <= task.masking.exists[row]).all(dim=1)]
            logits = (
                exact.logits(task.masking, torch.full((len(valid),), row, device=device), ~valid)
                if len(valid)
                else torch.zeros(0, 1)
            )
            if len(valid) and bool((logits.argmax(dim=1) != task.labels[row]).any()):
                sizes[row] = size
    return sizes


DESTROYED = 0.5
"""A part counts as destroyed when at least this share of its visible pixels is removed."""


class FaithfulnessParams(Section):
    """Whose explanations are judged, and on how much."""

    rows: list[str]
    """Rows whose models are explained; those that were not retrained are left out."""
    selectors: list[Literal["counterfactual", "factual", "bidirectional", "random", "grad_cam", "filter_cam"]]
    """What chooses the regions; `filter_cam` is left out for models that have no filter bank."""
    images: int = Field(ge=1)
    """Validation images, evenly over the classes."""
    exact_images: int = Field(ge=0)
    """Images on which sets are compared with the true minimum among 16 regions."""


def faithfulness(
    classifier: Classifier,
    split: Split,
    data: DataParams,
    masks: MaskParams,
    params: FaithfulnessParams,
    threads: int,
    filters: Tensor | None = None,
) -> dict[str, dict[str, float]]:
    """For each selector: flip rate, size and area at the flip, insertion and deletion AUC, the true minimum, and the truth on Codebirds.

    All selectors explain the same images: those of the split that the model predicts correctly and confidently.

    Raises:
        UserError: there are no such images.
    """
    index = select_images(classifier, split, masks.confidence, params.images).index
    coarse = masks.model_copy(update={"partition": "grid", "regions": MOST_REGIONS})
    least = _least(classifier, split, index[: params.exact_images], coarse)
    result = {}
    for selector in params.selectors:
        if selector == "filter_cam" and filters is None:
            continue
        found = Masks.joined(
            list(searched(classifier, split, index, masks.model_copy(update={"selector": selector}), filters))
        )
        measures = {
            name: value
            for name, value in found.summary().items()
            if name not in ("screened", "misclassified", "not_confident")
        }
        measures |= areas_under_curves(
            classifier, split, found, orders(classifier, split, found, selector, masks, filters), masks
        )
        if len(least):
            small = Masks.joined(
                list(
                    searched(
                        classifier,
                        split,
                        index[: len(least)],
                        coarse.model_copy(update={"selector": selector}),
                        filters,
                    )
                )
            )
            both = small.flipped & (least > 0)
            if bool(both.any()):
                measures["optimality_ratio"] = float(small.sizes[both].sum() / least[both].sum())
        result[selector] = measures | against_truth(found, data, threads, 0, "validation")
    return result


def areas_under_curves(
    classifier: Classifier, split: Split, masks: Masks, order: Int64[Tensor, "images regions"], params: MaskParams
) -> dict[str, float]:
    """Mean p(y) over the share of the image that is inserted or deleted in an order."""
    scorer, images = Scorer(classifier, params.batch_size, fast=True), split.read(masks.index.numpy())
    masking = masked_images(classifier, images, masks.partition, masks.effect.shape[1], "mean")
    labels, device = split.labels[masks.index], classifier.device
    areas = [
        area_under(*curves(scorer, masking, labels.to(device), order.to(device), insertion))
        for insertion in (True, False)
    ]
    return {"insertion_auc": float(areas[0].mean()), "deletion_auc": float(areas[1].mean())}


def _least(
    classifier: Classifier, split: Split, index: Int64[Tensor, "images"], params: MaskParams
) -> Int64[Tensor, "images"]:
    """The true minimum of each image; 0 where no set flips it."""
    if len(index) == 0:
        return index
    exact, images = Scorer(classifier, params.batch_size), split.read(index.numpy())
    masking = masked_images(classifier, images, partitions("grid", images, MOST_REGIONS), MOST_REGIONS, "mean")
    labels = split.labels[index].to(classifier.device)
    whole = exact.logits(masking, torch.arange(len(index), device=labels.device), torch.ones_like(masking.exists))
    return minimum_sizes(
        SearchInputs(masking, labels, labels, log_odds(whole, labels)), exact, params.largest_set
    ).cpu()


def against_truth(
    masks: Masks, params: DataParams, threads: int, seed: int, split: SplitName = "train"
) -> dict[str, float]:
    """Measures of the flipped sets against the parts of the birds, beside random sets of equal size.

    Nothing for a folder of photos, whose causes nobody knows. The flip distance is the number of parts destroyed by the
    set that flips the prediction; a classifier that has learned every cause needs at least the code's distance.
    """
    if params.source != "codebirds" or not bool(masks.flipped.any()):
        return {}
    birds = Codebirds(params.codebirds, threads)
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
    """Share of the mask that lies on parts, share of the parts that it covers, their IoU, and the number of parts it destroys."""
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


def round_metrics(
    number: int,
    classifier: Classifier,
    masks: Masks | None,
    data: DataParams,
    erasures: ValidationErasures | None,
    threads: int,
    seed: int,
) -> dict[str, float]:
    """The model after a round (0: the base) and the masks that joined the pool before it; causes where there are erasures.

    `regions_or_more` counts images that never flip with one more than the largest set.
    """
    measures = {"round": float(number)}
    if masks is not None:
        measures |= (
            {"regions_or_more": size_at_flip(masks)} | masks.summary() | against_truth(masks, data, threads, seed)
        )
    if erasures is not None:
        measures |= validation_causes(classifier, erasures)
    return {f"round/{name}": value for name, value in measures.items()}
