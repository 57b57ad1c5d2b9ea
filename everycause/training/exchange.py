"""The project's own row: the object of an image, without random discs of it, in the scene of a random image.

Removing what a prediction relies on teaches nothing good where the scene tells the class: what is left is then best
answered by the scene. So everything but the object is exchanged as well, whose pixels are found without labels
(everycause.explanation.objects). What is removed from the object is drawn anew each time that it is shown.
"""

from dataclasses import dataclass

import torch
from pydantic import Field, model_validator
from torch import Tensor
from tqdm import tqdm

from everycause.data.images import Images
from everycause.data.split import Split, batches
from everycause.explanation.objects import objects
from everycause.inference import batch_size
from everycause.models import Classifier
from everycause.params import Section
from everycause.shapes import Bool, Int64, UInt8
from everycause.training.background import MOST_BACKGROUNDS, OwnScene

NOISE = 6.0
"""Standard deviation of the noise where an object was, in gray levels of 255: a smooth spot would be a cue."""
MOST_DISCS = 16
"""Most discs that an object loses."""
MOST_WITH_GRADIENTS = 64
"""Images whose objects are sought at once: every activation is kept for the backward passes, eight times the memory of
a forward pass and more."""


class ExchangeParams(Section):
    """What the row `object_exchange` takes for the object, and what it removes of it."""

    object_share: float = Field(gt=0, lt=1)
    """Share of the pixels that are taken for the object: those that move the features most."""
    projections: int = Field(ge=1, le=1024)
    """Random projections of the features by which that is measured: each costs a backward pass over every image."""
    removed: list[float] = Field(min_length=2, max_length=2)
    """Discs are removed until a share of the object is gone that is drawn from this range; the last may take more."""
    radius: list[float] = Field(min_length=2, max_length=2)
    """Smallest and largest radius of the removed discs, as a share of the image's side; above 0."""

    @model_validator(mode="after")
    def _are_ranges(self) -> "ExchangeParams":
        for name, (low, high) in {"removed": self.removed, "radius": self.radius}.items():
            if not 0 <= low <= high <= 1:
                raise ValueError(f"{name} is [{low}, {high}]: it must be two shares, 0 ≤ smallest ≤ largest ≤ 1")
        if self.radius[0] == 0:
            raise ValueError(
                "radius begins with 0: a disc without a radius removes nothing (for that, set removed to 0)"
            )
        return self


@dataclass(frozen=True)
class ObjectExchange:
    """Objects without random discs of them, in scenes of other images. The label stays."""

    objects: UInt8[Tensor, "images bytes"]
    """The pixels of each training image that show its object, eight to a byte."""
    scenes: UInt8[Tensor, "scenes 3 height width"]
    """Training images without their object."""
    params: ExchangeParams
    probability: float
    """Probability that an image is shown with its counterfactual."""

    def covers(self, _index: int) -> bool:
        """Every image has an object."""
        return True

    def composed(
        self, index: Int64[Tensor, "batch"], images: Images, labels: Tensor, generator: torch.Generator
    ) -> tuple[Images, Tensor]:
        """What is left of each object, in the scene of another image."""
        if len(index) == 0:
            return images, labels
        whole = unpacked(self.objects[index], images.shape[-1])
        scenes = self.scenes[torch.randint(len(self.scenes), (len(index),), generator=generator)]
        kept = whole & ~discs(whole, self.params, generator)
        return torch.where(kept[:, None], images, scenes), labels


def exchange(
    classifier: Classifier, split: Split, params: ExchangeParams, probability: float, seed: int
) -> ObjectExchange:
    """Find the objects of a split, and empty the scenes of at most MOST_BACKGROUNDS of its images.

    Args:
        classifier: Its features tell what is object.
        split: The training images.
        params: The section `exchange`.
        probability: Probability that an image is shown with its counterfactual.
        seed: Seed of projections and noise.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(MOST_WITH_GRADIENTS, batch_size(classifier))
    sources = torch.zeros(len(split), dtype=torch.bool)
    sources[torch.randperm(len(split), generator=generator)[:MOST_BACKGROUNDS]] = True
    packed, scenes, begin = [], [], 0
    for batch in tqdm(batches(split, size), total=-(-len(split) // size), desc="objects", disable=None, leave=False):
        found = objects(classifier, batch.images, params.object_share, params.projections, generator)
        packed.append(packed_pixels(found))
        lent = sources[begin : begin + len(found)]
        scenes.append(emptied(batch.images[lent], found[lent], generator))
        begin += len(found)
    return ObjectExchange(torch.cat(packed), torch.cat(scenes), params, probability)


def emptied(
    images: Images, objects: Bool[Tensor, "images height width"], generator: torch.Generator
) -> UInt8[Tensor, "images 3 height width"]:
    """Images whose object is filled with a blur of the rest, and noise."""
    means = OwnScene().draw(images, objects, objects, generator).float()
    filled = (means + NOISE * torch.randn(means.shape, generator=generator)).round().clamp(0, 255).to(torch.uint8)
    return torch.where(objects[:, None], filled, images)


def discs(
    objects: Bool[Tensor, "batch height width"], params: ExchangeParams, generator: torch.Generator
) -> Bool[Tensor, "batch height width"]:
    """Discs about random pixels of each object, one after another until the drawn share of it is covered."""
    count, side = len(objects), objects.shape[-1]
    center = torch.multinomial(objects.flatten(1).float(), MOST_DISCS, replacement=True, generator=generator)
    low, high = params.radius
    reach = (side * (low + (high - low) * torch.rand(count, MOST_DISCS, generator=generator))).square()
    low, high = params.removed
    wanted = (low + (high - low) * torch.rand(count, generator=generator)) * objects.sum(dim=(1, 2))
    line, covered = torch.arange(side), torch.zeros_like(objects)
    for number in range(MOST_DISCS):
        lacking = (covered & objects).sum(dim=(1, 2)) < wanted
        if not lacking.any():
            break
        down, right = line - center[:, number, None] // side, line - center[:, number, None] % side
        inside = down.square()[:, :, None] + right.square()[:, None] < reach[:, number, None, None]
        covered |= inside & lacking[:, None, None]
    return covered


def packed_pixels(pixels: Bool[Tensor, "images height width"]) -> UInt8[Tensor, "images bytes"]:
    """Eight pixels to a byte; the last byte is filled up with zeros."""
    flat = pixels.flatten(1)
    padded = torch.nn.functional.pad(flat, (0, -flat.shape[1] % 8)).unflatten(1, (-1, 8))
    return (padded.to(torch.uint8) << torch.arange(8, dtype=torch.uint8)).sum(dim=2, dtype=torch.uint8)


def unpacked(packed: UInt8[Tensor, "images bytes"], side: int) -> Bool[Tensor, "images height width"]:
    """The pixels that were packed, of square images of this side."""
    bits = (packed[:, :, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten(1)[:, : side**2].bool().unflatten(1, (side, side))
