"""Counterfactual images: the regions that a prediction hangs on, replaced by natural background.

Paper: arXiv 2511.12100. Where the background comes from is left open there; here it is a bank: for each region, the
training images that lose it with the least change of their prediction, whatever their class. A donor is drawn anew for
each region each time that an image is shown, independently of the image's class, so that the fill tells nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from pydantic import Field
from torch import Tensor

from everycause.data.batches import Statistics, draw_geometry, transformed
from everycause.data.split import Images, Split
from everycause.section import Section


class FillParams(Section):
    """What stands in for a removed region in a counterfactual image."""

    source: Literal["bank", "mean"]
    """`bank`: natural background of other training images; `mean`: the data set's mean color."""
    donors: Literal["any_class", "other_class"]
    """Whether donors are independent of the class, or never of the image's own class."""
    donor_share: float = Field(gt=0, le=1)
    """Share of the searched images that donate a region: those that it matters least to."""
    scene_share: float = Field(gt=0, lt=1)
    """Share of the regions, least important first, that rows of extent `scene` replace as well."""
    augment_rate: float = Field(ge=0, le=1)
    """Probability that an image with a mask is shown with its counterfactual."""


@dataclass(frozen=True)
class Bank:
    """Natural background, region by region.

    Raises:
        ValueError: no donor of another class exists for some region (donors: other_class).
    """

    images: UInt8[Tensor, "donors 3 height width"]
    labels: Int64[Tensor, "donors"]
    ranked: Int64[Tensor, "regions kept"]
    """For each region its donors, best first."""
    partition: Int64[Tensor, "height width"]
    """The region of each pixel."""
    other_class: bool
    """Whether a donor must be of another class."""

    def __post_init__(self) -> None:
        if self.other_class and any(len(set(row)) < 2 for row in self.labels[self.ranked].tolist()):
            raise ValueError("fill.donors is 'other_class', but some region has donors of one class only: raise fill.donor_share or search more images")

    def draw(self, labels: Int64[Tensor, "batch"], generator: torch.Generator) -> Images:
        """A background for each image: every region from a donor of its own."""
        regions, kept = self.ranked.shape
        pick = torch.randint(kept, (len(labels), regions), generator=generator)
        donors = self.ranked[torch.arange(regions), pick]
        while self.other_class and bool((same := self.labels[donors] == labels[:, None]).any()):
            pick = torch.where(same, torch.randint(kept, pick.shape, generator=generator), pick)
            donors = self.ranked[torch.arange(regions), pick]
        rows, columns = torch.meshgrid(*(torch.arange(side) for side in self.partition.shape), indexing="ij")
        return self.images.permute(0, 2, 3, 1)[donors[:, self.partition], rows, columns].permute(0, 3, 1, 2)


def background_bank(
    split: Split, searched: Int64[Tensor, "searched"], effect: Float[Tensor, "searched regions"], partition: Int64[Tensor, "height width"], params: FillParams
) -> Bank:
    """The bank of the searched images, from the change of p(y) that the loss of each region makes."""
    kept = max(2, round(params.donor_share * len(searched)))
    ranked = effect.argsort(dim=0, stable=True)[:kept].T.contiguous()
    used, compact = torch.unique(ranked, return_inverse=True)
    donors = searched[used]
    return Bank(split.read(donors.numpy()), split.labels[donors], compact, partition, params.donors == "other_class")


@dataclass(frozen=True)
class Counterfactuals:
    """Which regions of which images are replaced, and by what."""

    removed: dict[int, Bool[Tensor, "regions"]]
    """By index in the training split; images without a set are not in it."""
    partition: Int64[Tensor, "height width"]
    fill: Bank | Statistics
    """A bank, or the statistics whose mean color is the fill."""
    rate: float
    """Probability that an image with a set is shown with its counterfactual."""

    def composed(self, index: Tensor, images: Images, labels: Tensor, generator: torch.Generator) -> Images:
        """x·(1 − M) + b·M with a hard mask M, exactly."""
        if len(index) == 0:
            return images
        masks = torch.stack([self.removed[int(i)] for i in index])[:, self.partition]
        if isinstance(self.fill, Bank):
            background = self.fill.draw(labels, generator)
        else:
            background = (torch.tensor(self.fill.mean) * 255).round().to(torch.uint8)[:, None, None].expand_as(images)
        return torch.where(masks[:, None], background, images)


@dataclass(frozen=True)
class Step:
    """What one optimizer step sees, after augmentation: always the same number of images in all."""

    images: Images
    labels: Int64[Tensor, "batch"]
    counterfactuals: UInt8[Tensor, "augmented 3 height width"]
    counterfactual_labels: Int64[Tensor, "augmented"]


def shuffled_forever(count: int, generator: torch.Generator) -> Iterator[int]:
    """Indices 0 … count−1 in a new random order again and again."""
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def training_steps(split: Split, size: int, shift: int, counterfactuals: Counterfactuals | None, generator: torch.Generator) -> Iterator[Step]:
    """Endless steps of `size` images.

    With counterfactuals, half of a step are originals; each that has a mask brings its counterfactual, under the same
    mirror and shift, and further originals take the places of those that have none. So every row of the results table
    sees the same number of images in the same number of steps.
    """
    order = shuffled_forever(len(split), generator)
    while True:
        first = size if counterfactuals is None else size - size // 2
        taken = [next(order) for _ in range(first)]
        paired: list[int] = []
        if counterfactuals is not None:
            shown = (torch.rand(first, generator=generator) < counterfactuals.rate).tolist()
            paired = [row for row, (index, show) in enumerate(zip(taken, shown, strict=True)) if show and index in counterfactuals.removed][: size // 2]
            taken += [next(order) for _ in range(size // 2 - len(paired))]
        index, rows = torch.tensor(taken), torch.tensor(paired, dtype=torch.int64)
        images, labels = split.read(np.array(taken)), split.labels[index]
        geometry = draw_geometry(len(taken), shift, generator)
        replaced = images[rows]
        if counterfactuals is not None:
            replaced = counterfactuals.composed(index[rows], images[rows], labels[rows], generator)
        yield Step(transformed(images, geometry), labels, transformed(replaced, geometry.rows(rows)), labels[rows])
