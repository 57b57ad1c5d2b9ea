"""Counterfactual images: training images without the regions, or the parts, that a prediction depends on.

A row of the results table trains on originals and on counterfactual images of them that keep their label. `Removals`
replaces regions that a search found (arXiv 2511.12100). `Erasing` and `CutMix` are standard augmentations, as controls.
`OracleParts` renders Codebirds without some of its true parts, the best that any search could do.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import isqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from everycause.data.images import Images
from everycause.data.sources import DataParams
from everycause.data.split import Split
from everycause.explanation.filters import FilterBank
from everycause.explanation.masks import MaskParams, Masks
from everycause.explanation.partitions import Partitions, joined, numbers
from everycause.explanation.prior import Prior
from everycause.explanation.regions import grid
from everycause.models import Classifier
from everycause.shapes import Bool, Float, Int64
from everycause.training.background import Background, BackgroundParams, OtherImages, neighborhood, no_prior
from everycause.training.exchange import ExchangeParams
from everycause.training.loss import LossParams
from everycause.training.steps import seeded

PATCHES, PATCH_SHARES = 6, (0.1, 0.5)
"""Cells along a side, and the smallest and largest share of the cells that come from another image."""


@dataclass(frozen=True)
class Upstream:
    """What rows are retrained from: the base model with its explanations, and the images.

    Masks and filters are read, or made, when a row first asks for them. A row that needs none trains without them.
    """

    base: Classifier
    model: str
    """Fingerprint of the weights of the base."""
    train: Split
    validation: Split
    open_masks: Callable[[], Masks]
    """Reads the masks of the base; raises UserError if there are none."""
    open_filters: Callable[[], FilterBank]
    """Reads the filters of the base; raises UserError if there are none."""
    watch_filters: bool
    """Whether rows without filter terms record the values of these terms, but for rows with an objective of their own.
    """
    open_prior: Callable[[], Prior] = no_prior
    """Opens the diffusion prior, for background.source `prior`; raises UserError if there is none."""

    @cached_property
    def masks(self) -> Masks:
        """The masks of the base.

        Raises:
            UserError: there are none.
        """
        return self.open_masks()

    @cached_property
    def filters(self) -> FilterBank:
        """The filters of the base.

        Raises:
            UserError: there are none.
        """
        return self.open_filters()


class Recipe(NamedTuple):
    """The sections of params.yaml that decide what a row minimizes."""

    data: DataParams
    masks: MaskParams
    background: BackgroundParams
    exchange: ExchangeParams
    loss: LossParams
    frequency_threshold: float
    """Share of the count of a class's most frequent filter, 0 to 1, above which a filter belongs to the class."""
    threads: int
    """Threads that render images."""


class Pool(NamedTuple):
    """The sets of regions that each image may lose, one or more for each image."""

    sets: dict[int, Bool[Tensor, "sets regions"]]
    """Index of an image in the training split → its sets. Images without a set are absent."""
    partition: Partitions
    """The region of each pixel: one partition for all images, or one for each."""
    place: dict[int, int]
    """Index of an image → row of its partition; unused if one partition serves all images."""
    shared: bool
    """Whether one partition serves all images."""

    def draw(
        self, index: Int64[Tensor, "batch"], generator: torch.Generator, none: bool
    ) -> Bool[Tensor, "batch regions"]:
        """A random set for each image; with `none` the empty set is one of the choices."""
        chosen = []
        for image in index.tolist():
            sets = self.sets[image]
            choices = len(sets) + none
            # with a single choice nothing is drawn, so that rows with one set per image consume no random numbers here
            pick = int(torch.randint(choices, (1,), generator=generator)) if choices > 1 else 0
            chosen.append(sets[pick] if pick < len(sets) else torch.zeros_like(sets[0]))
        return torch.stack(chosen)

    def known(self, index: Int64[Tensor, "batch"]) -> Bool[Tensor, "batch regions"]:
        """For each image, the regions that are in any of its sets."""
        return torch.stack([self.sets[image].any(dim=0) for image in index.tolist()])

    def pixels(
        self, index: Int64[Tensor, "batch"], sets: Bool[Tensor, "batch regions"]
    ) -> Bool[Tensor, "batch height width"]:
        """Sets of regions as pixel masks."""
        partition = numbers(self.partition[[0 if self.shared else self.place[image] for image in index.tolist()]])
        return sets.gather(1, partition.flatten(1)).view(partition.shape)

    def joined(self, masks: Masks) -> "Pool":
        """The pool with the sets of further masks; images whose prediction never flipped add nothing."""
        flips = masks.rows(masks.flipped.nonzero()[:, 0])
        sets, place, partition = dict(self.sets), dict(self.place), self.partition
        for row, (image, chosen) in enumerate(zip(flips.index.tolist(), flips.removed, strict=True)):
            place.setdefault(image, len(partition) + row)
            known = sets.get(image)
            sets[image] = chosen[None] if known is None else torch.cat([known, chosen[None]]).unique(dim=0)
        partition = partition if self.shared else joined([partition, flips.partition])
        return Pool(sets, partition, place, self.shared)


