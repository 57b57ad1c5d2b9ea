"""Full rankings of an image's regions, and the curves by which rankings are judged."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from everycause.explanation.effort import FAST
from everycause.explanation.masking import Masking
from everycause.explanation.objectives import OBJECTIVES, Name
from everycause.explanation.scoring import Scorer
from everycause.explanation.search import Search, Task

PENDING = 12
"""Regions that are tried for the last place in each round of the bidirectional search; LIMA's value."""


def leading(task: Task, scorer: Scorer, exact: Scorer, objective: Name, count: int) -> tuple[Int64[Tensor, "images regions"], Int64[Tensor, "images"]]:
    """An order whose first `count` regions the fast search takes one by one; the derivative at the end orders the others."""
    state = Search(task, scorer, exact, objective, count, stops=False)
    state.fast(FAST._replace(overshoot=0, trust=0.0))
    return state.ranking(FAST.dimmed), state.forwards


def bidirectional(task: Task, scorer: Scorer, objective: Name, pending: int = PENDING) -> tuple[Int64[Tensor, "images regions"], Int64[Tensor, "images"]]:
    """LIMA's ranking (arXiv 2504.00470): in each round the best region joins the front and the worst the back.

    The front takes the region that adds most to it. Of the `pending` regions that would have added least to the front, the
    back takes the one that is worth least together with it. About N²/4 + pending·N/2 trials instead of N²/2 + N/2.
    """
    exists, goal = task.masking.exists, OBJECTIVES[objective]
    count, regions = exists.shape
    device = exists.device
    front, back = torch.zeros_like(exists), torch.zeros_like(exists)
    place = torch.where(exists, -1, regions)  # numbers that an image does not use come last
    forwards = torch.zeros_like(task.labels)
    first, last = torch.zeros(count, dtype=torch.int64, device=device), exists.sum(dim=1) - 1

    def values(base: Tensor, open_: Tensor) -> Tensor:
        owner, region = open_.nonzero(as_tuple=True)
        judged = scorer.judged(task.masking, owner, base[owner].scatter(1, region[:, None], True), goal)
        forwards.add_(goal.passes * torch.bincount(owner, minlength=count))
        result = torch.full(open_.shape, torch.nan, device=device)
        result[owner, region] = goal.value(judged, task.labels[owner], task.runner_up[owner])
        return result

    while bool((open_ := place < 0).any()):
        rows = open_.any(dim=1).nonzero()[:, 0]
        value = values(front, open_)
        best = value.nan_to_num(nan=-torch.inf).argmax(dim=1)[rows]
        front[rows, best], place[rows, best] = True, first[rows]
        first += 1
        value[rows, best] = torch.nan
        rank = value.nan_to_num(nan=torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
        tried = (rank < pending) & ~value.isnan()
        rows = tried.any(dim=1).nonzero()[:, 0]
        if len(rows):
            worst = values(back, tried).nan_to_num(nan=torch.inf).argmin(dim=1)[rows]
            back[rows, worst], place[rows, worst] = True, last[rows]
            last -= 1
    return place.argsort(dim=1, stable=True), forwards


def curves(
    scorer: Scorer, masking: Masking, labels: Int64[Tensor, "images"], order: Int64[Tensor, "images regions"], insertion: bool
) -> tuple[Float[Tensor, "images steps"], Float[Tensor, "images steps"]]:
    """p(y) as regions are removed (or inserted into the empty image) in an order, and the share of the area moved by then."""
    count, regions = order.shape
    rank = order.argsort(dim=1)
    moved = (rank[:, None] < torch.arange(regions + 1, device=order.device)[:, None]) & masking.exists[:, None]
    owner = torch.arange(count, device=order.device).repeat_interleave(regions + 1)
    shown = moved if insertion else ~moved
    probabilities = scorer.logits(masking, owner, shown.flatten(0, 1)).softmax(dim=1).gather(1, labels[owner][:, None]).view(count, regions + 1)
    return probabilities, (moved * masking.areas[:, None]).sum(dim=2)


def area_under(probabilities: Float[Tensor, "images steps"], share: Float[Tensor, "images steps"]) -> Float[Tensor, "images"]:
    """The area under a curve over the share of the image, by trapezoids, both ends included: from 0 to 1."""
    return torch.trapezoid(probabilities, share, dim=1)
