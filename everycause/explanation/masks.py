"""Counterfactual region search: the few regions whose removal flips a prediction.

    min |S|  subject to  argmax f(x \\ S) ≠ y

by exhaustive greedy maximization of 1 − p(y | x \\ S): in every step each remaining region is tried, the one that leaves
the lowest p(y) is taken (ties: the lowest number), and the search ends at a true flip of the prediction or after
`max_regions`. Many images advance in lock-step; every forward pass has the same shape, so that neither the other images
nor the number of images can change a result.

Paper: arXiv 2511.12100 (SS-CA, Counterfactual LIMA); differences are listed in reports/deviations.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from everycause.artifact import load_explanation, save_tensors
from everycause.data.batches import normalized
from everycause.data.split import Split
from everycause.explanation.regions import grid
from everycause.hooks import evaluating
from everycause.inference import logits_of
from everycause.model import Classifier
from everycause.section import Section

FILE = "masks.safetensors"
LOCKSTEP = 128
"""Images that advance together."""


class MaskParams(Section):
    """The search."""

    objective: Literal["deletion"]
    """The set function: 1 − p(y) with the set removed."""
    grid: int = Field(ge=2, le=32)
    """Regions along each side."""
    fill: Literal["mean"]
    """What stands in for a removed region while searching: the data set's mean color."""
    confidence: float = Field(ge=0, lt=1)
    """Only correct predictions with p(y) above this are searched."""
    max_regions: int = Field(ge=1)
    """The most regions a set may have; at most a quarter of the regions is ever removed."""
    images: int = Field(ge=1)
    """The most images that are searched, evenly over the classes."""
    batch_size: int = Field(ge=1)
    """Masked images per forward pass."""

    @property
    def largest_set(self) -> int:
        """min(max_regions, ⌊N/4⌋), but at least one."""
        return max(1, min(self.max_regions, self.grid**2 // 4))


@dataclass(frozen=True)
class Masks:
    """What a search found, one row per searched image."""

    index: Int64[Tensor, "images"]
    """In the training split."""
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
    """|p(y | x) − p(y | x without the region)| of each single region."""
    forwards: Int64[Tensor, "images"]
    """Masked images evaluated."""
    partition: Int64[Tensor, "height width"]
    """The region of each pixel."""
    model: str
    """Fingerprint of the explained model."""

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

    def summary(self) -> dict[str, float]:
        """The search in a few numbers."""
        flipped = self.sizes[self.flipped].double()
        return {
            "searched": float(len(self.index)),
            "flip_rate": float(self.flipped.double().mean()),
            "regions_at_flip": float(flipped.mean()) if len(flipped) else 0.0,
            "area_at_flip": float(flipped.mean()) / self.effect.shape[1] if len(flipped) else 0.0,
            "forwards_per_image": float(self.forwards.double().mean()),
        }

    def save(self, folder: Path) -> None:
        """Write everything into a folder, as one file."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        save_tensors(folder / FILE, tensors, {"model": self.model})

    @classmethod
    def load(cls, folder: Path, model: str) -> "Masks":
        """Saved masks of the model with this fingerprint.

        Raises:
            ValueError: there are none, or they belong to another model.
        """
        return cls(**load_explanation(folder / FILE, "generate_masks", model), model=model)


def evenly_over_classes(index: Int64[Tensor, "eligible"], labels: Int64[Tensor, "images"], count: int) -> Int64[Tensor, "chosen"]:
    """At most `count` of some images: the first of every class, then the second of every class, and so on; in index order."""
    one_hot = torch.nn.functional.one_hot(labels[index], int(labels.max()) + 1)
    rank_in_class = (one_hot.cumsum(dim=0) * one_hot).sum(dim=1)
    return index[rank_in_class.argsort(stable=True)[:count]].sort().values


class Found(NamedTuple):
    """The result for a batch of images; the fields are those of Masks."""

    order: Int64[Tensor, "images steps"]
    flipped: Bool[Tensor, "images"]
    after: Float[Tensor, "images 2"]
    effect: Float[Tensor, "images regions"]
    forwards: Int64[Tensor, "images"]


def generate(classifier: Classifier, split: Split, params: MaskParams, model: str) -> Masks:
    """Search `params.images` of the correct and confident images of a split, as many of each class as there are.

    Raises:
        ValueError: no image is correct and confident, or an image is smaller than the grid.
    """
    partition = grid(split.image_size, params.grid)
    probabilities = logits_of(classifier, split).softmax(dim=1)
    confidence = probabilities.gather(1, split.labels[:, None])[:, 0]
    eligible = (probabilities.argmax(dim=1) == split.labels) & (confidence > params.confidence)
    index = evenly_over_classes(eligible.nonzero()[:, 0], split.labels, params.images)
    if len(index) == 0:
        raise ValueError(f"no image of '{split.name}' is predicted correctly with p(y) > {params.confidence}: train longer or lower masks.confidence")
    runner_up = probabilities[index].scatter(1, split.labels[index][:, None], -1).argmax(dim=1)
    before = probabilities[index].gather(1, torch.stack([split.labels[index], runner_up], dim=1))
    found = []
    for rows in tqdm(torch.arange(len(index)).split(LOCKSTEP), desc="searching masks", disable=None):
        images = normalized(split.read(index[rows].numpy()), classifier.statistics, classifier.device)
        found.append(search(classifier, images, split.labels[index[rows]], runner_up[rows], before[rows, 0], partition, params))
    order, flipped, after, effect, forwards = (torch.cat(columns) for columns in zip(*found, strict=True))
    return Masks(index, order, flipped, runner_up, before, after, effect, forwards, partition, model)


@torch.inference_mode()
def search(
    classifier: Classifier,
    images: Float[Tensor, "images 3 height width"],
    labels: Int64[Tensor, "images"],
    runner_up: Int64[Tensor, "images"],
    confidence: Float[Tensor, "images"],
    partition: Int64[Tensor, "height width"],
    params: MaskParams,
) -> Found:
    """Exhaustive greedy deletion on normalized images whose predictions are `labels` with probability `confidence`."""
    count, regions, steps = len(images), int(partition.max()) + 1, params.largest_set
    removed = torch.zeros(count, regions, dtype=torch.bool)
    order = torch.full((count, steps), -1)
    flipped, forwards = torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.int64)
    after, effect = torch.zeros(count, 2), torch.zeros(count, regions)
    for step in range(steps):
        owner, region = (~removed & ~flipped[:, None]).nonzero(as_tuple=True)
        if len(owner) == 0:
            break
        candidates = removed[owner]
        candidates[torch.arange(len(owner)), region] = True
        probabilities = masked_probabilities(classifier, images, owner, candidates, partition, params.batch_size)
        score = torch.full((count, regions), torch.inf)
        score[owner, region] = probabilities[torch.arange(len(owner)), labels[owner]]
        if step == 0:
            effect = (confidence[:, None] - score).abs()
        active = ~flipped
        best = score.argmin(dim=1)  # the first of equal values, so the lowest region
        row_of = torch.full((count, regions), -1)
        row_of[owner, region] = torch.arange(len(owner))
        chosen = probabilities[row_of[active, best[active]]]
        removed[active, best[active]] = True
        order[active, step] = best[active]
        after[active] = chosen.gather(1, torch.stack([labels, runner_up], dim=1)[active])
        forwards += torch.bincount(owner, minlength=count)
        flipped[active] = chosen.argmax(dim=1) != labels[active]
    return Found(order, flipped, after, effect, forwards)


def masked_probabilities(
    classifier: Classifier,
    images: Float[Tensor, "images 3 height width"],
    owner: Int64[Tensor, "candidates"],
    removed: Bool[Tensor, "candidates regions"],
    partition: Int64[Tensor, "height width"],
    batch_size: int,
) -> Float[Tensor, "candidates classes"]:
    """Probabilities of image `owner` with regions `removed` set to the mean color (0 after normalization)."""
    device = images.device
    partition, results = partition.to(device), []
    with evaluating(classifier):
        for owners, sets in _padded(owner, removed, batch_size):
            visible = ~sets.to(device)[:, partition]
            masked = (images[owners.to(device)] * visible[:, None]).contiguous(memory_format=torch.channels_last)
            results.append(classifier(masked).float().softmax(dim=1).cpu())
    return torch.cat(results)[: len(owner)]


def _padded(owner: Tensor, removed: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks of exactly `size` rows; the last one is filled up with copies of its last row."""
    for start in range(0, len(owner), size):
        rows = torch.arange(start, start + size).clamp_max(len(owner) - 1)
        yield owner[rows], removed[rows]
