"""Selectors: rankings of an image's regions, which the counterfactual search is compared with.

A selector gives each image an order of all of its regions, the first to be removed first. `cut_at_flip` turns an order
into the shortest set of its leading regions whose removal flips the prediction; `curves` and `area_under` are the
insertion and deletion measures of an order.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from everycause.explanation.activation_maps import cam_masks, cam_masks_context, filter_cam, grad_cam
from everycause.explanation.cell_swap import cell_swap
from everycause.explanation.fido import fido
from everycause.explanation.objectives import OBJECTIVES, ObjectiveName
from everycause.explanation.ranking import Ranking, Request, random_keys, ranked_by_score
from everycause.explanation.regions import MaskedImages
from everycause.explanation.scoring import Scorer
from everycause.explanation.search import FAST, Search, SearchInputs, SearchResult
from everycause.shapes import Float, Int64

PENDING = 12
"""Regions that are tried for the last place in each round of the bidirectional search; LIMA's value."""


def leading(
    task: SearchInputs, scorer: Scorer, exact: Scorer, objective: ObjectiveName, count: int
) -> tuple[Int64[Tensor, "images regions"], Int64[Tensor, "images"]]:
    """An order whose first `count` regions the fast search removes one by one; the others follow by derivative."""
    state = Search(task, scorer, exact, objective, count, stops=False)
    state.fast(FAST._replace(overshoot=0, trust=0.0))
    return state.ranking(FAST.dimmed), state.forwards


def bidirectional(
    task: SearchInputs, scorer: Scorer, objective: ObjectiveName, pending: int = PENDING
) -> tuple[Int64[Tensor, "images regions"], Int64[Tensor, "images"]]:
    """LIMA's ranking (arXiv 2504.00470): in each round the best region joins the front and the worst the back.

    The front takes the region whose addition has the largest value. Of the `pending` regions with the smallest values,
    the back takes the one whose addition to the back has the smallest value. About N²/4 + pending·N/2 trials instead of
    N²/2 + N/2.
    """
    exists, goal = task.masking.exists, OBJECTIVES[objective]
    count, regions = exists.shape
    device = exists.device
    front, back = torch.zeros_like(exists), torch.zeros_like(exists)
    place = torch.where(exists, -1, regions)  # numbers that an image does not use come last
    forwards = torch.zeros_like(task.labels)
    first, last = torch.zeros(count, dtype=torch.int64, device=device), exists.sum(dim=1) - 1

    def values(base: Tensor, unplaced: Tensor) -> Tensor:
        owner, region = unplaced.nonzero(as_tuple=True)
        set_logits = scorer.set_logits(task.masking, owner, base[owner].scatter(1, region[:, None], True), goal)
        forwards.add_(goal.passes * torch.bincount(owner, minlength=count))
        result = torch.full(unplaced.shape, torch.nan, device=device)
        result[owner, region] = goal.value(set_logits, task.labels[owner], task.runner_up[owner])
        return result

    while bool((unplaced := place < 0).any()):
        rows = unplaced.any(dim=1).nonzero()[:, 0]
        value = values(front, unplaced)
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
    scorer: Scorer,
    masking: MaskedImages,
    labels: Int64[Tensor, "images"],
    order: Int64[Tensor, "images regions"],
    insertion: bool,
) -> tuple[Float[Tensor, "images steps"], Float[Tensor, "images steps"]]:
    """p(y) after each removal of a region (or each insertion into the empty image) in an order.

    Returns:
        p(y) after 0 … N steps, and the share of the image's area that was removed (or inserted) by then.
    """
    count, regions = order.shape
    rank = order.argsort(dim=1)
    moved = (rank[:, None] < torch.arange(regions + 1, device=order.device)[:, None]) & masking.exists[:, None]
    owner = torch.arange(count, device=order.device).repeat_interleave(regions + 1)
    kept = moved if insertion else ~moved
    probabilities = (
        scorer.logits(masking, owner, kept.flatten(0, 1))
        .softmax(dim=1)
        .gather(1, labels[owner][:, None])
        .view(count, regions + 1)
    )
    return probabilities, (moved * masking.areas[:, None]).sum(dim=2)


def area_under(
    probabilities: Float[Tensor, "images steps"], share: Float[Tensor, "images steps"]
) -> Float[Tensor, "images"]:
    """The area under a curve over the share of the image, by trapezoids, both ends included: from 0 to 1."""
    return torch.trapezoid(probabilities, share, dim=1)


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
    """A random order: the control for every other selector."""
    return ranked_by_score(request.task, random_keys(request), 0)


SELECTORS: dict[str, Callable[[Request], Ranking]] = {
    "counterfactual": counterfactual,
    "factual": factual,
    "bidirectional": both_ends,
    "random": random,
    "grad_cam": grad_cam,
    "filter_cam": filter_cam,
    "fido": fido,
    "cell_swap": cell_swap,
    "cam_masks": cam_masks,
    "cam_masks_context": cam_masks_context,
}
"""Name of a selector → its function. To add one, write a function above and name it here: params accept it then."""
SelectorName = Literal[tuple(SELECTORS)]


def cut_at_flip(request: Request, ranking: Ranking, largest: int) -> SearchResult:
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
    order = torch.where(
        (lengths <= length[:, None]) & task.masking.exists.gather(1, ranking.order[:, :largest]),
        ranking.order[:, :largest],
        -1,
    )
    effect = ranking.score.abs() if ranking.score is not None else (regions - rank).float() / regions
    return SearchResult(order, flipped, effect, ranking.forwards + largest)


def _without_score(order: Tensor, forwards: Tensor) -> Ranking:
    return Ranking(order, None, forwards)
