"""What stands in for a removed region while the search looks for it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import Literal

import numpy as np
import torch
from skimage.segmentation import slic
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from everycause.data.split import Images, Split, normalized
from everycause.errors import UserError
from everycause.models import Classifier
from everycause.shapes import Bool, Float, Int64, UInt8

# MERGED DOC: """Partitions of an image into disjoint regions."""
# MERGED DOC: """Images of which regions are removed, as tensors where the model lies: nothing is composed on the host."""


PartitionKind = Literal["grid", "slico"]


def partitions(
    kind: PartitionKind, images: UInt8[Tensor, "batch 3 height width"], regions: int
) -> Int64[Tensor, "partitions height width"]:
    """The region of each pixel, 0 … regions − 1: one grid for all images, or superpixels of each.

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
    if images.shape[-1] ** 2 < regions:
        raise UserError(
            f"an image of {images.shape[-1]} × {images.shape[-1]} pixels has fewer pixels than regions ({regions}): lower masks.regions"
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
            f"an image of {image_size} × {image_size} pixels is smaller than the region grid {cells} × {cells}: lower masks.regions"
        )
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


def random_sets(
    sizes: Int64[Tensor, "images"], exists: Bool[Tensor, "images regions"], seed: int
) -> Bool[Tensor, "images regions"]:
    """For each image a random set of as many of its regions: the control for any selector."""
    generator = torch.Generator().manual_seed(seed)
    keys: Float[Tensor, "images regions"] = torch.rand(exists.shape, generator=generator).masked_fill(
        ~exists, torch.inf
    )
    return keys.argsort(dim=1).argsort(dim=1) < sizes[:, None]


@dataclass(frozen=True)
class MaskedImages:
    """Normalized images, their partitions, and what stands in for a removed region."""

    images: Float[Tensor, "images 3 height width"]
    partition: Int64[Tensor, "partitions height width"]
    """The region of each pixel: one partition for all images, or one for each."""
    regions: int
    """The most regions that an image has, N."""
    baseline: Float[Tensor, "images 3 height width"] | None = None
    """What a removed region shows; None is the data set's mean color, which is 0 after normalization."""

    @property
    def shared(self) -> bool:
        """Whether all images have the same partition."""
        return len(self.partition) == 1

    @cached_property
    def _flat(self) -> Int64[Tensor, "partitions pixels"]:
        return self.partition.flatten(1)

    @cached_property
    def _pixels(self) -> Float[Tensor, "images pixels 3"]:
        """Channels last, so that what is shown needs no second copy for the convolutions."""
        return self.images.permute(0, 2, 3, 1).flatten(1, 2).contiguous()

    @cached_property
    def _indicator(self) -> Float[Tensor, "pixels regions"]:
        return torch.nn.functional.one_hot(self._flat[0], self.regions).float()

    @cached_property
    def areas(self) -> Float[Tensor, "images regions"]:
        """Share of the image that each region covers; 0 for a number that the image does not use."""
        offset = torch.arange(len(self._flat), device=self._flat.device)[:, None] * self.regions
        counts = torch.bincount((self._flat + offset).flatten(), minlength=len(self._flat) * self.regions).view(
            -1, self.regions
        )
        return (counts / self._flat.shape[1]).expand(len(self.images), -1)

    @property
    def exists(self) -> Bool[Tensor, "images regions"]:
        """Which region numbers each image uses."""
        return self.areas > 0

    def shown(
        self, owner: Int64[Tensor, "candidates"], kept: Float[Tensor, "candidates regions"]
    ) -> Float[Tensor, "candidates 3 height width"]:
        """x·k + b·(1 − k) for image `owner`, with k in [0, 1] per region."""
        height, width = self.images.shape[-2:]
        weight = kept.index_select(1, self._flat[0]) if self.shared else kept.gather(1, self._flat[owner])
        shown = self._pixels.index_select(0, owner)
        if self.baseline is None:
            shown = shown.mul_(weight[:, :, None])
        else:
            shown = (
                self.baseline.permute(0, 2, 3, 1).flatten(1, 2).index_select(0, owner).lerp_(shown, weight[:, :, None])
            )
        return shown.unflatten(1, (height, width)).permute(0, 3, 1, 2)

    def summed(
        self, owner: Int64[Tensor, "candidates"], pixels: Float[Tensor, "candidates height width"]
    ) -> Float[Tensor, "candidates regions"]:
        """The sum of a pixel map over each region of image `owner`."""
        flat = pixels.flatten(1)
        if self.shared:
            return flat @ self._indicator
        return torch.zeros(len(flat), self.regions, device=flat.device).scatter_add_(1, self._flat[owner], flat)

    def rows(self, index: Tensor) -> "MaskedImages":
        """The same for some of the images."""
        baseline = None if self.baseline is None else self.baseline[index]
        return MaskedImages(
            self.images[index], self.partition if self.shared else self.partition[index], self.regions, baseline
        )


BaselineName = Literal["mean", "zeros", "blur", "background"]


def other_images(split: Split, index: Tensor, name: BaselineName) -> Images | None:
    """For the fill `background` another image of the split for each, the same one every time."""
    return split.read(((index + len(split) // 2 + 1) % len(split)).numpy()) if name == "background" else None


def masked_images(
    classifier: Classifier,
    images: Images,
    partition: Int64[Tensor, "partitions height width"],
    regions: int,
    name: BaselineName,
    baseline: Images | None = None,
) -> MaskedImages:
    """Images with their partitions and what stands in for removed regions, on the classifier's device; `baseline` is what the fill `background` shows."""
    if name == "zeros":
        baseline = torch.zeros_like(images)
    if name == "blur":
        side = images.shape[-1] // 4
        baseline = gaussian_blur(images, kernel_size=[2 * side + 1, 2 * side + 1], sigma=[side / 2, side / 2])
    shown = None if baseline is None else normalized(baseline, classifier.statistics, classifier.device)
    return MaskedImages(
        normalized(images, classifier.statistics, classifier.device), partition.to(classifier.device), regions, shown
    )
