"""Partitions of an image into disjoint regions."""

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


def grid(image_size: int, cells: int) -> Int64[Tensor, "height width"]:
    """The region of each pixel for a grid of cells × cells nearly equal rectangles, numbered row by row.

    Raises:
        ValueError: the image has fewer pixels than cells along a side.
    """
    if image_size < cells:
        raise ValueError(f"an image of {image_size} × {image_size} pixels is smaller than the region grid {cells} × {cells}: lower masks.grid")
    line = torch.arange(image_size) * cells // image_size
    return line[:, None] * cells + line[None]


def random_sets(sizes: Int64[Tensor, "images"], regions: int, seed: int) -> Bool[Tensor, "images regions"]:
    """For each image a random set of as many regions: the control for any selector on a grid."""
    keys = torch.rand(len(sizes), regions, generator=torch.Generator().manual_seed(seed))
    return keys.argsort(dim=1).argsort(dim=1) < sizes[:, None]
