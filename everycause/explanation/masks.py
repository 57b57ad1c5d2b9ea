"""Counterfactual masks: the regions of each image whose removal flips its prediction, for many images of a split.

`generate` searches shard by shard: memory does not grow with the number of images, and a killed run goes on after its
last finished shard. Several processes divide a shard. One image of any network is explained by everycause.explainer.

Paper: arXiv 2511.12100 (SS-CA, Counterfactual LIMA); differences are listed in docs/deviations.md.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from everycause import ranks
from everycause.artifacts import is_whole, part
from everycause.data.split import Split
from everycause.explanation.image_selection import select_images
from everycause.explanation.mask_sets import FILE, Masks
from everycause.explanation.objectives import ObjectiveName, log_odds, runner_up
from everycause.explanation.partitions import numbers
from everycause.explanation.ranking import FidoParams
from everycause.explanation.regions import (
    BaselineName,
    PartitionKind,
    as_sets,
    is_shared,
    largest_set,
    masked_images,
    other_images,
    partitions,
)
from everycause.explanation.scoring import Scorer
from everycause.explanation.search import Method, SearchInputs, search
from everycause.explanation.selectors import SELECTORS, Request, SelectorName, cut_at_flip
from everycause.models import Classifier
from everycause.params import Section
from everycause.precision import Precision
from everycause.shapes import Float, Int64

SEARCHED_TOGETHER = 512
"""Images per search: more are not faster, and memory grows with them."""


class MaskParams(Section):
    """How the regions of an image are searched."""

    selector: SelectorName
    """How regions are chosen: by the counterfactual search, or by one of the rankings that it is compared with."""
    objective: ObjectiveName
    """The set function that the counterfactual search maximizes."""
    search: Method
    """`fast`; `exhaustive` tries every region in every step; `greedy` is the same without pruning, as published."""
    partition: PartitionKind
    """`grid`, or `slico` superpixels."""
    regions: int = Field(ge=4, le=400)
    """Regions of an image, N; a square number for a grid."""
    baseline: BaselineName
    """Baseline pixel values for removed regions: `mean` color of the data set, `zeros` (black), `blur` (the blurred
    image), `background` (another training image)."""
    confidence: float = Field(ge=0, lt=1)
    """Only images that are predicted correctly with p(y) above this are searched."""
    max_regions: int = Field(ge=1, le=400)
    """The most regions a set may have; at most a quarter of the regions is ever removed."""
    images: int = Field(ge=1, le=100_000_000)
    """The most images that are searched, evenly over the classes."""
    shard: int = Field(ge=1, le=1_000_000)
    """Images per file; a killed run goes on after its last finished file."""
    batch_size: int = Field(ge=1, le=100_000)
    """Masked images per forward pass."""
    precision: Precision
    """Of proposals: 16 bits are faster on a GPU; every set is confirmed and pruned with the stored float32 model."""
    compiled: bool
    """Whether torch.compile is used, which pays from some ten thousand images on."""
    fido: FidoParams

    @property
    def largest_set(self) -> int:
        """min(max_regions, ⌊N/4⌋), but at least one."""
        return largest_set(self.regions, self.max_regions)


def scorers(classifier: Classifier, params: MaskParams) -> tuple[Scorer, Scorer]:
    """The accelerated scorer, which proposes, and the exact one, which confirms."""
    fast = Scorer(
        classifier.network, params.batch_size, fast=True, precision=params.precision, compiled=params.compiled
    )
    return fast, Scorer(classifier.network, params.batch_size)


def generate(
    classifier: Classifier, split: Split, params: MaskParams, folder: Path, model: str, filters: Tensor | None = None
) -> Masks:
    """Search images of a split, write the shards that are not in `folder` yet, and read all shards back.

    Args:
        classifier: The model to explain.
        split: The images.
        params: How to search.
        folder: The folder of the shards.
        model: Fingerprint of the model.
        filters: Filters of each class, for the selector `filter_cam`.

    Raises:
        UserError: nothing is to be searched, or the regions do not fit the images.
    """
    selection = select_images(classifier, split, params.confidence, params.images)
    for number, index in enumerate(selection.index.split(params.shard)):
        file = folder / FILE.format(number)
        if not ranks.decided(partial(is_whole, file)):
            chunks = tqdm(
                searched(classifier, split, own := ranks.own_part(index), params, filters),
                desc=f"searching masks, shard {number + 1}", total=-(-len(own) // SEARCHED_TOGETHER),
                disable=ranks.without_progress(),
            )  # fmt: skip
            found = replace(Masks.joined(ranks.joined(list(chunks))), selection_counts=selection.counts)
            if ranks.is_first():
                with part(file) as writing:
                    found.save(writing, model, split.identity)
    ranks.wait()
    return Masks.load(folder, model, split.identity)


def searched(
    classifier: Classifier,
    split: Split,
    index: Int64[Tensor, "images"],
    params: MaskParams,
    filters: Tensor | None = None,
) -> Iterator[Masks]:
    """The masks of some images of a split, which the model predicts correctly; up to 512 images at a time.

    Raises:
        UserError: the regions do not fit the images.
    """
    scorer, exact = scorers(classifier, params)
    for rows in index.split(SEARCHED_TOGETHER) if len(index) else ():
        images, others = split.read(rows.numpy()), other_images(split, rows, params.baseline)
        partition, shared = partitions(params.partition, images, params.regions), is_shared(params.partition)
        statistics, device = classifier.statistics, classifier.device
        masking = masked_images(images, statistics, device, partition, params.regions, params.baseline, shared, others)
        labels = split.labels[rows].to(classifier.device)
        everyone = torch.arange(len(rows), device=classifier.device)
        whole = exact.logits(masking, everyone, torch.ones_like(masking.exists))
        task = SearchInputs(masking, labels, runner_up(whole, labels), log_odds(whole, labels))
        largest, objective = params.largest_set, params.objective
        request = Request(task, scorer, exact, classifier, rows, largest, objective, filters, split, params.fido)
        yield _masks(request, whole, params)


def orders(
    classifier: Classifier,
    split: Split,
    masks: Masks,
    selector: SelectorName,
    params: MaskParams,
    filters: Tensor | None = None,
) -> Int64[Tensor, "images regions"]:
    """All regions of images that were searched before, in the order of another selector, the first to be removed first.

    Raises:
        UserError: the selector needs what is not there.
    """
    (scorer, exact), device, found = scorers(classifier, params), classifier.device, []
    progress = tqdm(
        torch.arange(len(masks.index)).split(SEARCHED_TOGETHER), desc=f"ranking by {selector}", disable=None
    )
    for rows in progress:
        part, index = masks.rows(rows), masks.index[rows]
        images, others = split.read(index.numpy()), other_images(split, index, params.baseline)
        regions = part.effect.shape[1]
        masking = masked_images(
            images,
            classifier.statistics,
            device,
            numbers(part.partition),
            regions,
            params.baseline,
            part.shared,
            others,
        )
        unknown = torch.zeros(len(rows), device=device)  # rankings do not read the log-odds of the whole image
        task = SearchInputs(masking, split.labels[index].to(device), part.runner_up.to(device), unknown)
        steps = masks.order.shape[1]
        request = Request(task, scorer, exact, classifier, index, steps, params.objective, filters, split, params.fido)
        found.append(SELECTORS[selector](request).order.cpu())
    return torch.cat(found)


def _masks(request: Request, whole: Float[Tensor, "images classes"], params: MaskParams) -> Masks:
    """The masks of images that are searched together; `whole` are the logits of the whole images."""
    task, exact = request.task, request.exact
    if params.selector == "counterfactual":
        found = search(task, request.scorer, exact, params.objective, params.largest_set, params.search)
    else:
        found = cut_at_flip(request, SELECTORS[params.selector](request), params.largest_set)
    everyone = torch.arange(len(task.labels), device=task.labels.device)
    pair = torch.stack([task.labels, task.runner_up], dim=1)
    after = (
        exact.logits(task.masking, everyone, ~as_sets(found.order, task.masking.regions)).softmax(dim=1).gather(1, pair)
    )
    return Masks(
        index=request.index,
        order=found.order.cpu(),
        flipped=found.flipped.cpu(),
        runner_up=task.runner_up.cpu(),
        before=whole.softmax(dim=1).gather(1, pair).cpu(),
        after=after.cpu(),
        effect=found.effect.cpu(),
        areas=task.masking.areas.contiguous().cpu(),
        forwards=(found.forwards + 2).cpu(),  # the whole image and the final set
        partition=task.masking.partition.cpu().to(torch.uint16),
        shared=task.masking.shared,
        selection_counts=torch.zeros(3, dtype=torch.int64),
    )
