"""The smallest sets of filters, exactly and without training: the classifier's head is linear in its activations.

With the margins d_rk = a_k (W_ck − W_rk) of a class c over each rival r, a set S of filters

    suffices    when  Σ_{k∈S} d_rk + b_c − b_r > 0  for every rival: with S alone, c still wins,
    is needed   when  Σ_{k∉S} d_rk + b_c − b_r < 0  for some rival: without S, c loses.

For the smallest necessary set, each rival is asked alone: its largest margins are removed first. The smallest
sufficient set must satisfy all rivals at once, a covering problem with unit costs. A greedy set is proven smallest
where one rival alone already asks for as many filters; for the other images integer programming (HiGHS) finds the
smallest set over the rivals that matter.

The problem follows from arXiv 2501.11087's masks; the sets are ours.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor
from tqdm import tqdm

from everycause.explanation.heads import LastLayer
from everycause.shapes import Bool, Float, Int64

LEAD = 1e-6
"""Logits by which the class must lead in the integer programs, whose own tolerance is smaller."""
CHUNK = 64
"""Most images whose margins over all rivals are held at once."""
MOST_BYTES = 2**26
"""Most bytes of these margins, where one image does not have more: those of 1,000 classes and 2,048 filters are 16 MB
per image."""


class Sets(NamedTuple):
    """A set of filters for each image."""

    chosen: Bool[Tensor, "images filters"]
    """Empty where none exists."""
    exists: Bool[Tensor, "images"]
    """Whether any set suffices, or is necessary."""


@dataclass(frozen=True)
class ExactFilters:
    """The exact sets of a linear head, as a generator of local filters."""

    kind: Literal["sufficient", "necessary"]
    head: LastLayer

    def minimum_correct(
        self, activations: Float[Tensor, "batch filters"], classes: Int64[Tensor, "batch"]
    ) -> Bool[Tensor, "batch filters"]:
        """The smallest set for each image's class; no filter where no set does it."""
        return (sufficient if self.kind == "sufficient" else necessary)(activations, classes, self.head).chosen


def margins(
    activations: Float[Tensor, "images filters"], classes: Int64[Tensor, "images"], head: LastLayer
) -> tuple[Float[Tensor, "images classes filters"], Float[Tensor, "images classes"]]:
    """What each filter adds to the class's lead over each rival, and the lead without filters, in float64."""
    weight, bias = head.weight.double(), head.bias.double()
    return activations.double()[:, None] * (weight[classes][:, None] - weight), bias[classes][:, None] - bias


