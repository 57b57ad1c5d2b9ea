"""Counterfactual images that need no search: the augmentations that everybody knows, and the ceiling that only Codebirds can show."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from codebirds.birds import Codebirds
from everycause.data.sources import DataParams
from everycause.data.split import Images
from everycause.errors import UserError
from everycause.explanation.masks import Masks
from everycause.shapes import Bool, Float, Int64
from everycause.training.background import Background, vicinity

# MERGED DOC: """Counterfactual images: the regions that a prediction hangs on, replaced by natural background.
#
# Paper: arXiv 2511.12100. A set of a pool and a background are drawn anew each time that an image is shown.
# """


class Pool(NamedTuple):
    """The sets that images may lose, several for each."""

    sets: dict[int, Bool[Tensor, "sets regions"]]
    """By index in the training split; images without a set are not in it."""
    partition: Int64[Tensor, "partitions height width"]
    """The region of each pixel: one partition for all images, or one for each."""
    place: dict[int, int]
    """Where each image's partition stands; unused when there is one for all."""

    def draw(
        self, index: Int64[Tensor, "batch"], generator: torch.Generator, none: bool
    ) -> Bool[Tensor, "batch regions"]:
        """A random set of each image, or with `none` perhaps the empty one; nothing is drawn where there is no choice."""
        chosen = []
        for image in index.tolist():
            sets = self.sets[image]
            choices = len(sets) + none
            pick = int(torch.randint(choices, (1,), generator=generator)) if choices > 1 else 0
            chosen.append(sets[pick] if pick < len(sets) else torch.zeros_like(sets[0]))
        return torch.stack(chosen)

    def known(self, index: Int64[Tensor, "batch"]) -> Bool[Tensor, "batch regions"]:
        """All regions that are in any set of an image."""
        return torch.stack([self.sets[image].any(dim=0) for image in index.tolist()])

    def pixels(
        self, index: Int64[Tensor, "batch"], sets: Bool[Tensor, "batch regions"]
    ) -> Bool[Tensor, "batch height width"]:
        """Sets of regions as pixel masks."""
        partition = self.partition[[self.place[image] if len(self.partition) > 1 else 0 for image in index.tolist()]]
        return sets.gather(1, partition.flatten(1)).view(partition.shape)

    def joined(self, masks: Masks) -> "Pool":
        """The pool with the sets of more masks, of images whose prediction flips."""
        flips = masks.rows(masks.flipped.nonzero()[:, 0])
        sets, place, partition = dict(self.sets), dict(self.place), self.partition
        for row, (image, chosen) in enumerate(zip(flips.index.tolist(), flips.removed, strict=True)):
            place.setdefault(image, len(partition) + row)
            known = sets.get(image)
            sets[image] = chosen[None] if known is None else torch.cat([known, chosen[None]]).unique(dim=0)
        return Pool(
            sets,
            partition if len(partition) == 1 == len(flips.partition) else torch.cat([partition, flips.partition]),
            place,
        )


@dataclass(frozen=True)
class Removals:
    """Images that lose one of their sets: x·(1 − M) + b·M with a hard mask M, exactly; the label stays."""

    pool: Pool
    background: Background
    rate: float
    scene: bool = False
    """Whether what lies away from every known cause of the image is replaced too, so that what is kept stands in another scene."""
    none: bool = False
    """Whether the empty set is one of the sets that are drawn."""

    def covers(self, index: int) -> bool:
        """Whether the image has a set."""
        return index in self.pool.sets

    def composed(
        self, index: Tensor, images: Images, labels: Tensor, generator: torch.Generator
    ) -> tuple[Images, Tensor]:
        """The images without one of their sets each."""
        if len(index) == 0:
            return images, labels
        removed = self.pool.pixels(index, self.pool.draw(index, generator, self.none))
        if self.scene:
            removed |= ~vicinity(
                self.pool.pixels(index, self.pool.known(index)), isqrt(len(next(iter(self.pool.sets.values()))[0]))
            )
        return torch.where(removed[:, None], self.background.draw(images, removed, labels, generator), images), labels


@dataclass(frozen=True)
class Erasing:
    """A random rectangle of the image set to the data set's mean color (Zhong et al., AAAI 2020; torchvision's default sizes)."""

    mean: tuple[float, float, float]
    """Channel means, 1 being white."""
    rate: float

    def covers(self, _index: int) -> bool:
        """Every image can lose a rectangle."""
        return True

    def composed(
        self, _index: Tensor, images: Images, labels: Int64[Tensor, "batch"], generator: torch.Generator
    ) -> tuple[Images, Tensor]:
        """Each image without a rectangle of its own."""
        erase = v2.RandomErasing(p=1.0, value=[round(255 * value) for value in self.mean])
        with seeded(generator):
            return (torch.stack([erase(image) for image in images]) if len(images) else images), labels


@dataclass(frozen=True)
class CutMix:
    """A rectangle of another image of the batch, and its share of the label (Yun et al., ICCV 2019)."""

    classes: int
    rate: float

    def covers(self, _index: int) -> bool:
        """Every image can be mixed."""
        return True

    def composed(
        self, _index: Tensor, images: Images, labels: Int64[Tensor, "batch"], generator: torch.Generator
    ) -> tuple[Images, Float[Tensor, "batch classes"]]:
        """Each image with a rectangle of its neighbor in the batch; the labels become probabilities."""
        if len(images) == 0:
            return images, torch.nn.functional.one_hot(labels, self.classes).float()
        with seeded(generator):
            return v2.CutMix(num_classes=self.classes)(images, labels)


@dataclass(frozen=True)
class OracleParts:
    """The truth instead of a search: the same bird rendered without some of its parts, in a scene that is independent of its class.

    How many parts go is uniform over 1 … the most that leave the class decidable, which parts is uniform too.
    """

    birds: Codebirds
    rate: float

    def covers(self, _index: int) -> bool:
        """Every bird can be rendered again."""
        return True

    def composed(
        self, index: Int64[Tensor, "batch"], images: Images, labels: Tensor, generator: torch.Generator
    ) -> tuple[Images, Tensor]:
        """The same birds, as if they had been photographed elsewhere without some parts."""
        if len(index) == 0:
            return images, labels
        code = self.birds.code
        factors = self.birds.factors("train", index.numpy())
        count = torch.randint(1, code.length - code.dimension + 1, (len(index), 1), generator=generator)
        absent = torch.rand(len(index), code.length, generator=generator).argsort(dim=1) < count
        scene = torch.randint(self.birds.num_classes, (len(index),), generator=generator).numpy()
        changed = replace(
            factors, present=factors.present & ~absent.numpy(), scene=scene.astype(np.asarray(factors.scene).dtype)
        )
        return torch.from_numpy(self.birds.images(changed)), labels


def oracle_parts(data: DataParams, threads: int, rate: float) -> OracleParts:
    """The oracle of the embedded data.

    Raises:
        UserError: the data are photos, whose parts nobody knows.
    """
    if data.source != "codebirds":
        raise UserError(
            "the row 'oracle_parts' needs data whose parts are known (data.source: codebirds): leave it out of rows"
        )
    return OracleParts(Codebirds(data.codebirds, threads), rate)


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """torch's global generator follows another one within the block and is restored after it: torchvision's transforms know no other."""
    seed = int(torch.randint(2**31, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
