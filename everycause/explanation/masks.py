"""Counterfactual masks: for each image the regions whose removal flips its prediction.

`generate` searches a split shard by shard: memory does not grow with the number of images, and a killed run goes on after
its last finished shard. `explain` searches one image.

Paper: arXiv 2511.12100 (SS-CA, Counterfactual LIMA); differences are listed in reports/deviations.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from everycause.artifacts import load_explanation, load_tensors, save_tensors
from everycause.data.split import Images, Split, batches
from everycause.errors import UserError
from everycause.explanation.objectives import ObjectiveName, log_odds
from everycause.explanation.regions import BaselineName, PartitionKind, masked_images, other_images, partitions
from everycause.explanation.scoring import Precision, Scorer
from everycause.explanation.search import Method, SearchInputs, search
from everycause.explanation.selectors import SELECTORS, Request, SelectorName, cut_at_flip
from everycause.inference import batch_size, logits_of_images
from everycause.models import Classifier
from everycause.params import Section
from everycause.shapes import Bool, Float, Int64, UInt8

# MERGED DOC: """Which images are worth a search: correct and confident ones, evenly over the classes. Memory does not grow with the classes."""


class ImageSelection(NamedTuple):
    """Which images are worth a search."""

    index: Int64[Tensor, "chosen"]
    """In the split, in order."""
    counts: Int64[Tensor, "3"]
    """Images looked at, predicted wrongly, predicted rightly but without confidence."""


def select_images(classifier: Classifier, split: Split, confidence: float, images: int) -> ImageSelection:
    """The images that are predicted correctly with more than `confidence`, at most `images`, evenly over the classes.

    Raises:
        UserError: there are none.
    """
    correct, confident = [], []
    for batch in batches(split, 8 * batch_size(classifier)):
        probability, prediction = logits_of_images(classifier, batch.images).softmax(dim=1).max(dim=1)
        correct.append(prediction == batch.labels)
        confident.append(correct[-1] & (probability > confidence))
    right, eligible = torch.cat(correct), torch.cat(confident)
    counts = torch.tensor([len(right), int((~right).sum()), int((right & ~eligible).sum())])
    index = evenly_over_classes(eligible.nonzero()[:, 0], split.labels, images)
    if len(index) == 0:
        raise UserError(
            f"no image of '{split.name}' is predicted correctly with p(y) > {confidence}: train longer or lower masks.confidence"
        )
    return ImageSelection(index, counts)


def evenly_over_classes(
    index: Int64[Tensor, "eligible"], labels: Int64[Tensor, "images"], count: int
) -> Int64[Tensor, "chosen"]:
    """At most `count` of some images: the first of every class, then the second of every class, and so on; in index order."""
    own = labels[index]
    by_class = own.argsort(stable=True)
    sizes = torch.bincount(own, minlength=int(labels.max()) + 1)
    rank_in_class = torch.empty_like(index)
    rank_in_class[by_class] = torch.arange(len(index)) - (sizes.cumsum(dim=0) - sizes)[own[by_class]]
    return index[rank_in_class.argsort(stable=True)[:count]].sort().values


FILE = "masks-{:05d}.safetensors"
TOGETHER = 512
"""Images that are searched together."""


class MaskParams(Section):
    """The search."""

    selector: SelectorName
    """What chooses the regions: the counterfactual search, or one of the rankings that it is compared with."""
    objective: ObjectiveName
    """The set function that the counterfactual search maximizes."""
    search: Method
    """`fast`; `exhaustive` tries every region in every step; `greedy` is the same without pruning, as published."""
    partition: PartitionKind
    """`grid`, or `slico` superpixels."""
    regions: int = Field(ge=4, le=400)
    """Regions of an image, N; a square number for a grid."""
    baseline: BaselineName
    """What stands in for a removed region while searching: the data set's mean color, black, the blurred image, another training image."""
    confidence: float = Field(ge=0, lt=1)
    """Only correct predictions with p(y) above this are searched."""
    max_regions: int = Field(ge=1)
    """The most regions a set may have; at most a quarter of the regions is ever removed."""
    images: int = Field(ge=1)
    """The most images that are searched, evenly over the classes."""
    shard: int = Field(ge=1)
    """Images per file; a killed run goes on after its last finished file."""
    batch_size: int = Field(ge=1)
    """Masked images per forward pass."""
    precision: Precision
    """bfloat16 proposes faster on a GPU; every set is confirmed and pruned with the stored float32 model."""
    compiled: bool
    """torch.compile, which pays from some ten thousand images on."""

    @property
    def largest_set(self) -> int:
        """min(max_regions, ⌊N/4⌋), but at least one."""
        return max(1, min(self.max_regions, self.regions // 4))


EXPLAIN = MaskParams(
    selector="counterfactual", objective="deletion", search="fast", partition="grid", regions=49, baseline="mean", confidence=0.0, max_regions=12, images=1, shard=1,
    batch_size=64, precision="float32", compiled=False,
)  # fmt: skip
"""How `explain` searches unless told otherwise."""


@dataclass(frozen=True)
class Masks:
    """What a search found, one row per searched image."""

    index: Int64[Tensor, "images"]
    """In the split."""
    order: Int64[Tensor, "images steps"]
    """The regions in the order of their removal; −1 after the end."""
    flipped: Bool[Tensor, "images"]
    """Whether the removal changes the prediction."""
    runner_up: Int64[Tensor, "images"]
    """The second most probable class of the whole image, c."""
    before: Float[Tensor, "images 2"]
    """p(y) and p(c) of the whole image."""
    after: Float[Tensor, "images 2"]
    """p(y) and p(c) with the set removed."""
    effect: Float[Tensor, "images regions"]
    """How much each single region matters to the log-odds of y, at least 0 (to first order, unless the search is exhaustive)."""
    areas: Float[Tensor, "images regions"]
    """Share of the image that each region covers; 0 for a number that the image does not use."""
    forwards: Int64[Tensor, "images"]
    """Forward passes spent."""
    partition: Int64[Tensor, "partitions height width"]
    """The region of each pixel: one partition for all images, or one for each."""
    selection_counts: Int64[Tensor, "3"]
    """Images looked at, predicted wrongly, predicted rightly but without confidence."""

    @property
    def removed(self) -> Bool[Tensor, "images regions"]:
        """The sets as indicators."""
        sets = torch.zeros(len(self.index), self.effect.shape[1] + 1, dtype=torch.bool)
        sets[torch.arange(len(self.index))[:, None], self.order] = True  # −1 lands in the last column
        return sets[:, :-1]

    @property
    def sizes(self) -> Int64[Tensor, "images"]:
        """Number of regions in each set."""
        return (self.order >= 0).sum(dim=1)

    def pixels(self, sets: Bool[Tensor, "images regions"]) -> Bool[Tensor, "images height width"]:
        """Sets of regions as pixel masks."""
        partition = self.partition.expand(len(sets), -1, -1)
        return sets.gather(1, partition.flatten(1)).view(partition.shape)

    def rows(self, index: Tensor) -> "Masks":
        """Some of the images."""
        whole = {"screened"} | ({"partition"} if len(self.partition) == 1 else set())
        return Masks(**{name: value if name in whole else value[index] for name, value in vars(self).items()})

    def summary(self) -> dict[str, float]:
        """The search in a few numbers."""
        flipped = self.sizes[self.flipped].double()
        area = (self.removed * self.areas).sum(dim=1)[self.flipped].double()
        looked, wrong, unsure = self.selection_counts.tolist()
        return {
            "screened": looked, "misclassified": wrong, "not_confident": unsure, "searched": float(len(self.index)),
            "flip_rate": float(self.flipped.double().mean()),
            "regions_at_flip": float(flipped.mean()) if len(flipped) else 0.0,
            "area_at_flip": float(area.mean()) if len(flipped) else 0.0,
            "forwards_per_image": float(self.forwards.double().mean()),
        }  # fmt: skip

    def save(self, path: Path, model: str, data: str) -> None:
        """Write everything into one file; it is there whole or not at all."""
        partial = path.with_suffix(".writing")
        save_tensors(partial, dict(vars(self)), {"model": model, "data": data})
        partial.rename(path)

    @classmethod
    def load(cls, folder: Path, model: str, data: str) -> "Masks":
        """All shards in a folder, of the model and the data with these fingerprints.

        Raises:
            UserError: there are none, or they belong to another model or to other data.
        """
        files = sorted(folder.glob(FILE.format(0).replace("00000", "*"))) or [folder / FILE.format(0)]
        return cls.joined([cls(**load_explanation(file, "generate_masks", model, data)) for file in files])

    @classmethod
    def read(cls, path: Path) -> "Masks":
        """One file, whatever it belongs to."""
        return cls(**load_tensors(path, "generate_masks")[0])

    @classmethod
    def joined(cls, shards: list["Masks"]) -> "Masks":
        """The rows of several shards of one search."""
        first = shards[0]
        whole = {"screened"} | ({"partition"} if len(first.partition) == 1 else set())
        names = [field.name for field in fields(cls)]
        return cls(
            **{
                name: getattr(first, name) if name in whole else torch.cat([getattr(shard, name) for shard in shards])
                for name in names
            }
        )


def generate(
    classifier: Classifier, split: Split, params: MaskParams, folder: Path, model: str, filters: Tensor | None = None
) -> Masks:
    """Search images of a split and write the shards that are not in `folder` yet; the shards read back.

    Args:
        classifier: The model to explain.
        split: The images.
        params: How to search.
        folder: Where the shards go.
        model: Fingerprint of the model.
        filters: Filters of each class, for the selector `filter_cam`.

    Raises:
        UserError: nothing is to be searched, or the regions do not fit the images.
    """
    selection = select_images(classifier, split, params.confidence, params.images)
    for number, index in enumerate(selection.index.split(params.shard)):
        file = folder / FILE.format(number)
        if not file.is_file():
            chunks = tqdm(
                searched(classifier, split, index, params, filters),
                total=-(-len(index) // TOGETHER),
                desc=f"searching masks, shard {number + 1}",
                disable=None,
            )
            replace(Masks.joined(list(chunks)), selection_counts=selection.counts).save(file, model, split.identity)
    return Masks.load(folder, model, split.identity)


def searched(
    classifier: Classifier,
    split: Split,
    index: Int64[Tensor, "images"],
    params: MaskParams,
    filters: Tensor | None = None,
) -> Iterator[Masks]:
    """The masks of some images of a split, which the model predicts correctly, some at a time.

    Raises:
        UserError: the regions do not fit the images.
    """
    scorer = Scorer(classifier, params.batch_size, fast=True, precision=params.precision, compiled=params.compiled)
    exact = Scorer(classifier, params.batch_size)
    for rows in index.split(TOGETHER):
        images, labels = split.read(rows.numpy()), split.labels[rows]
        yield _searched(
            scorer, exact, rows, images, labels, other_images(split, rows, params.baseline), params, filters
        )


def orders(
    classifier: Classifier,
    split: Split,
    masks: Masks,
    selector: SelectorName,
    params: MaskParams,
    filters: Tensor | None = None,
) -> Int64[Tensor, "images regions"]:
    """The regions of images that were searched before, in the order of another selector.

    Raises:
        UserError: the selector needs what is not there.
    """
    scorer = Scorer(classifier, params.batch_size, fast=True, precision=params.precision, compiled=params.compiled)
    exact, found = Scorer(classifier, params.batch_size), []
    for rows in tqdm(torch.arange(len(masks.index)).split(TOGETHER), desc=f"ranking by {selector}", disable=None):
        part, index = masks.rows(rows), masks.index[rows]
        masking = masked_images(
            classifier,
            split.read(index.numpy()),
            part.partition,
            part.effect.shape[1],
            params.baseline,
            other_images(split, index, params.baseline),
        )
        device = classifier.device
        task = SearchInputs(
            masking, split.labels[index].to(device), part.runner_up.to(device), torch.zeros(len(rows), device=device)
        )
        found.append(
            SELECTORS[selector](
                Request(task, scorer, exact, index, masks.order.shape[1], params.objective, filters)
            ).order.cpu()
        )
    return torch.cat(found)


def _searched(
    scorer: Scorer,
    exact: Scorer,
    rows: Tensor,
    images: Images,
    labels: Tensor,
    baseline: Images | None,
    params: MaskParams,
    filters: Tensor | None,
) -> Masks:
    """The masks of images that are searched together."""
    classifier = exact.classifier
    partition = partitions(params.partition, images, params.regions)
    masking = masked_images(classifier, images, partition, params.regions, params.baseline, baseline)
    labels, everyone = labels.to(classifier.device), torch.arange(len(images), device=classifier.device)
    whole = exact.logits(masking, everyone, torch.ones_like(masking.exists))
    runner_up = whole.scatter(1, labels[:, None], -torch.inf).argmax(dim=1)
    task = SearchInputs(masking, labels, runner_up, log_odds(whole, labels))
    if params.selector == "counterfactual":
        found = search(task, scorer, exact, params.objective, params.largest_set, params.search)
    else:
        request = Request(task, scorer, exact, rows, params.largest_set, params.objective, filters)
        found = cut_at_flip(request, SELECTORS[params.selector](request), params.largest_set)
    sets = torch.zeros(len(rows), masking.regions + 1, dtype=torch.bool, device=classifier.device).scatter(
        1, found.order % (masking.regions + 1), True
    )[:, :-1]
    pair = torch.stack([labels, runner_up], dim=1)
    after = exact.logits(masking, everyone, ~sets).softmax(dim=1).gather(1, pair)
    columns = (
        rows,
        found.order,
        found.flipped,
        runner_up,
        whole.softmax(dim=1).gather(1, pair),
        after,
        found.effect,
        masking.areas.contiguous(),
    )
    forwards = found.forwards + 2  # the whole image and the final set
    return Masks(
        *(column.cpu() for column in columns),
        forwards.cpu(),
        masking.partition.cpu(),
        torch.zeros(3, dtype=torch.int64),
    )


class Explanation(NamedTuple):
    """Why one image is what it is to a model: what must go before the prediction does."""

    label: int
    """The prediction."""
    flipped: bool
    """Whether a set was found."""
    order: list[int]
    """The regions in the order of their removal."""
    regions: Bool[np.ndarray, "height width"]
    """The pixels of the set."""
    probabilities: Float[np.ndarray, "steps classes"]
    """Of the whole image, then after each removal."""
    partition: Int64[np.ndarray, "height width"]
    """The region of each pixel."""
    forwards: int
    """Forward passes spent on the search."""


def explain(
    classifier: Classifier,
    image: UInt8[Tensor, "3 height width"],
    label: int | None = None,
    params: MaskParams = EXPLAIN,
) -> Explanation:
    """The regions of one image whose removal flips its prediction.

    Raises:
        UserError: `label` is given and the image is misclassified already, or the settings need more than one image.
    """
    if params.baseline == "background" or params.selector == "filter_cam":
        raise UserError(
            "one image has no other images to take background or filters from: choose another fill or selector"
        )
    exact = Scorer(classifier, params.batch_size)
    prediction = int(logits_of_images(classifier, image[None]).argmax())
    if label is not None and label != prediction:
        names = classifier.class_names
        raise UserError(
            f"the image is already misclassified ('{names[prediction]}' instead of '{names[label]}'), so there is no prediction to flip"
        )
    labels = torch.tensor([prediction])
    scorer = Scorer(classifier, params.batch_size, fast=True, precision=params.precision)
    masks = _searched(scorer, exact, torch.zeros(1, dtype=torch.int64), image[None], labels, None, params, None)
    order = masks.order[0][masks.order[0] >= 0]
    steps = torch.ones(len(order) + 1, params.regions, dtype=torch.bool)
    for step, region in enumerate(order.tolist(), 1):
        steps[step:, region] = False
    masking = masked_images(classifier, image[None], masks.partition, params.regions, params.baseline)
    probabilities = exact.logits(
        masking, torch.zeros(len(steps), dtype=torch.int64, device=classifier.device), steps.to(classifier.device)
    ).softmax(dim=1)
    return Explanation(
        prediction, bool(masks.flipped[0]), order.tolist(), masks.pixels(masks.removed)[0].numpy(), probabilities.cpu().numpy(), masks.partition[0].numpy(), int(masks.forwards[0])
    )  # fmt: skip