def chunks(
    activations: Float[Tensor, "images filters"], classes: Int64[Tensor, "images"], head: LastLayer
) -> list[tuple[Float[Tensor, "chunk filters"], Int64[Tensor, "chunk"]]]:
    """Images and their classes, as many at once as their margins allow."""
    size = max(1, min(CHUNK, MOST_BYTES // (8 * head.weight.numel())))
    return list(zip(activations.split(size), classes.split(size), strict=True))


def necessary(activations: Float[Tensor, "images filters"], classes: Int64[Tensor, "images"], head: LastLayer) -> Sets:
    """The smallest sets whose removal makes the class lose.

    Of rivals with equally small sets, the set of the one that then leads by most is taken.
    """
    parts = [_necessary(*margins(a, c, head), c) for a, c in chunks(activations, classes, head)]
    return Sets(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def sufficient(activations: Float[Tensor, "images filters"], classes: Int64[Tensor, "images"], head: LastLayer) -> Sets:
    """The smallest sets that alone keep the class ahead of every rival."""
    parts = []
    for a, c in tqdm(chunks(activations, classes, head), desc="smallest sufficient sets", disable=None, leave=False):
        margin, lead = margins(a, c, head)
        lead[torch.arange(len(c)), c] = 1.0  # the class is no rival of its own
        chosen, exists = _greedy(margin, lead)
        at_least = _bound(margin, lead)
        for image in (exists & (chosen.sum(dim=1) > at_least)).nonzero()[:, 0].tolist():
            chosen[image] = _smallest(margin[image].numpy(), lead[image].numpy(), chosen[image], int(at_least[image]))
        parts.append(Sets(chosen & exists[:, None], exists))
    return Sets(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _necessary(
    margin: Float[Tensor, "images classes filters"],
    lead: Float[Tensor, "images classes"],
    classes: Int64[Tensor, "images"],
) -> Sets:
    count, _, filters = margin.shape
    everyone = torch.arange(count)
    ordered, number = margin.clamp_min(0).sort(dim=2, descending=True, stable=True)
    remaining_lead = (
        torch.cat([torch.zeros_like(ordered[:, :, :1]), ordered.cumsum(dim=2)], dim=2)
        .neg_()
        .add_((margin.sum(dim=2) + lead)[:, :, None])
    )
    loses = remaining_lead < 0
    size = torch.where(loses.any(dim=2), loses.int().argmax(dim=2), filters + 1)
    size[everyone, classes] = filters + 1
    smallest = size.min(dim=1).values
    after = remaining_lead.gather(2, size.clamp_max(filters)[:, :, None])[:, :, 0].masked_fill(
        size > smallest[:, None], torch.inf
    )
    rival = after.argmin(dim=1)
    rank = number[everyone, rival].argsort(dim=1)
    exists = smallest <= filters
    return Sets((rank < smallest[:, None]) & exists[:, None], exists)


def _greedy(
    margin: Float[Tensor, "images classes filters"], lead: Float[Tensor, "images classes"]
) -> tuple[Bool[Tensor, "images filters"], Bool[Tensor, "images"]]:
    """Add the filter that helps most against the rival ahead, one by one; then drop every filter that is not needed."""
    count, _, filters = margin.shape
    everyone, total = torch.arange(count), lead.clone()
    chosen = torch.zeros(count, filters, dtype=torch.bool)
    exists = torch.ones(count, dtype=torch.bool)
    for _ in range(filters):
        worst = total.argmin(dim=1)
        best = margin[everyone, worst].masked_fill(chosen, -torch.inf).max(dim=1)
        wanted = (total[everyone, worst] <= 0) & exists & (best.values > 0)
        if not bool(wanted.any()):
            break
        rows = wanted.nonzero()[:, 0]
        chosen[rows, best.indices[rows]] = True
        total[rows] += margin[rows, :, best.indices[rows]]
    missing = (total <= 0).any(dim=1)
    # helping against one rival can hurt against another: ask whether any set suffices
    for image in missing.nonzero()[:, 0].tolist():
        found = _solved(margin[image].numpy(), lead[image].numpy())
        exists[image] = found is not None
        if found is not None:
            chosen[image] = found
            total[image] = lead[image] + margin[image, :, found].sum(dim=1)
    for filter_number in range(filters):
        without = total - margin[:, :, filter_number]
        goes = chosen[:, filter_number] & (without > 0).all(dim=1)
        chosen[goes, filter_number] = False
        total = torch.where(goes[:, None], without, total)
    return chosen, exists


def _bound(
    margin: Float[Tensor, "images classes filters"], lead: Float[Tensor, "images classes"]
) -> Int64[Tensor, "images"]:
    """The number of filters that the most demanding rival alone asks for: no sufficient set is smaller."""
    reached = margin.clamp_min(0).sort(dim=2, descending=True).values.cumsum(dim=2) + lead[:, :, None] > 0
    size = torch.where(lead > 0, 0, 1 + torch.where(reached.any(dim=2), reached.int().argmax(dim=2), margin.shape[2]))
    return size.max(dim=1).values


def _smallest(
    margin: Float[np.ndarray, "classes filters"],
    lead: Float[np.ndarray, "classes"],
    greedy: Bool[Tensor, "filters"],
    at_least: int,
) -> Bool[Tensor, "filters"]:
    """The smallest set of one image; rivals are added to the program when they win against its solution."""
    rivals = [int((lead + margin[:, greedy.numpy()].sum(axis=1)).argmin())]
    while True:
        found = _solved(margin[rivals], lead[rivals])
        if found is None or int(found.sum()) >= int(greedy.sum()):
            return greedy
        total = lead + margin[:, found.numpy()].sum(axis=1)
        if (total > 0).all():
            assert int(found.sum()) >= at_least
            return found
        ahead = [rival for rival in total.argsort()[:4].tolist() if total[rival] <= 0 and rival not in rivals]
        if not ahead:  # a tie within the solver's tolerance
            return greedy
        rivals += ahead


def _solved(
    margin: Float[np.ndarray, "rivals filters"], lead: Float[np.ndarray, "rivals"]
) -> Bool[Tensor, "filters"] | None:
    """The smallest set against some rivals, by integer programming."""
    filters = margin.shape[1]
    constraint = LinearConstraint(margin, LEAD - lead, np.inf)
    result = milp(np.ones(filters), integrality=np.ones(filters), bounds=Bounds(0, 1), constraints=constraint)
    return torch.from_numpy(result.x > 0.5) if result.x is not None else None
