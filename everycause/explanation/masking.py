"""Images of which regions are removed, as tensors where the model lies: nothing is composed on the host."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Masking:
    """Normalized images, their partitions, and what stands in for a removed region."""

    images: Float[Tensor, "images 3 height width"]
    partition: Int64[Tensor, "partitions height width"]
    """The region of each pixel: one partition for all images, or one for each."""
    regions: int
    """The most regions that an image has, N."""
    stand_in: Float[Tensor, "images 3 height width"] | None = None
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
        counts = torch.bincount((self._flat + offset).flatten(), minlength=len(self._flat) * self.regions).view(-1, self.regions)
        return (counts / self._flat.shape[1]).expand(len(self.images), -1)

    @property
    def exists(self) -> Bool[Tensor, "images regions"]:
        """Which region numbers each image uses."""
        return self.areas > 0

    def shown(self, owner: Int64[Tensor, "candidates"], kept: Float[Tensor, "candidates regions"]) -> Float[Tensor, "candidates 3 height width"]:
        """x·k + b·(1 − k) for image `owner`, with k in [0, 1] per region."""
        height, width = self.images.shape[-2:]
        weight = kept.index_select(1, self._flat[0]) if self.shared else kept.gather(1, self._flat[owner])
        shown = self._pixels.index_select(0, owner)
        if self.stand_in is None:
            shown = shown.mul_(weight[:, :, None])
        else:
            shown = self.stand_in.permute(0, 2, 3, 1).flatten(1, 2).index_select(0, owner).lerp_(shown, weight[:, :, None])
        return shown.unflatten(1, (height, width)).permute(0, 3, 1, 2)

    def summed(self, owner: Int64[Tensor, "candidates"], pixels: Float[Tensor, "candidates height width"]) -> Float[Tensor, "candidates regions"]:
        """The sum of a pixel map over each region of image `owner`."""
        flat = pixels.flatten(1)
        if self.shared:
            return flat @ self._indicator
        return torch.zeros(len(flat), self.regions, device=flat.device).scatter_add_(1, self._flat[owner], flat)

    def rows(self, index: Tensor) -> "Masking":
        """The same for some of the images."""
        stand_in = None if self.stand_in is None else self.stand_in[index]
        return Masking(self.images[index], self.partition if self.shared else self.partition[index], self.regions, stand_in)
