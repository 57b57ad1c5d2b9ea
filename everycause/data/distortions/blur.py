"""Corruptions of the group blur: pixels are mixed with their neighbors.

Source: Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261. As in their released data, glass blur copies pixels
instead of swapping them.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from everycause.data.distortions.operations import Generators, corruption, enlargement, gaussian, moved


@corruption(
    "blur",
    {
        32: ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        64: ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        224: ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    },
)
def defocus_blur(images: Tensor, level: Sequence[float], _generators: Generators) -> Tensor:
    """A blur by a disk with a softened edge.

    Levels: radius of the disk and standard deviation of its edge, in pixels.
    """
    return _filtered(images, _disk(*level), "reflect")


@corruption(
    "blur",
    {
        32: ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        64: ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        224: ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    },
)
def glass_blur(images: Tensor, level: Sequence[float], generators: Generators) -> Tensor:
    """A blur, then every pixel is replaced by one near it, then another blur.

    Levels: standard deviation of the blur and reach of the displacements, in pixels; passes.
    """
    deviation, reach, passes = level[0], int(level[1]), int(level[2])
    grains = (gaussian(images, deviation) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    side, everyone = grains.shape[1], np.arange(len(grains))
    places = np.arange(side - reach, reach, -1)
    moves = np.stack([one.integers(-reach, reach, (passes, len(places), len(places), 2)) for one in generators])
    for turn in range(passes):
        for i, row in enumerate(places):
            for j, column in enumerate(places):
                grains[:, row, column] = grains[
                    everyone, row + moves[:, turn, i, j, 1], column + moves[:, turn, i, j, 0]
                ]
    return gaussian(torch.from_numpy(grains).permute(0, 3, 1, 2).float() / 255, deviation)


@corruption(
    "blur",
    {
        32: ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        64: ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        224: ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    },
)
def motion_blur(images: Tensor, level: Sequence[float], generators: Generators) -> Tensor:
    """A one-sided Gaussian blur along a line, at most 45° from the horizontal.

    Levels: radius and standard deviation, in pixels.
    """
    return moved(images, int(level[0]), level[1], np.array([one.uniform(-45, 45) for one in generators]))


@corruption(
    "blur",
    {
        32: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        64: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        224: ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    },
)
def zoom_blur(images: Tensor, level: Sequence[float], _generators: Generators) -> Tensor:
    """The mean of the image and its enlargements.

    Levels: largest factor (exclusive) and step.
    """
    factors = np.arange(1, level[0], level[1])
    total = images.clone()
    for factor in factors:
        matrix = enlargement(images.shape[-1], float(factor))
        total += matrix @ images @ matrix.T
    return total / (len(factors) + 1)


@lru_cache(maxsize=64)
def _disk(radius: float, alias: float) -> Tensor:
    """A disk of this radius, normalized, its edge softened over three pixels (five for a large one)."""
    reach, soft = (8, 1) if radius <= 8 else (int(radius), 2)
    places = torch.arange(-reach, reach + 1).double()
    disk = (places[:, None].square() + places.square() <= radius**2).double()
    disk /= disk.sum()
    edge = torch.exp(-torch.arange(-soft, soft + 1).double().square() / (2 * alias**2))
    edge /= edge.sum()
    around = pad(disk[None, None], (soft,) * 4, mode="reflect")
    return conv2d(around, (edge[:, None] * edge)[None, None])[0, 0].float()


def _filtered(images: Tensor, kernel: Tensor, mode: str) -> Tensor:
    """Every channel filtered."""
    batch, channels, side, _ = images.shape
    reach = kernel.shape[0] // 2
    around = pad(images, (reach,) * 4, mode=mode).flatten(0, 1)[:, None]
    return conv2d(around, kernel[None, None]).view(batch, channels, side, side)
