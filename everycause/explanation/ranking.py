"""Rankings of the regions of images: what a selector is asked, what it answers, and how scores become an order."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from everycause.explanation.objectives import ObjectiveName
from everycause.explanation.regions import MaskedImages
from everycause.explanation.scoring import Scorer
from everycause.explanation.search import SearchInputs
from everycause.networks import evaluating
from everycause.params import Section
from everycause.shapes import Bool, Float, Int64

if TYPE_CHECKING:
    from everycause.data.split import Split
    from everycause.models import Classifier


class FidoParams(Section):
    """How the selector `fido` learns which regions a prediction needs."""

    infill: Literal["baseline", "blur", "local_mean"]
    """What a removed region shows while the mask is learned: the search's own baseline (`masks.baseline`), the blurred
    image, or the mean of the image around each pixel."""
    steps: int = Field(ge=0, le=100_000)
    """Steps of Adam; published: 300."""
    samples: int = Field(ge=1, le=1024)
    """Masks that are drawn for each image in each step; published: 8."""
    learning_rate: float = Field(gt=0, le=10)
    """Of Adam; published: 0.05."""
    sparsity: float = Field(ge=0, le=1000)
    """What a removed cell of a mask of 56 × 56 cells costs, in log-odds; published: 0.001. A region costs by its area.
    """


class Ranking(NamedTuple):
    """The order that a selector gives the regions of each image."""

    order: Int64[Tensor, "images regions"]
    """All regions, the first to be removed first; numbers that an image does not use come last."""
    score: Float[Tensor, "images regions"] | None
    """The score of each region, from selectors that give scores."""
    forwards: Int64[Tensor, "images"]
    """Forward passes spent."""


class Request(NamedTuple):
    """Images whose regions are to be ranked."""

    task: SearchInputs
    scorer: Scorer
    """The accelerated model."""
    exact: Scorer
    """The stored model."""
    classifier: "Classifier"
    """Gives the explained layer and the last layer, which CAM selectors read."""
    index: Int64[Tensor, "images"]
    """Index of each image in its split; random orders depend on it alone."""
    leading: int
    """How many regions at the front of the order are searched one by one."""
    objective: ObjectiveName
    """The set function that the selector `bidirectional` maximizes."""
    filters: Bool[Tensor, "classes filters"] | None
    """The filters of each class, for the selector `filter_cam`."""
    split: "Split"
    """Where the images come from; the selector `cell_swap` looks for other images there."""
    fido: FidoParams
    """How the selector `fido` learns."""


def batches(request: Request) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels, a batch at a time, in evaluation mode."""
    with evaluating(request.classifier):
        yield from zip(
            request.task.masking.images.split(request.exact.batch_size),
            request.task.labels.split(request.exact.batch_size),
            strict=True,
        )


def ranked_by_score(task: SearchInputs, score: Tensor, forwards: int) -> Ranking:
    """Descending scores; ties go to the lowest region."""
    order = score.masked_fill(~task.masking.exists, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return Ranking(order, score, torch.full_like(task.labels, forwards))


def ranking_by_map(task: SearchInputs, maps: Float[Tensor, "images rows columns"], forwards: int) -> Ranking:
    """A map of the explained layer, enlarged and averaged over each region."""
    size = task.masking.images.shape[-2:]
    enlarged = interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return ranked_by_score(task, region_means(task.masking, enlarged), forwards)


def region_means(
    masking: MaskedImages, pixels: Float[Tensor, "images height width"]
) -> Float[Tensor, "images regions"]:
    """The mean of a map of pixels over each region; 0 for a number that the image does not use."""
    everyone = torch.arange(len(pixels), device=pixels.device)
    counts = masking.areas * pixels[0].numel()
    return masking.summed_over_regions(everyone, pixels) / counts.clamp_min(1)


def random_keys(request: Request) -> Float[Tensor, "images regions"]:
    """Random numbers from 0 to 1 for the regions of each image, which depend on its index alone."""
    exists = request.task.masking.exists
    keys = torch.stack(
        [torch.rand(exists.shape[1], generator=torch.Generator().manual_seed(int(index))) for index in request.index]
    )
    return keys.to(exists.device)
