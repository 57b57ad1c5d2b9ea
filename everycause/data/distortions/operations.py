"""What a corruption is, the register of all of them, and image operations that several of them share.

Importing a module of corruptions adds its own to the register; data.corruptions imports all modules.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Generators = list[np.random.Generator]
"""One generator for each image, so that an image is corrupted alike whatever it is read with."""
Distortion = Callable[[Tensor, Sequence[float], Generators], Tensor]
"""Images (batch × 3 × side × side, in [0, 1]), levels and generators to images; what leaves [0, 1] is clipped later."""
Levels = tuple[tuple[float, ...], ...]
"""The constants of severities 1 to 5."""
GROUPS = ("noise", "blur", "weather", "digital")
SIZES = (32, 64, 224)
"""Image sizes, in pixels, for which the benchmark publishes constants."""


class Corruption(NamedTuple):
    """One kind of corruption."""

    name: str
    """As in params.yaml."""
    group: str
    """One of GROUPS."""
    levels: dict[int, Levels]
    """Constants for each of SIZES.

    A severity means the same loss of information at every size only with the constants of that size: those for 224
    pixels make severity 1 at 64 pixels as strong as its severities 2 to 5. They are those of the public code for
    ImageNet-C, Tiny-ImageNet-C and CIFAR-10-C (facts; no code was taken).
    """
    distort: Distortion
    """The corruption of a batch with the constants of one severity."""


CORRUPTIONS: dict[str, Corruption] = {}
"""All corruptions by name; filled by the decorator below."""


def corruption(group: str, levels: dict[int, Levels]) -> Callable[[Distortion], Distortion]:
    """Register a function as the corruption of its name."""

    def register(distort: Distortion) -> Distortion:
        name = distort.__name__
        assert group in GROUPS and set(levels) == set(SIZES) and all(len(table) == 5 for table in levels.values()), name
        CORRUPTIONS[name] = Corruption(name, group, levels, distort)
        return distort

    return register


def drawn(generators: Generators, draw: Callable[[np.random.Generator], np.ndarray]) -> Tensor:
    """One draw for each image."""
    return torch.from_numpy(np.stack([draw(one) for one in generators]))


def gaussian(images: Tensor, deviation: float, truncate: float = 4.0, border: str = "replicate") -> Tensor:
    """A Gaussian blur, one direction after the other."""
    reach = int(truncate * deviation + 0.5)
    if reach == 0:
        return images
    weights = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * deviation**2))
    weights /= weights.sum()
    side = images.shape[-1]
    places = torch.arange(-reach, side + reach)
    folded = places.clamp(0, side - 1) if border == "replicate" else _symmetric(places, side)
    matrix = torch.zeros(side, side)
    for offset in range(2 * reach + 1):  # a blur with its border is a matrix, and small sides make it a small one
        matrix[torch.arange(side), folded[offset : offset + side]] += weights[offset]
    return matrix @ images @ matrix.T


def _symmetric(places: Tensor, side: int) -> Tensor:
    """Places folded at the outer edges of the border pixels, which count twice."""
    around = places % (2 * side)
    return torch.where(around >= side, 2 * side - 1 - around, around)


def moved(images: Tensor, radius: int, deviation: float, angles: np.ndarray) -> Tensor:
    """A one-sided Gaussian blur of each image along a line at its own angle, in degrees; border pixels are repeated."""
    width, side = 2 * radius + 1, images.shape[-1]
    weights = np.exp(-(np.arange(width) ** 2) / (2 * deviation**2))
    weights /= weights.sum()
    radians = np.deg2rad(angles)
    everyone, places, total = torch.arange(len(images))[:, None, None], torch.arange(side), torch.zeros_like(images)
    last = images.permute(0, 2, 3, 1)
    for step, weight in enumerate(weights.tolist()):
        if weight < 1e-7:
            break
        right = torch.from_numpy(np.ceil(step * np.cos(radians) - 0.5)).long()
        down = torch.from_numpy(np.ceil(step * np.sin(radians) - 0.5)).long()
        rows, columns = ((places + shift[:, None]).clamp(0, side - 1) for shift in (down, right))
        total += weight * last[everyone, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return total


@lru_cache(maxsize=256)
def enlargement(side: int, factor: float) -> Tensor:
    """One direction of the enlargement of the center, bilinear between the outermost pixels, as a matrix."""
    inner = int(np.ceil(side / factor))
    outer = round(inner * factor)
    top, trim = (side - inner) // 2, (outer - side) // 2
    position = (np.arange(side) + trim) * ((inner - 1) / max(outer - 1, 1))
    low = np.floor(position).astype(int).clip(0, inner - 1)
    high, share = np.minimum(low + 1, inner - 1), position - low
    matrix = np.zeros((side, side), dtype=np.float32)
    np.add.at(matrix, (np.arange(side), top + low), 1 - share)
    np.add.at(matrix, (np.arange(side), top + high), share)
    return torch.from_numpy(matrix)