@dataclass(frozen=True)
class Removals:
    """Images in which one set of regions is replaced by background: x·(1 − M) + b·M with a hard mask M.

    The label stays. Set and background are drawn anew each time that an image is shown.
    """

    pool: Pool
    background: Background
    probability: float
    """Probability that an image with a set is shown with its counterfactual."""
    scene: bool = False
    """Whether pixels more than a region away from every set of the image are replaced too, so that what is kept stands
    in another scene."""
    none: bool = False
    """Whether the empty set is one of the sets that are drawn."""

    def covers(self, index: int) -> bool:
        """Whether the image has a set."""
        return index in self.pool.sets

    def removed(self, index: Int64[Tensor, "batch"], generator: torch.Generator) -> Bool[Tensor, "batch height width"]:
        """The pixels that each image loses, drawn at random."""
        removed = self.pool.pixels(index, self.pool.draw(index, generator, self.none))
        if self.scene:
            regions = len(next(iter(self.pool.sets.values()))[0])
            removed |= ~neighborhood(self.pool.pixels(index, self.pool.known(index)), isqrt(regions))
        return removed

    def composed(
        self, index: Tensor, images: Images, labels: Tensor, generator: torch.Generator
    ) -> tuple[Images, Tensor]:
        """The images, each without one of its sets."""
        if len(index) == 0:
            return images, labels
        removed = self.removed(index, generator)
        return torch.where(removed[:, None], self.background.draw(images, removed, labels, generator), images), labels


@dataclass(frozen=True)
class Erasing:
    """Images with a random rectangle in the data set's mean color (Zhong et al., AAAI 2020; torchvision's sizes)."""

    mean: tuple[float, float, float]
    """Mean of each channel, 1 being white."""
    probability: float
    """Probability that an image is shown with its counterfactual."""

    def covers(self, _index: int) -> bool:
        """Every image can lose a rectangle."""
        return True

    def composed(
        self, _index: Tensor, images: Images, labels: Int64[Tensor, "batch"], generator: torch.Generator
    ) -> tuple[Images, Tensor]:
        """The images, each without a rectangle of its own."""
        erase = v2.RandomErasing(p=1.0, value=[round(255 * value) for value in self.mean])
        with seeded(generator):
            return (torch.stack([erase(image) for image in images]) if len(images) else images), labels


@dataclass(frozen=True)
class CutMix:
    """Images with a rectangle of another image of the batch, and that image's share of the label.

    Paper: Yun et al., ICCV 2019.
    """

    classes: int
    probability: float
    """Probability that an image is shown with its counterfactual."""

    def covers(self, _index: int) -> bool:
        """Every image can be mixed."""
        return True

    def composed(
        self, _index: Tensor, images: Images, labels: Int64[Tensor, "batch"], generator: torch.Generator
    ) -> tuple[Images, Float[Tensor, "batch classes"]]:
        """The images, each with a rectangle of its neighbor in the batch; the labels become probabilities."""
        if len(images) == 0:
            return images, torch.nn.functional.one_hot(labels, self.classes).float()
        with seeded(generator):
            return v2.CutMix(num_classes=self.classes)(images, labels)


@dataclass(frozen=True)
class PatchReplacement:
    """Images with some cells of a grid replaced by the same cells of another training image; the label stays.

    Which cells is drawn anew each time that an image is shown. Source: random patch replacement, "All Patches Matter",
    arXiv 2504.01396, where patches of real images go into generated ones.
    """

    split: Split
    probability: float
    """Probability that an image is shown with its counterfactual."""

    def covers(self, _index: int) -> bool:
        """Every image can lose cells."""
        return True

    def composed(
        self, index: Int64[Tensor, "batch"], images: Images, labels: Tensor, generator: torch.Generator
    ) -> tuple[Images, Tensor]:
        """The images, each with a share of its cells from another image."""
        if len(index) == 0:
            return images, labels
        low, high = PATCH_SHARES
        share = low + (high - low) * torch.rand(len(index), 1, generator=generator)
        chosen = torch.rand(len(index), PATCHES**2, generator=generator) < share
        replaced = chosen[:, grid(images.shape[-1], PATCHES)]
        others = OtherImages(self.split).draw(images, replaced, labels, generator)
        return torch.where(replaced[:, None], others, images), labels


@dataclass(frozen=True)
class OracleParts:
    """Codebirds rendered again without some of their parts, in a scene that is independent of the class.

    The number of absent parts is uniform from 1 to the most that leave the class decidable. Which parts is uniform too.
    """

    birds: Any
    """The renderer of the data source, a codebirds.birds.Codebirds."""
    probability: float
    """Probability that an image is shown with its counterfactual."""

    def covers(self, _index: int) -> bool:
        """Every bird can be rendered again."""
        return True

    def composed(
        self, index: Int64[Tensor, "batch"], images: Images, labels: Tensor, generator: torch.Generator
    ) -> tuple[Images, Tensor]:
        """The same birds in the same poses, without some parts and in other scenes."""
        if len(index) == 0:
            return images, labels
        code = self.birds.code
        factors = self.birds.factors("train", index.numpy())
        count = torch.randint(1, code.length - code.dimension + 1, (len(index), 1), generator=generator)
        absent = torch.rand(len(index), code.length, generator=generator).argsort(dim=1) < count
        scene = torch.randint(self.birds.num_classes, (len(index),), generator=generator).numpy()
        scene = scene.astype(np.asarray(factors.scene).dtype)
        changed = replace(factors, present=factors.present & ~absent.numpy(), scene=scene)
        return torch.from_numpy(self.birds.images(changed)), labels
