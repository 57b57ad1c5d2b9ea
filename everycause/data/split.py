"""Splits: labelled images that can be read in any order; their statistics, batches and geometric changes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from everycause.artifacts import fingerprint
from everycause.data.images import Images, Statistics, normalized
from everycause.errors import UserError
from everycause.params import Section
from everycause.shapes import Float, Int64, UInt8

__all__ = [
    "AugmentationParams",
    "Batch",
    "Geometry",
    "Images",
    "Split",
    "Statistics",
    "View",
    "batches",
    "draw_geometry",
    "normalized",
    "statistics",
    "transformed",
]


@dataclass(frozen=True)
class Split:
    """Labelled images of one size.

    Raises:
        UserError: there are no images.
    """

    name: str
    """Name of the split, for messages and records; of a shifted one, family or family/member."""
    labels: Int64[Tensor, "images"]
    """The class of each image, an index into class_names."""
    class_names: tuple[str, ...]
    """The classes, in the order of the logits."""
    image_size: int
    """Side of the square images, in pixels."""
    read: Callable[[np.ndarray], Images]
    """The images of some indices; they do not depend on the order or on what is read together."""
    identity: str
    """A hash that changes when any image, label or class name does."""

    def __post_init__(self) -> None:
        if len(self.labels) == 0:
            raise UserError(f"the split '{self.name}' has no images")

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
        """The same split, read now and kept, if its images fit into `limit_mib` MiB; otherwise the split itself."""
        if len(self) * 3 * self.image_size**2 > limit_mib * 2**20:
            return self
        held = self.all()
        return replace(self, read=lambda index: held.index_select(0, torch.as_tensor(index)))

    def subset(self, index: np.ndarray) -> "Split":
        """Some of the images, renumbered, with an identity of their own."""
        index = np.asarray(index)
        return replace(
            self,
            labels=self.labels[torch.as_tensor(index)],
            read=lambda rows: self.read(index[rows]),
            identity=fingerprint(self.identity, "subset", index.astype(np.int64).tobytes()),
        )


class View(NamedTuple):
    """A split to evaluate on, and what else is known of its images."""

    split: Split
    factors: Any = None
    """codebirds.factors.Factors of rendered images; None for others."""
    groups: Int64[Tensor, "images"] | None = None
    """The group of each image, where the data set names groups."""
    among: Int64[Tensor, "answers"] | None = None
    """The classes among which the answer is sought; None for all."""
    released: bool = False
    """Whether these are published corrupted images rather than images corrupted here."""

    @property
    def name(self) -> str:
        """family, or family/member."""
        return self.split.name


class Batch(NamedTuple):
    """Some images of a split."""

    index: Int64[Tensor, "batch"]
    images: Images
    labels: Int64[Tensor, "batch"]


def statistics(split: Split, chunk: int = 512) -> Statistics:
    """Channel statistics of a split, from sums of integers: they are exact, whatever the chunk."""
    total, squares, count = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), 0
    for batch in batches(split, chunk):
        values = batch.images.to(torch.int64)
        total += values.sum(dim=(0, 2, 3))
        squares += values.square().sum(dim=(0, 2, 3))
        count += values.numel() // 3
    mean = total.double() / count
    deviation = (squares.double() / count - mean.square()).clamp_min(1.0).sqrt()
    return Statistics(tuple((mean / 255).tolist()), tuple((deviation / 255).tolist()))


def batches(split: Split, size: int, order: np.ndarray | None = None) -> Iterator[Batch]:
    """The split in batches, in the order of its indices or in the given one."""
    order = np.arange(len(split)) if order is None else order
    for start in range(0, len(order), size):
        index = order[start : start + size]
        rows = torch.as_tensor(index)
        yield Batch(rows, split.read(index), split.labels[rows])


class AugmentationParams(Section):
    """Random changes of training images; an image and its counterfactual get the same."""

    mirror: bool
    """Whether images are mirrored, each with probability one half."""
    shift: int = Field(ge=0, le=1024)
    """Largest shift, in pixels."""
    rotation: float = Field(ge=0, le=180)
    """Largest rotation, in degrees."""
    shear: float = Field(ge=0, lt=90)
    """Largest shear, in degrees."""
    zoom: float = Field(ge=0, lt=1)
    """Largest relative change of size, up or down."""
    resized_crop: float = Field(ge=0, le=1)
    """Smallest share of the image's area that a random crop keeps before it is resized; 0: no crop."""
    color_jitter: float = Field(ge=0, le=1)
    """Largest relative change of brightness, contrast and saturation; a tenth of it for the hue. 0: none."""


class Geometry(NamedTuple):
    """A mirror, a shift and an affine map for each image of a batch."""

    mirror: Int64[Tensor, "batch"]
    """1 where the image is mirrored."""
    down: Int64[Tensor, "batch"]
    """Shift in pixels; negative is up."""
    right: Int64[Tensor, "batch"]
    """Shift in pixels; negative is left."""
    affine: Float[Tensor, "batch 2 2"]
    """From places in the result to places in the image, about its center; the identity where it stays as it is."""

    def rows(self, index: Int64[Tensor, "rows"]) -> "Geometry":
        """The same transformations for some of the images."""
        return Geometry(*(value[index] for value in self))


def draw_geometry(count: int, params: AugmentationParams, generator: torch.Generator) -> Geometry:
    """Random transformations, uniform within each bound."""
    mirror = (
        torch.randint(0, 2, (count,), generator=generator) if params.mirror else torch.zeros(count, dtype=torch.int64)
    )
    down, right = torch.randint(-params.shift, params.shift + 1, (2, count), generator=generator)
    if not (params.rotation or params.shear or params.zoom):
        return Geometry(mirror, down, right, torch.eye(2).expand(count, 2, 2))
    draws = 2 * torch.rand(3, count, generator=generator) - 1
    angle, shear, scale = (
        torch.deg2rad(draws[0] * params.rotation),
        torch.deg2rad(draws[1] * params.shear),
        1 + draws[2] * params.zoom,
    )
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    rotation = torch.stack([torch.stack([cosine, -sine], dim=1), torch.stack([sine, cosine], dim=1)], dim=1)
    ones, zeros = torch.ones(count), torch.zeros(count)
    sheared = torch.stack([torch.stack([ones, shear.tan()], dim=1), torch.stack([zeros, ones], dim=1)], dim=1)
    return Geometry(mirror, down, right, rotation @ sheared)


def transformed(
    images: UInt8[Tensor, "batch channels height width"], geometry: Geometry
) -> UInt8[Tensor, "batch channels height width"]:
    """The images after their transformations; beyond its border an image is continued by reflection."""
    count, _, height, width = images.shape
    if count and not torch.equal(geometry.affine, torch.eye(2).expand(count, 2, 2)):
        places = affine_grid(
            torch.cat([geometry.affine, torch.zeros(count, 2, 1)], dim=2), list(images.shape), align_corners=False
        )
        images = (
            grid_sample(images.float(), places, padding_mode="reflection", align_corners=False).round_().to(torch.uint8)
        )
    rows = _reflected(torch.arange(height)[None] - geometry.down[:, None], height)
    columns = _reflected(torch.arange(width)[None] - geometry.right[:, None], width)
    columns = torch.where(geometry.mirror[:, None] == 1, width - 1 - columns, columns)
    batch = torch.arange(count)[:, None, None]
    return images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _reflected(position: Tensor, length: int) -> Tensor:
    """Positions folded back into 0 … length−1 at the borders, as often as a large shift needs."""
    period = 2 * (length - 1)
    position = position % period
    return torch.where(position >= length, period - position, position)
