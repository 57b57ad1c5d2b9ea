"""A split: labelled images that can be read in any order, whatever they come from."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

Images = UInt8[Tensor, "batch 3 height width"]


@dataclass(frozen=True)
class Split:
    """Labelled images of one size.

    Raises:
        ValueError: there are no images.
    """

    name: str
    """For messages and records."""
    labels: Int64[Tensor, "images"]
    """Index into class_names."""
    class_names: tuple[str, ...]
    """The classes, in the order of the logits."""
    image_size: int
    """Side of the square images, in pixels."""
    read: Callable[[np.ndarray], Images]
    """The images of some indices; reading in any order or chunking gives the same images."""
    identity: str
    """A fingerprint of the content, for records."""

    def __post_init__(self) -> None:
        if len(self.labels) == 0:
            raise ValueError(f"the split '{self.name}' has no images")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def all(self) -> Images:
        """Every image, in order."""
        return self.read(np.arange(len(self)))

    def kept_in_memory(self, limit_mib: int) -> "Split":
        """The same split, read once and held, where its images fit into `limit_mib`; else itself."""
        if len(self) * 3 * self.image_size**2 > limit_mib * 2**20:
            return self
        held = self.all()
        return Split(self.name, self.labels, self.class_names, self.image_size, lambda index: held.index_select(0, torch.as_tensor(index)), self.identity)

    def subset(self, index: np.ndarray) -> "Split":
        """Some of the images, renumbered."""
        return Split(
            self.name, self.labels[torch.as_tensor(index)], self.class_names, self.image_size,
            lambda rows: self.read(index[rows]), self.identity,
        )  # fmt: skip
