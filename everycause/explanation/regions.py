"""Regions of an image: partitions into disjoint regions, baselines, and images with some of their regions removed.

`MaskedImages` holds normalized images where the model lies and composes masked images there, so that nothing is copied
from the host for each candidate.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from everycause.data.images import Statistics, normalized
from everycause.errors import UserError
from everycause.shapes import Bool, Float, Int64, UInt8

if TYPE_CHECKING:
    from everycause.data.split import Split

PartitionKind = Literal["grid", "slico"]
BaselineName = Literal["mean", "zeros", "blur", "background"]


def is_shared(kind: PartitionKind) -> bool:
    """Whether this kind of partition is the same for all images: a grid is, superpixels are not."""
    return kind == "grid"


def partitions(
    kind: PartitionKind, images: UInt8[Tensor, "batch 3 height width"], regions: int
) -> Int64[Tensor, "partitions height width"]:
    """The region of each pixel, 0 … regions − 1: one grid for all images, or superpixels of each image.

    Raises:
        UserError: an image has fewer pixels than regions, or the number does not fit the kind.
    """
    if kind == "grid":
        cells = isqrt(regions)
        if cells**2 != regions:
            raise UserError(
                f"masks.regions is {regions}: a grid needs a square number, such as {cells**2} or {(cells + 1) ** 2}"
            )
        return grid(images.shape[-1], cells)[None]
    side = images.shape[-1]
    if side**2 < regions:
        raise UserError(
            f"an image of {side} × {side} pixels has fewer pixels than regions ({regions}): lower masks.regions"
        )
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        found = list(pool.map(lambda image: superpixels(image, regions), images.permute(0, 2, 3, 1).numpy()))
    return torch.from_numpy(np.stack(found))


def grid(image_size: int, cells: int) -> Int64[Tensor, "height width"]:
    """The region of each pixel for a grid of cells × cells nearly equal rectangles, numbered row by row.

    Raises:
        UserError: the image has fewer pixels than cells along a side.
    """
    if image_size < cells:
        raise UserError(
            f"an image of {image_size} × {image_size} pixels is smaller than the region grid {cells} × {cells}: "
            "lower masks.regions"
        )
    line = torch.arange(image_size) * cells // image_size
    return line[:, None] * cells + line[None]


def superpixels(image: UInt8[np.ndarray, "height width 3"], regions: int) -> np.ndarray:
    """SLICO superpixels, at most `regions`; where the algorithm makes more, the smallest join their largest neighbor.

    Source: Achanta et al., SLIC superpixels, TPAMI 2012, the parameter-free variant, by scikit-image.

    Raises:
        UserError: scikit-image is not installed.
    """
    try:
        from skimage.segmentation import slic  # here, because explaining with a grid must not need scikit-image
    except ImportError as error:
        raise UserError(
            "the partition 'slico' needs scikit-image, which is not installed: pip install scikit-image, or take 'grid'"
        ) from error
    labels = slic(image, n_segments=regions, slic_zero=True, start_label=0).astype(np.int64)
    while (count := len(sizes := np.bincount(labels.flatten()))) > regions:
        smallest = int(sizes.argmin())
        inside = np.pad(labels == smallest, 1)
        beside = (inside[2:, 1:-1] | inside[:-2, 1:-1] | inside[1:-1, 2:] | inside[1:-1, :-2]) & (labels != smallest)
        labels[labels == smallest] = np.bincount(labels[beside], weights=sizes[labels[beside]].astype(float)).argmax()
        labels = np.where(labels == count - 1, smallest, labels) if smallest != count - 1 else labels
    return labels


def largest_set(regions: int, max_regions: int) -> int:
    """The most regions that a set may have: min(max_regions, ⌊regions / 4⌋), but at least one."""
    return max(1, min(max_regions, regions // 4))


def random_sets(
    sizes: Int64[Tensor, "images"], exists: Bool[Tensor, "images regions"], seed: int
) -> Bool[Tensor, "images regions"]:
    """For each image a random set of the given size from its own regions: the control for any selector."""
    generator = torch.Generator().manual_seed(seed)
    keys: Float[Tensor, "images regions"] = torch.rand(exists.shape, generator=generator)
    return keys.masked_fill(~exists, torch.inf).argsort(dim=1).argsort(dim=1) < sizes[:, None]


def baseline_pixels(
    images: UInt8[Tensor, "batch 3 height width"],
    name: BaselineName,
    others: UInt8[Tensor, "batch 3 height width"] | None = None,
) -> UInt8[Tensor, "batch 3 height width"] | None:
    """Baseline pixel values for removed regions; None stands for the mean color, which is 0 after normalization.

    Args:
        images: The images whose regions are removed.
        name: `mean` color, `zeros` (black), `blur` (the blurred image), or `background` (another image).
        others: The other images, for `background`.
    """
    if name == "zeros":
        return torch.zeros_like(images)
    if name == "blur":
        return gaussian_blur(images, *blur_widths(images.shape[-1]))
    return others


def blur_widths(image_size: int) -> tuple[list[int], list[float]]:
    """Kernel and standard deviation, in pixels, of the baseline `blur`."""
    side = image_size // 4
    return [2 * side + 1, 2 * side + 1], [side / 2, side / 2]


def other_images(split: "Split", index: Tensor, name: BaselineName) -> UInt8[Tensor, "batch 3 height width"] | None:
    """For the baseline `background`: another image of the split for each image, the same one every time."""
    return split.read(((index + len(split) // 2 + 1) % len(split)).numpy()) if name == "background" else None


@dataclass(frozen=True)
class MaskedImages:
    """Normalized images with their partitions and the baseline that is shown in place of removed regions."""

    images: Float[Tensor, "images 3 height width"]
    partition: Int64[Tensor, "partitions height width"]
    """The region of each pixel: one partition for all images, or one for each image."""
    regions: int
    """The most regions that an image has, N."""
    shared: bool
    """Whether there is one partition for all images."""
    baseline: Float[Tensor, "images 3 height width"] | None = None
    """Normalized pixels shown in place of a removed region; None is the mean color, which is 0."""

    def __post_init__(self) -> None:
        assert len(self.partition) == (1 if self.shared else len(self.images)), "partitions do not fit the images"

    @cached_property
    def _flat(self) -> Int64[Tensor, "partitions pixels"]:
        return self.partition.flatten(1)

    @cached_property
    def _pixels(self) -> Float[Tensor, "images pixels 3"]:
        """The images with channels last: composed images then need no second copy for the convolutions."""
        return self.images.permute(0, 2, 3, 1).flatten(1, 2).contiguous()

    @cached_property
    def _indicator(self) -> Float[Tensor, "pixels regions"]:
        return torch.nn.functional.one_hot(self._flat[0], self.regions).float()

    @cached_property
    def areas(self) -> Float[Tensor, "images regions"]:
        """Share of the image that each region covers, 0 … 1; 0 for a number that the image does not use."""
        offset = torch.arange(len(self._flat), device=self._flat.device)[:, None] * self.regions
        counts = torch.bincount((self._flat + offset).flatten(), minlength=len(self._flat) * self.regions)
        return (counts.view(-1, self.regions) / self._flat.shape[1]).expand(len(self.images), -1)

    @property
    def exists(self) -> Bool[Tensor, "images regions"]:
        """Which region numbers each image uses."""
        return self.areas > 0

    def composed(
        self, owner: Int64[Tensor, "candidates"], kept: Float[Tensor, "candidates regions"]
    ) -> Float[Tensor, "candidates 3 height width"]:
        """Masked images x·k + b·(1 − k): image number `owner`, with k in [0, 1] for each region."""
        height, width = self.images.shape[-2:]
        weight = kept.index_select(1, self._flat[0]) if self.shared else kept.gather(1, self._flat[owner])
        pixels = self._pixels.index_select(0, owner)
        if self.baseline is None:
            pixels = pixels.mul_(weight[:, :, None])
        else:
            removed = self.baseline.permute(0, 2, 3, 1).flatten(1, 2).index_select(0, owner)
            pixels = removed.lerp_(pixels, weight[:, :, None])
        return pixels.unflatten(1, (height, width)).permute(0, 3, 1, 2)

    def summed_over_regions(
        self, owner: Int64[Tensor, "candidates"], pixels: Float[Tensor, "candidates height width"]
    ) -> Float[Tensor, "candidates regions"]:
        """The sum of a pixel map over each region of image number `owner`."""
        flat = pixels.flatten(1)
        if self.shared:
            return flat @ self._indicator
        return torch.zeros(len(flat), self.regions, device=flat.device).scatter_add_(1, self._flat[owner], flat)

    def rows(self, index: Tensor) -> "MaskedImages":
        """Some of the images."""
        baseline = None if self.baseline is None else self.baseline[index]
        partition = self.partition if self.shared else self.partition[index]
        return MaskedImages(self.images[index], partition, self.regions, self.shared, baseline)


def masked_images(
    images: UInt8[Tensor, "batch 3 height width"],
    statistics: Statistics,
    device: torch.device,
    partition: Int64[Tensor, "partitions height width"],
    regions: int,
    name: BaselineName,
    shared: bool,
    others: UInt8[Tensor, "batch 3 height width"] | None = None,
) -> MaskedImages:
    """Normalized images with their partitions and baselines, on a device.

    Args:
        images: The images whose regions are removed.
        statistics: What they are normalized by.
        device: Where the model lies.
        partition: The region of each pixel.
        regions: The most regions that an image has.
        name: The baseline.
        shared: Whether there is one partition for all images.
        others: The images that the baseline `background` shows.
    """
    pixels = baseline_pixels(images, name, others)
    baseline = None if pixels is None else normalized(pixels, statistics, device)
    return MaskedImages(normalized(images, statistics, device), partition.to(device), regions, shared, baseline)


def as_sets(order: Int64[Tensor, "images steps"], regions: int) -> Bool[Tensor, "images regions"]:
    """The regions of each order, as indicators; −1 stands for no region."""
    sets = torch.zeros(len(order), regions + 1, dtype=torch.bool, device=order.device)
    return sets.scatter(1, order % (regions + 1), True)[:, :-1]  # −1 lands in the last column
