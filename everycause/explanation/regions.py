"""Partitions of an image into disjoint regions."""

from concurrent.futures import ThreadPoolExecutor
from math import isqrt
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from skimage.segmentation import slic
from torch import Tensor

Kind = Literal["grid", "slico"]


def partitions(kind: Kind, images: UInt8[Tensor, "batch 3 height width"], regions: int) -> Int64[Tensor, "partitions height width"]:
    """The region of each pixel, 0 … regions − 1: one grid for all images, or superpixels of each.

    Raises:
        ValueError: an image has fewer pixels than regions, or the number does not fit the kind.
    """
    if kind == "grid":
        cells = isqrt(regions)
        if cells**2 != regions:
            raise ValueError(f"masks.regions is {regions}: a grid needs a square number, such as {cells**2} or {(cells + 1) ** 2}")
        return grid(images.shape[-1], cells)[None]
    if images.shape[-1] ** 2 < regions:
        raise ValueError(f"an image of {images.shape[-1]} × {images.shape[-1]} pixels has fewer pixels than regions ({regions}): lower masks.regions")
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        found = list(pool.map(lambda image: superpixels(image, regions), images.permute(0, 2, 3, 1).numpy()))
    return torch.from_numpy(np.stack(found))


def grid(image_size: int, cells: int) -> Int64[Tensor, "height width"]:
    """The region of each pixel for a grid of cells × cells nearly equal rectangles, numbered row by row.

    Raises:
        ValueError: the image has fewer pixels than cells along a side.
    """
    if image_size < cells:
        raise ValueError(f"an image of {image_size} × {image_size} pixels is smaller than the region grid {cells} × {cells}: lower masks.regions")
    line = torch.arange(image_size) * cells // image_size
    return line[:, None] * cells + line[None]


def superpixels(image: UInt8[np.ndarray, "height width 3"], regions: int) -> np.ndarray:
    """SLICO superpixels, at most `regions`; where the algorithm makes more, the smallest join their largest neighbor.

    Source: Achanta et al., SLIC superpixels, TPAMI 2012, the parameter-free variant, by scikit-image.
    """
    labels = slic(image, n_segments=regions, slic_zero=True, start_label=0).astype(np.int64)
    while (count := len(sizes := np.bincount(labels.flatten()))) > regions:
        smallest = int(sizes.argmin())
        inside = np.pad(labels == smallest, 1)
        beside = (inside[2:, 1:-1] | inside[:-2, 1:-1] | inside[1:-1, 2:] | inside[1:-1, :-2]) & (labels != smallest)
        labels[labels == smallest] = np.bincount(labels[beside], weights=sizes[labels[beside]].astype(float)).argmax()
        labels = np.where(labels == count - 1, smallest, labels) if smallest != count - 1 else labels
    return labels


def random_sets(sizes: Int64[Tensor, "images"], exists: Bool[Tensor, "images regions"], seed: int) -> Bool[Tensor, "images regions"]:
    """For each image a random set of as many of its regions: the control for any selector."""
    generator = torch.Generator().manual_seed(seed)
    keys: Float[Tensor, "images regions"] = torch.rand(exists.shape, generator=generator).masked_fill(~exists, torch.inf)
    return keys.argsort(dim=1).argsort(dim=1) < sizes[:, None]
