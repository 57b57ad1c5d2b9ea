"""Background for removed regions: the pixels that replace the regions that a counterfactual image loses.

SS-CA (arXiv 2511.12100) replaces regions by "natural background" and does not say where it comes from. Here it comes
from a bank of background images: training images in which every place shows background. Replacing each place by the
region that matters least to a prediction does not work: in the middle of an image such regions show other objects
nearly as often as any region does (reports/log.md), and a counterfactual image that keeps its label would then teach
that objects do not matter.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import max_pool2d, one_hot
from torchvision.transforms.v2.functional import gaussian_blur

from everycause.data.images import Images, Statistics
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.explanation.image_selection import rank_in_class
from everycause.explanation.masks import Masks
from everycause.explanation.partitions import numbers
from everycause.explanation.prior import ImageNoise, Prior
from everycause.explanation.regions import grid
from everycause.params import Section
from everycause.shapes import Bool, Float, Int64, UInt8

MOST_BACKGROUNDS = 1200
"""Most background images of a bank: with more, backgrounds do not become less predictable."""
JUDGED_TOGETHER = 256
"""Searched images whose pixels are looked at at once."""
GRAY = 127.5
"""What an image of which nothing is kept is filled with."""
FEWEST_CELLS = 4
"""Fewest cells of background that an image needs to become a background image."""


class BackgroundParams(Section):
    """What replaces a removed region in a counterfactual image."""

    source: Literal["bank", "own", "mean", "prior"]
    """`bank`: background of other training images; `own`: a blur of the rest of the same image; `mean`: the data set's
    mean color; `prior`: what a trained diffusion model paints into the image, another time another thing."""
    source_classes: Literal["any_class", "other_class", "same_class"]
    """The classes from which the bank lends to an image: any, all but its own, or its own alone."""
    share: float = Field(gt=0, le=1)
    """Share of the places that count as background: those that matter least on average over the searched images."""
    augment_rate: float = Field(ge=0, le=1)
    """Probability that an image with a mask is shown together with its counterfactual."""


@runtime_checkable
class Background(Protocol):
    """Makes the pixels that replace removed ones."""

    def draw(
        self,
        images: Images,
        removed: Bool[Tensor, "batch height width"],
        labels: Int64[Tensor, "batch"],
        generator: torch.Generator,
    ) -> Images:
        """A whole background for each image, of which the removed pixels are used."""


class MeanColor(NamedTuple):
    """The data set's mean color."""

    statistics: Statistics

    def draw(self, images: Images, _removed: Tensor, _labels: Tensor, _generator: torch.Generator) -> Images:
        """The same color everywhere."""
        return (torch.tensor(self.statistics.mean) * 255).round().to(torch.uint8)[:, None, None].expand_as(images)


class OwnScene(NamedTuple):
    """A blur of the pixels that the image keeps, which tells as much about the class as its scene does."""

    def draw(self, images: Images, removed: Tensor, _labels: Tensor, _generator: torch.Generator) -> Images:
        """Gaussian means of the pixels that are kept, a quarter of the image wide.

        Farther than that from all of them a pixel shows their plain mean, and gray where nothing is kept.
        """
        kept = (~removed[:, None]).float()
        side = images.shape[-1] // 4
        spread = [2 * side + 1, 2 * side + 1], [side / 2, side / 2]
        weights = gaussian_blur(kept, *spread)
        means = gaussian_blur(images * kept, *spread) / weights.clamp_min(1e-6)
        count = kept.sum(dim=(2, 3), keepdim=True)
        plain = torch.where(count > 0, (images * kept).sum(dim=(2, 3), keepdim=True) / count.clamp_min(1), GRAY)
        return torch.where(weights > 1e-6, means, plain).round().clamp(0, 255).to(torch.uint8)


class Inpainting(NamedTuple):
    """What a diffusion prior paints where pixels were removed, given the pixels that are kept.

    The prior sees neither class nor removed pixels: it begins with a blur of the rest, under noise. A draw costs τ
    passes of its network for each image.
    """

    prior: Prior

    def draw(self, images: Images, removed: Tensor, labels: Tensor, generator: torch.Generator) -> Images:
        """Images as the prior goes on from what is kept, which stays as it is; drawn anew each time."""
        begun = torch.where(removed[:, None], OwnScene().draw(images, removed, labels, generator), images)
        seeds = torch.randint(2**31, (len(images),), generator=generator).tolist()
        noise = ImageNoise(seeds, images.shape[-1], images.device)
        painted = self.prior.refined(begun / 255, images / 255, ~removed, noise)
        return (painted * 255).round().to(torch.uint8)


class OtherImages(NamedTuple):
    """Other training images as they are, objects included."""

    split: Split

    def draw(self, images: Images, _removed: Tensor, _labels: Tensor, generator: torch.Generator) -> Images:
        """A training image for each image, drawn anew each time."""
        return self.split.read(torch.randint(len(self.split), (len(images),), generator=generator).numpy())


