"""The images of each optimizer step: originals and their counterfactuals, the same number of images for every row."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torchvision.transforms import v2
from torchvision.tv_tensors import Image

from everycause.data.images import Images
from everycause.data.split import Split
from everycause.params import Section
from everycause.shapes import Float, Int64, UInt8


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


@runtime_checkable
class Counterfactuals(Protocol):
    """Makes counterfactual images of training images, with their labels."""

    probability: float
    """Probability that an image that has a counterfactual is shown with it."""

    def covers(self, index: int) -> bool:
        """Whether this training image has a counterfactual."""

    def composed(
        self, index: Int64[Tensor, "batch"], images: Images, labels: Int64[Tensor, "batch"], generator: torch.Generator
    ) -> tuple[Images, Int64[Tensor, "batch"] | Float[Tensor, "batch classes"]]:
        """The counterfactuals of images that have one, with their labels or label probabilities."""


@dataclass(frozen=True)
class Step:
    """The images of one optimizer step, after augmentation: always the same number in all."""

    index: Int64[Tensor, "batch"]
    """Where the originals stand in the training split."""
    images: Images
    labels: Int64[Tensor, "batch"]
    counterfactuals: UInt8[Tensor, "augmented 3 height width"]
    counterfactual_labels: Int64[Tensor, "augmented"] | Float[Tensor, "augmented classes"]
    """Classes, or probabilities of the classes where images are mixed."""


class Drawn(NamedTuple):
    """Where order and generator stood when a step had been drawn: later ones may be drawn before it is taken."""

    indices: list[int]
    place: int
    generator: Tensor


class Order:
    """The indices 0 to count − 1 in a random order, then in another one, without end; its place can be saved."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self._count, self._generator = count, generator
        self._indices: list[int] = []
        self._place = 0

    def __next__(self) -> int:
        if self._place == len(self._indices):
            self._indices, self._place = torch.randperm(self._count, generator=self._generator).tolist(), 0
        self._place += 1
        return self._indices[self._place - 1]

    def drawn(self) -> Drawn:
        """The order under way, the place in it, and the state of the generator."""
        return Drawn(self._indices, self._place, self._generator.get_state())

    def load_state(self, state: dict[str, Any]) -> "Order":
        """Go on from a saved place."""
        self._indices, self._place = state["indices"].tolist(), state["place"]
        return self


def training_steps(
    split: Split,
    size: int,
    augmentation: AugmentationParams,
    counterfactuals: Counterfactuals | None,
    generator: torch.Generator,
    order: Order | None = None,
) -> Iterator[Step]:
    """Steps of `size` images, without end, in an order that begins anew or is given.

    With counterfactuals, half of the images of a step are originals. Each of them that has a counterfactual is shown
    with it, under the same augmentation, and further originals take the places that remain. So every row of the results
    table sees the same number of images in the same number of steps.
    """
    order = Order(len(split), generator) if order is None else order
    photographic = photograph_transform(split.image_size, augmentation)
    while True:
        first = size if counterfactuals is None else size - size // 2
        taken = [next(order) for _ in range(first)]
        paired: list[int] = []
        if counterfactuals is not None:
            shown = (torch.rand(first, generator=generator) < counterfactuals.probability).tolist()
            candidates = enumerate(zip(taken, shown, strict=True))
            paired = [row for row, (index, show) in candidates if show and counterfactuals.covers(index)][: size // 2]
            taken += [next(order) for _ in range(size // 2 - len(paired))]
        index, rows = torch.tensor(taken), torch.tensor(paired, dtype=torch.int64)
        images, labels = split.read(np.array(taken)), split.labels[index]
        # Geometry is our own batched code: mirrored and shifted pairs of torchvision v2 cost 1.5 % of a training step
        # more, rotated and sheared ones with reflected borders 25 % (64 px, test_resnet, CPU time of one core).
        geometry = draw_geometry(len(taken), augmentation, generator)
        replaced, replaced_labels = images[rows], labels[rows]
        if counterfactuals is not None:
            replaced, replaced_labels = counterfactuals.composed(index[rows], replaced, replaced_labels, generator)
        images, replaced = transformed(images, geometry), transformed(replaced, geometry.rows(rows))
        if photographic is not None:
            images, replaced = transformed_pairs(photographic, images, replaced, paired, generator)
        yield Step(index, images, labels, replaced, replaced_labels)


def photograph_transform(image_size: int, params: AugmentationParams) -> v2.Transform | None:
    """torchvision's random resized crop and color jitter, as params say; None if both are off."""
    parts: list[v2.Transform] = []
    if params.resized_crop:
        parts.append(v2.RandomResizedCrop(image_size, scale=(params.resized_crop, 1.0), antialias=True))
    if strength := params.color_jitter:
        parts.append(v2.ColorJitter(strength, strength, strength, strength / 10))  # hues change the class sooner
    return v2.Compose(parts) if parts else None


def transformed_pairs(
    transform: v2.Transform,
    images: Images,
    counterfactuals: UInt8[Tensor, "augmented 3 height width"],
    paired: list[int],
    generator: torch.Generator,
) -> tuple[Images, UInt8[Tensor, "augmented 3 height width"]]:
    """Images under one random transform each; a counterfactual gets the transform of its original.

    Args:
        transform: A transform of torchvision v2, which treats all images of one call alike.
        images: The originals.
        counterfactuals: Their counterfactuals.
        paired: For each counterfactual the row of its original.
        generator: Seeds the transforms.
    """
    partner = dict(zip(paired, counterfactuals, strict=True))
    originals: list[Tensor] = []
    others: dict[int, Tensor] = {}
    with seeded(generator):
        for row, image in enumerate(images):
            if row in partner:
                image, others[row] = transform(Image(image), Image(partner[row]))
            else:
                image = transform(Image(image))
            originals.append(image.as_subclass(Tensor))
    replaced = [others[row].as_subclass(Tensor) for row in paired]
    return torch.stack(originals), torch.stack(replaced) if replaced else counterfactuals


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Seed torch's global generator from another one within the block, and restore it afterwards.

    torchvision's transforms draw from the global generator alone.
    """
    seed = int(torch.randint(2**31, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU alone: a GPU in the midst of an epoch keeps its own
        yield
