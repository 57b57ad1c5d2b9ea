"""Natural background: what stands in for the regions that an image loses.

SS-CA (arXiv 2511.12100) takes "natural background" and leaves open where it comes from. Here it comes from a bank of *plates*:
training images of which nothing but background is left. Taking the regions that matter least to a prediction, place by
place, does not give background: in the middle of an image they show other objects, nearly as often as any region does
(reports/log.md), and a counterfactual that keeps its label would then teach that objects do not matter.
"""

from dataclasses import dataclass
from math import isqrt
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import max_pool2d, one_hot
from torchvision.transforms.v2.functional import gaussian_blur

from everycause.data.split import Images, Split, Statistics
from everycause.errors import UserError
from everycause.explanation.masks import Masks
from everycause.explanation.regions import grid
from everycause.params import Section
from everycause.shapes import Bool, Int64, UInt8

MOST_BACKGROUNDS = 1200
"""Plates that are kept: more would not make the fill less predictable."""
FEWEST_CELLS = 4
"""Cells of background that an image must have to become a plate."""


class BackgroundParams(Section):
    """What stands in for a removed region in a counterfactual image."""

    source: Literal["bank", "own", "mean"]
    """`bank`: plates, the natural background of other training images; `own`: the colors of the image's own rest; `mean`: the data set's mean color."""
    source_classes: Literal["any_class", "other_class", "same_class"]
    """Whether source images are independent of the class, never of the image's own class, or only of it."""
    share: float = Field(gt=0, le=1)
    """Share of the places that may count as background: those that matter least over the whole data set."""
    augment_rate: float = Field(ge=0, le=1)
    """Probability that an image with a mask is shown with its counterfactual."""


@runtime_checkable
class Background(Protocol):
    """Makes the pixels that stand in for removed ones."""

    def draw(
        self,
        images: Images,
        removed: Bool[Tensor, "batch height width"],
        labels: Int64[Tensor, "batch"],
        generator: torch.Generator,
    ) -> Images:
        """A whole background for each image, of which the removed pixels will be used."""


class MeanColor(NamedTuple):
    """The data set's mean color."""

    statistics: Statistics

    def draw(self, images: Images, _removed: Tensor, _labels: Tensor, _generator: torch.Generator) -> Images:
        """The same color everywhere."""
        return (torch.tensor(self.statistics.mean) * 255).round().to(torch.uint8)[:, None, None].expand_as(images)


class OwnScene(NamedTuple):
    """The image's own scene: a blur of what is left of it, so that the fill tells as much of the class as the scene does."""

    def draw(self, images: Images, removed: Tensor, _labels: Tensor, _generator: torch.Generator) -> Images:
        """Gaussian means of the visible pixels."""
        kept = (~removed[:, None]).float()
        side = images.shape[-1] // 4
        spread = [2 * side + 1, 2 * side + 1], [side / 2, side / 2]
        return (
            (gaussian_blur(images * kept, *spread) / gaussian_blur(kept, *spread).clamp_min(1e-6))
            .round()
            .clamp(0, 255)
            .to(torch.uint8)
        )


@dataclass(frozen=True)
class Bank:
    """Background plates.

    Raises:
        UserError: there is no plate, or none that fits a class (source_classes: other_class or same_class).
    """

    plates: UInt8[Tensor, "plates 3 height width"]
    labels: Int64[Tensor, "plates"]
    source_classes: Literal["any_class", "other_class", "same_class"]
    classes: int
    """Number of classes of the data."""

    def __post_init__(self) -> None:
        present = set(self.labels.tolist())
        lacking = {
            "any_class": not present,
            "other_class": len(present) < 2,
            "same_class": len(present) < self.classes,
        }  # fmt: skip
        if lacking[self.source_classes]:
            raise UserError(
                f"background.classes is '{self.source_classes}', but only {len(self.labels)} searched images of {len(present)} classes show enough background: "
                "raise background.share, masks.regions or masks.images"
            )

    def draw(
        self, images: Images, _removed: Tensor, labels: Int64[Tensor, "batch"], generator: torch.Generator
    ) -> Images:
        """A plate for each image, drawn anew each time."""
        keys = torch.rand(len(labels), len(self.labels), generator=generator)
        same = self.labels == labels[:, None]
        if self.source_classes != "any_class":
            keys = keys.masked_fill(same if self.source_classes == "other_class" else ~same, -1)
        return self.plates[keys.argmax(dim=1)]


def background_bank(split: Split, masks: Masks, params: BackgroundParams) -> Bank:
    """Plates of the searched images.

    A place is background if it is one of those that matter least on average over all searched images, and lies neither in
    the image's own set nor beside it. The other places are filled with background places of the same image.

    Raises:
        UserError: hardly any image shows background, or not of the classes that `source_classes` asks for.
    """
    across = isqrt(masks.effect.shape[1])
    cells = grid(split.image_size, across)
    indicator = one_hot(cells.flatten(), across**2).float()
    matters = masks.effect.gather(1, masks.partition.expand(len(masks.index), -1, -1).flatten(1)) @ (
        indicator / indicator.sum(dim=0)
    )
    rank = matters.mean(dim=0).argsort(stable=True).argsort()
    free = rank < round(params.share * across**2)
    near = (vicinity(masks.pixels(masks.removed), across).flatten(1).float() @ indicator) > 0
    background = free & ~near
    sources = (background.sum(dim=1) >= min(FEWEST_CELLS, int(free.sum()))).nonzero()[:MOST_BACKGROUNDS, 0]
    index = masks.index[sources]
    images = split.read(index.numpy())
    return Bank(
        plates(images, background[sources], cells), split.labels[index], params.source_classes, split.num_classes
    )


def plates(images: Images, background: Bool[Tensor, "batch cells"], cells: Int64[Tensor, "height width"]) -> Images:
    """Images of which every cell shows background: their own where there is some, elsewhere that of another of their cells.

    The cells that lend are taken in turn, so that nothing is drawn at random.
    """
    across = isqrt(background.shape[1])
    size = cells.shape[0]
    start = torch.arange(across) * size // across
    start = start + (start * across // size < torch.arange(across))  # the first pixel of each cell
    own = background.int().argsort(dim=1, descending=True, stable=True)  # background cells first
    turn = (~background).int().cumsum(dim=1) - 1
    lender = own.gather(1, turn.clamp_min(0) % background.sum(dim=1, keepdim=True).clamp_min(1))
    source = torch.where(background, torch.arange(background.shape[1]), lender)[:, cells]
    line = torch.arange(size)
    offset = line - start[line * across // size]
    rows = (start[source // across] + offset[:, None]).clamp_max(size - 1)
    columns = (start[source % across] + offset[None]).clamp_max(size - 1)
    batch = torch.arange(len(images))[:, None, None]
    return images.permute(0, 2, 3, 1)[batch, rows, columns].permute(0, 3, 1, 2)


def vicinity(pixels: Bool[Tensor, "batch height width"], across: int) -> Bool[Tensor, "batch height width"]:
    """Pixels and what lies within one region's width of them."""
    reach = pixels.shape[-1] // across
    return max_pool2d(pixels[:, None].float(), 2 * reach + 1, stride=1, padding=reach)[:, 0] > 0


def background_of(masks: Masks, train: Split, statistics: Statistics, params: BackgroundParams) -> Background:
    """What stands in for removed regions.

    Raises:
        UserError: as background_bank.
    """
    match params.source:
        case "bank":
            return background_bank(train, masks, params)
        case "own":
            return OwnScene()
        case "mean":
            return MeanColor(statistics)