@dataclass(frozen=True)
class Bank:
    """A bank of background images.

    Raises:
        UserError: there is no background image, or none that fits a class (source_classes: other_class or same_class).
    """

    background_images: UInt8[Tensor, "backgrounds 3 height width"]
    labels: Int64[Tensor, "backgrounds"]
    """The class of the training image that each background image was made from."""
    source_classes: Literal["any_class", "other_class", "same_class"]
    classes: int
    """Number of classes of the data."""

    def __post_init__(self) -> None:
        present = set(self.labels.tolist())
        needed = {"any_class": 1, "other_class": 2, "same_class": self.classes}[self.source_classes]
        if len(present) < needed:
            raise UserError(
                f"background.source_classes is '{self.source_classes}', but only {len(self.labels)} searched images of "
                f"{len(present)} classes show enough background: raise background.share, masks.regions or masks.images"
            )

    def draw(
        self, images: Images, _removed: Tensor, labels: Int64[Tensor, "batch"], generator: torch.Generator
    ) -> Images:
        """A background image for each image, drawn anew each time."""
        keys = torch.rand(len(labels), len(self.labels), generator=generator)
        same = self.labels == labels[:, None]
        if self.source_classes != "any_class":
            keys = keys.masked_fill(same if self.source_classes == "other_class" else ~same, -1)
        return self.background_images[keys.argmax(dim=1)]


def background_bank(split: Split, masks: Masks, params: BackgroundParams) -> Bank:
    """Background images made from the searched images.

    A place shows background if it is one of those that matter least on average over all searched images, and is neither
    in the image's own set nor next to it. The other places are replaced by background places of the same image. Of more
    images than a bank holds, those are taken that come first in their class, so that every class lends some.

    Raises:
        UserError: hardly any image shows background, or none of the classes that `source_classes` asks for.
    """
    across = isqrt(masks.effect.shape[1])
    cells = grid(split.image_size, across)
    indicator = one_hot(cells.flatten(), across**2).float()
    parts = torch.arange(len(masks.index)).split(JUDGED_TOGETHER)
    effect = torch.zeros(across**2, dtype=torch.float64)
    for part in parts:
        effect += effect_by_cell(masks.rows(part), indicator).double().sum(dim=0)
    unimportant = effect.argsort(stable=True).argsort() < round(params.share * across**2)
    priority = rank_in_class(split.labels)[masks.index]
    sources, background = torch.zeros(0, dtype=torch.int64), torch.zeros(0, across**2, dtype=torch.bool)
    for part in parts:
        some = masks.rows(part)
        near = (neighborhood(some.pixels(some.removed), across).flatten(1).float() @ indicator) > 0
        own = unimportant & ~near
        enough = own.sum(dim=1) >= min(FEWEST_CELLS, int(unimportant.sum()))
        sources, background = torch.cat([sources, part[enough]]), torch.cat([background, own[enough]])
        first = priority[sources].argsort(stable=True)[:MOST_BACKGROUNDS].sort().values
        sources, background = sources[first], background[first]
    index = masks.index[sources]
    kept = zip(index.split(JUDGED_TOGETHER), background.split(JUDGED_TOGETHER), strict=True)
    made = torch.cat([background_images(split.read(some.numpy()), own, cells) for some, own in kept])
    return Bank(made, split.labels[index], params.source_classes, split.num_classes)


def effect_by_cell(masks: Masks, indicator: Float[Tensor, "pixels cells"]) -> Float[Tensor, "images cells"]:
    """The mean effect of the pixels of each cell of a grid, whatever regions the images were searched with."""
    by_pixel = masks.effect.gather(1, numbers(masks.partition).expand(len(masks.index), -1, -1).flatten(1))
    return by_pixel @ (indicator / indicator.sum(dim=0))


def background_images(
    images: Images, background: Bool[Tensor, "batch cells"], cells: Int64[Tensor, "height width"]
) -> Images:
    """Images in which every cell shows background: its own if it has some, otherwise that of another cell of the image.

    The background cells of an image are copied in turn, so that nothing is drawn at random.
    """
    across = isqrt(background.shape[1])
    size = cells.shape[0]
    start = torch.arange(across) * size // across
    start = start + (start * across // size < torch.arange(across))  # the first pixel of each cell
    background_first = background.int().argsort(dim=1, descending=True, stable=True)
    turn = (~background).int().cumsum(dim=1) - 1
    copied = background_first.gather(1, turn.clamp_min(0) % background.sum(dim=1, keepdim=True).clamp_min(1))
    source = torch.where(background, torch.arange(background.shape[1]), copied)[:, cells]
    line = torch.arange(size)
    offset = line - start[line * across // size]
    # cells differ in size by a pixel where the side is no multiple of their number: the last pixel is then repeated
    rows = (start[source // across] + offset[:, None]).clamp_max(size - 1)
    columns = (start[source % across] + offset[None]).clamp_max(size - 1)
    batch = torch.arange(len(images))[:, None, None]
    return images.permute(0, 2, 3, 1)[batch, rows, columns].permute(0, 3, 1, 2)


def neighborhood(pixels: Bool[Tensor, "batch height width"], across: int) -> Bool[Tensor, "batch height width"]:
    """The pixels and those within one region's width of them, with `across` regions along a side."""
    reach = pixels.shape[-1] // across
    return max_pool2d(pixels[:, None].float(), 2 * reach + 1, stride=1, padding=reach)[:, 0] > 0


def no_prior() -> Prior:
    """Where no prior can be opened.

    Raises:
        UserError: always.
    """
    raise UserError("background.source 'prior' is for the stage retrain alone: name another source")


def background_of(
    masks: Masks,
    train: Split,
    statistics: Statistics,
    params: BackgroundParams,
    open_prior: Callable[[], Prior] = no_prior,
) -> Background:
    """What replaces removed regions, as background.source says.

    Raises:
        UserError: as background_bank; or there is no prior, where it is asked for.
    """
    match params.source:
        case "bank":
            return background_bank(train, masks, params)
        case "own":
            return OwnScene()
        case "mean":
            return MeanColor(statistics)
        case "prior":
            return Inpainting(open_prior())
