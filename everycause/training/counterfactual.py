"""Counterfactual images: the regions that a prediction hangs on, replaced by natural background.

Paper: arXiv 2511.12100. A set of a pool and a background are drawn anew each time that an image is shown.
"""

from dataclasses import dataclass
from math import isqrt
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from everycause.data.split import Images
from everycause.explanation.masks import Masks
from everycause.training.fill import Fill, vicinity


class Pool(NamedTuple):
    """The sets that images may lose, several for each."""

    sets: dict[int, Bool[Tensor, "sets regions"]]
    """By index in the training split; images without a set are not in it."""
    partition: Int64[Tensor, "partitions height width"]
    """The region of each pixel: one partition for all images, or one for each."""
    place: dict[int, int]
    """Where each image's partition stands; unused when there is one for all."""

    def draw(self, index: Int64[Tensor, "batch"], generator: torch.Generator, none: bool) -> Bool[Tensor, "batch regions"]:
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

    def pixels(self, index: Int64[Tensor, "batch"], sets: Bool[Tensor, "batch regions"]) -> Bool[Tensor, "batch height width"]:
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
        return Pool(sets, partition if len(partition) == 1 == len(flips.partition) else torch.cat([partition, flips.partition]), place)


@dataclass(frozen=True)
class Removals:
    """Images that lose one of their sets: x·(1 − M) + b·M with a hard mask M, exactly; the label stays."""

    pool: Pool
    fill: Fill
    rate: float
    scene: bool = False
    """Whether what lies away from every known cause of the image is replaced too, so that what is kept stands in another scene."""
    none: bool = False
    """Whether the empty set is one of the sets that are drawn."""

    def covers(self, index: int) -> bool:
        """Whether the image has a set."""
        return index in self.pool.sets

    def composed(self, index: Tensor, images: Images, labels: Tensor, generator: torch.Generator) -> tuple[Images, Tensor]:
        """The images without one of their sets each."""
        if len(index) == 0:
            return images, labels
        removed = self.pool.pixels(index, self.pool.draw(index, generator, self.none))
        if self.scene:
            removed |= ~vicinity(self.pool.pixels(index, self.pool.known(index)), isqrt(len(next(iter(self.pool.sets.values()))[0])))
        return torch.where(removed[:, None], self.fill.draw(images, removed, labels, generator), images), labels
