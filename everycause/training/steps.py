"""What the optimizer sees, step by step: originals and their counterfactuals, the same number of images for every row."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from everycause.data.split import AugmentationParams, Images, Split, draw_geometry, transformed
from everycause.shapes import Float, Int64, UInt8


@runtime_checkable
class Counterfactuals(Protocol):
    """Other images of the training images, with their labels."""

    rate: float
    """Probability that an image that has a counterfactual is shown with it."""

    def covers(self, index: int) -> bool:
        """Whether this training image has a counterfactual."""

    def composed(
        self, index: Int64[Tensor, "batch"], images: Images, labels: Int64[Tensor, "batch"], generator: torch.Generator
    ) -> tuple[Images, Int64[Tensor, "batch"] | Float[Tensor, "batch classes"]]:
        """The counterfactuals of images that have one, with their labels or label probabilities."""


@dataclass(frozen=True)
class Step:
    """What one optimizer step sees, after augmentation: always the same number of images in all."""

    images: Images
    labels: Int64[Tensor, "batch"]
    counterfactuals: UInt8[Tensor, "augmented 3 height width"]
    counterfactual_labels: Int64[Tensor, "augmented"] | Float[Tensor, "augmented classes"]
    """Classes, or probabilities of the classes where images are mixed."""


def shuffled_forever(count: int, generator: torch.Generator) -> Iterator[int]:
    """Indices 0 … count−1 in a new random order again and again."""
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def training_steps(
    split: Split,
    size: int,
    augmentation: AugmentationParams,
    counterfactuals: Counterfactuals | None,
    generator: torch.Generator,
) -> Iterator[Step]:
    """Endless steps of `size` images.

    With counterfactuals, half of a step are originals; each that has a mask brings its counterfactual, under the same
    geometry, and further originals take the places of those that have none. So every row of the results table
    sees the same number of images in the same number of steps.
    """
    order = shuffled_forever(len(split), generator)
    while True:
        first = size if counterfactuals is None else size - size // 2
        taken = [next(order) for _ in range(first)]
        paired: list[int] = []
        if counterfactuals is not None:
            shown = (torch.rand(first, generator=generator) < counterfactuals.rate).tolist()
            paired = [
                row
                for row, (index, show) in enumerate(zip(taken, shown, strict=True))
                if show and counterfactuals.covers(index)
            ][: size // 2]
            taken += [next(order) for _ in range(size // 2 - len(paired))]
        index, rows = torch.tensor(taken), torch.tensor(paired, dtype=torch.int64)
        images, labels = split.read(np.array(taken)), split.labels[index]
        geometry = draw_geometry(len(taken), augmentation, generator)
        replaced, replaced_labels = images[rows], labels[rows]
        if counterfactuals is not None:
            replaced, replaced_labels = counterfactuals.composed(index[rows], replaced, replaced_labels, generator)
        yield Step(transformed(images, geometry), labels, transformed(replaced, geometry.rows(rows)), replaced_labels)
