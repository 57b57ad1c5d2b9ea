"""Rankings of an image's regions, behind one interface: what the counterfactual search is compared with.

A selector gives each image an order of all of its regions, the first to be removed first; `cut_at_flip` turns an order into
the shortest set of its leading regions whose removal flips the prediction.
"""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import interpolate

from everycause.explanation import objectives
from everycause.explanation.ranking import bidirectional, leading
from everycause.explanation.scoring import GRADIENT, Scorer
from everycause.explanation.search import Found, Task
from everycause.hooks import evaluating

Name = Literal["counterfactual", "factual", "bidirectional", "random", "grad_cam", "filter_cam"]


class Ranking(NamedTuple):
    """What a selector says."""

    order: Int64[Tensor, "images regions"]
    """All regions, the first to be removed first; numbers that an image does not use come last."""
    score: Float[Tensor, "images regions"] | None
    """What each region is worth to the selector, where it says so."""
    forwards: Int64[Tensor, "images"]
    """Forward passes spent."""


class Request(NamedTuple):
    """Images whose regions are to be ranked."""

    task: Task
    scorer: Scorer
    """The model as fast as it gets."""
    exact: Scorer
    """The stored model."""
    index: Int64[Tensor, "images"]
    """Of the images in their split: what is random depends on it alone."""
    leading: int
    """How many regions at the front matter most."""
    objective: objectives.Name
    """What the selector `bidirectional` maximizes."""
    filters: Bool[Tensor, "classes filters"] | None
    """The filters of each class, where a bank is at hand."""


def counterfactual(request: Request) -> Ranking:
    """The order of the fast search by the deletion objective, carried on beyond the flip."""
    return _without_score(*leading(request.task, request.scorer, request.exact, "deletion", request.leading))


def factual(request: Request) -> Ranking:
    """The order of the fast search by LIMA's factual objective: the regions that suffice."""
    return _without_score(*leading(request.task, request.scorer, request.exact, "factual", request.leading))


def both_ends(request: Request) -> Ranking:
    """LIMA's bidirectional greedy search: every region ranked by trial."""
    return _without_score(*bidirectional(request.task, request.scorer, request.objective))


def random(request: Request) -> Ranking:
    """Any order: the control that matters."""
    exists = request.task.masking.exists
    keys = torch.stack([torch.rand(exists.shape[1], generator=torch.Generator().manual_seed(int(index))) for index in request.index])
    return _by_score(request.task, keys.to(exists.device), 0)


def grad_cam(request: Request) -> Ranking:
    """Grad-CAM (Selvaraju et al., ICCV 2017) at the explained layer, averaged over each region.

    Raises:
        ValueError: the explained layer gives no feature maps.
    """
    classifier, maps, gradients = request.exact.classifier, [], []
    for images, labels in _batches(request):
        with torch.enable_grad():
            seen = classifier.seen(images)
            gradient = torch.autograd.grad(seen.logits.gather(1, labels[:, None]).sum(), seen.output)[0]
        maps.append(classifier.as_maps(seen.output.detach()))
        gradients.append(classifier.as_maps(gradient))
    weights = torch.cat(gradients).mean(dim=(2, 3), keepdim=True)
    return _by_map(request.task, (weights * torch.cat(maps)).sum(dim=1).relu(), GRADIENT)


def filter_cam(request: Request) -> Ranking:
    """The class activation map of the class's counterfactual filters alone.

    Raises:
        ValueError: there is no filter bank, or the logits are not linear in the averaged channels.
    """
    if request.filters is None:
        raise ValueError(
            "the selector 'filter_cam' needs the filters of each class, and there are none here: run the stage accumulate_filters and give its folder"
        )
    classifier = request.exact.classifier
    weight, _ = classifier.head()
    labels = request.task.labels
    chosen = weight[labels] * request.filters.to(weight.device)[labels]
    with torch.no_grad():
        maps = torch.cat([classifier.as_maps(classifier.seen(images).output) for images, _ in _batches(request)])
    return _by_map(request.task, torch.einsum("bkhw,bk->bhw", maps, chosen).relu(), 1)


SELECTORS: dict[Name, Callable[[Request], Ranking]] = {
    "counterfactual": counterfactual, "factual": factual, "bidirectional": both_ends, "random": random, "grad_cam": grad_cam, "filter_cam": filter_cam,
}  # fmt: skip


def cut_at_flip(request: Request, ranking: Ranking, largest: int) -> Found:
    """The shortest leading set of each order that flips the prediction; all `largest` regions where none does."""
    task, device = request.task, ranking.order.device
    count, regions = ranking.order.shape
    rank = ranking.order.argsort(dim=1)
    lengths = torch.arange(1, largest + 1, device=device)
    sets = (rank[:, None] < lengths[:, None]) & task.masking.exists[:, None]
    owner = torch.arange(count, device=device).repeat_interleave(largest)
    logits = request.exact.logits(task.masking, owner, ~sets.flatten(0, 1))
    flips = (logits.argmax(dim=1) != task.labels[owner]).view(count, largest)
    flipped = flips.any(dim=1)
    length = torch.where(flipped, flips.int().argmax(dim=1) + 1, largest)
    order = torch.where((lengths <= length[:, None]) & task.masking.exists.gather(1, ranking.order[:, :largest]), ranking.order[:, :largest], -1)
    effect = ranking.score.abs() if ranking.score is not None else (regions - rank).float() / regions
    return Found(order, flipped, effect, ranking.forwards + largest)


def _batches(request: Request) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels, a batch at a time, in evaluation mode."""
    with evaluating(request.exact.classifier):
        yield from zip(request.task.masking.images.split(request.exact.batch_size), request.task.labels.split(request.exact.batch_size), strict=True)


def _without_score(order: Tensor, forwards: Tensor) -> Ranking:
    return Ranking(order, None, forwards)


def _by_score(task: Task, score: Tensor, forwards: int) -> Ranking:
    """Descending scores; ties go to the lowest region."""
    order = score.masked_fill(~task.masking.exists, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return Ranking(order, score, torch.full_like(task.labels, forwards))


def _by_map(task: Task, maps: Float[Tensor, "images rows columns"], forwards: int) -> Ranking:
    """A map of the explained layer, enlarged and averaged over each region."""
    enlarged = interpolate(maps[:, None], size=task.masking.images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    everyone = torch.arange(len(maps), device=maps.device)
    pixels = task.masking.areas * enlarged[0].numel()
    return _by_score(task, task.masking.summed(everyone, enlarged) / pixels.clamp_min(1), forwards)
