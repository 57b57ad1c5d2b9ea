"""Counterfactual region search: the fewest regions whose removal flips a prediction.

    min |S|  subject to  argmax f(x \\ S) ≠ y

`exhaustive` is the papers' greedy search: in every step each remaining region is tried. `fast` finds sets of the same size
for a fifth of the forward passes:

1. the derivative of the objective by every region's removal, at a state where the rest is already dimmed a little, so
   that it sees beyond the plateau that a confident prediction sits on: one backward pass ranks all regions;
2. the top of the ranking is removed unseen, as long as the derivative says that the prediction holds by a wide margin;
   of the next few regions each is tried, and the best stays;
3. at the flip every region is tried for return (`prune`), until none can be: the set is irreducible;
4. two regions are given back and one other is tried in their place (`swap`).

Many images advance together, every forward pass has the same shape. Measured against other designs in reports/log.md.
Papers: arXiv 2511.12100 (the problem), 2504.00470 (LIMA, greedy search); the fast search, pruning and swaps are ours.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from everycause.explanation.objectives import OBJECTIVES, ObjectiveName, log_odds
from everycause.explanation.regions import MaskedImages
from everycause.explanation.scoring import GRADIENT, Scorer
from everycause.shapes import Bool, Float, Int64

# MERGED DOC: """How much the fast search tries."""


PAIRS = ((0, 1), (0, 2), (1, 2), (0, 3))
"""Which two regions a swap gives back: positions in the order in which their return restores the least."""


class Budget(NamedTuple):
    """How much the fast search tries; chosen on 320 training images of Codebirds (reports/log.md)."""

    dimmed: float = 0.3
    """How far the remaining regions are removed where the derivative is taken."""
    trust: float = 0.8
    """Share of the log-odds that may be used up, as the derivative predicts, by regions that are removed unseen."""
    unseen: int = 6
    """The most regions that are removed unseen in one step."""
    tried: int = 4
    """Regions tried in a step."""
    spread: float = 0.3
    """Only regions with at least this share of the best one's derivative are tried."""
    overshoot: int = 4
    """Regions by which a set may exceed the limit before it is pruned."""
    swaps: int = 1
    """Swaps attempted for each image."""


FAST = Budget()
CAREFUL = FAST._replace(trust=0.0, tried=8, spread=0.0, overshoot=6)
"""The second attempt at images that did not flip."""


Method = Literal["fast", "exhaustive", "greedy"]
FLIP = 1e6
"""Added to the value of candidates that flip, so that the search never passes a flip by."""
Method = Literal["fast", "exhaustive", "greedy"]
FLIP = 1e6
"""Added to the value of candidates that flip, so that the search never passes a flip by."""


class SearchInputs(NamedTuple):
    """The images to search, with what is known of them."""

    masking: MaskedImages
    labels: Int64[Tensor, "images"]
    """The predicted classes, y."""
    runner_up: Int64[Tensor, "images"]
    """The second most probable classes, c."""
    log_odds: Float[Tensor, "images"]
    """log p(y)/(1 − p(y)) of the whole images."""


class SearchResult(NamedTuple):
    """What a search found."""

    order: Int64[Tensor, "images steps"]
    """The regions in the order of their removal; −1 after the end."""
    flipped: Bool[Tensor, "images"]
    """Whether the removal changes the prediction."""
    effect: Float[Tensor, "images regions"]
    """|change of the objective| when a region alone is removed: measured by the exhaustive search, to first order by the fast one."""
    forwards: Int64[Tensor, "images"]
    """Forward passes spent."""


@dataclass
class Search:
    """The state of many images that are searched together."""

    task: SearchInputs
    scorer: Scorer
    """The model as fast as it gets."""
    exact: Scorer
    """The model exactly as it is stored: no flip is believed without it."""
    objective: ObjectiveName
    largest: int
    """The most regions of a result."""
    stops: bool = True
    """Whether an image's search ends at the flip of its prediction."""

    def __post_init__(self) -> None:
        self.exists = self.task.masking.exists
        self.removed = torch.zeros_like(self.exists)
        self.turn = torch.zeros_like(self.exists, dtype=torch.int64)  # when each region was removed
        self.effect = torch.zeros_like(self.exists, dtype=torch.float32)
        self.restored = torch.full_like(self.effect, torch.inf)  # log-odds after the return of each region of the set
        self.left = self.task.log_odds.clone()
        self.flipped = torch.zeros_like(self.task.labels, dtype=torch.bool)
        self.open = ~self.flipped
        self.forwards = torch.zeros_like(self.task.labels)

    def exhaustive(self) -> None:
        """In every step all remaining regions, until the flip or the largest size; ties go to the lowest region."""
        everything = torch.arange(self.removed.shape[1], device=self.removed.device)
        while len(rows := self._rows(self.largest)):
            first = not bool(self.removed[rows].any())
            values = self._decide(
                rows,
                self.removed[rows],
                everything.expand(len(rows), -1),
                self.exists[rows] & ~self.removed[rows],
                prefer_flips=False,
            )
            if first:
                whole = self.scorer.set_logits(
                    self.task.masking, rows, torch.zeros_like(self.removed[rows]), OBJECTIVES[self.objective]
                )
                before = OBJECTIVES[self.objective].value(whole, self.task.labels[rows], self.task.runner_up[rows])
                self.effect[rows] = torch.where(self.exists[rows], (values - before[:, None]).abs(), 0.0)

    def fast(self, budget: Budget) -> None:
        """Steps ranked by derivatives and decided by a few trials."""
        limit = self.largest + budget.overshoot
        while len(rows := self._rows(limit)):
            state = self.removed[rows]
            gradients = self._gradients(rows, state, budget.dimmed)
            if not bool(state.any()):
                self.effect[rows] = torch.where(self.exists[rows], gradients.abs(), 0.0)
            height, region = gradients.masked_fill(state | ~self.exists[rows], -torch.inf).sort(
                dim=1, descending=True, stable=True
            )
            unseen = self._trusted(rows, height, limit, budget)
            rank = region.argsort(dim=1)
            new = rank < unseen[:, None]
            self.turn[rows] = torch.where(new, self._next_turn(rows)[:, None] + rank, self.turn[rows])
            candidates, allowed = _shortlist(height, region, unseen, budget)
            self._decide(rows, state | new, candidates, allowed, prefer_flips=True)

    def confirm(self) -> None:
        """Take back every flip that the stored model does not share, and go on with that model."""
        rows = self.flipped.nonzero()[:, 0]
        self.flipped[rows] = self._flips(rows, self.removed[rows])
        self.open = torch.zeros_like(self.open).index_fill_(0, rows, True) & ~self.flipped
        self.scorer = self.exact

    def again(self) -> None:
        """Begin anew with the images that did not flip."""
        self.open = ~self.flipped
        self.removed[self.open], self.turn[self.open], self.left[self.open] = False, 0, self.task.log_odds[self.open]

    def prune(self, rows: Tensor) -> None:
        """Return regions, the one whose return restores the least first, as long as the flip survives."""
        while len(rows):
            row, region = (self.removed[rows] & (self.removed[rows].sum(dim=1, keepdim=True) > 1)).nonzero(
                as_tuple=True
            )
            sets = self.removed[rows[row]].scatter(1, region[:, None], False)
            left, flips = self._seen_exactly(rows[row], sets)
            self.restored[rows] = torch.inf
            self.restored[rows[row], region] = left
            returned = torch.full_like(self.effect[rows], torch.inf)
            returned[row[flips], region[flips]] = left[flips]
            least = returned.min(dim=1)
            survives = torch.isfinite(least.values)
            rows = rows[survives]
            self.removed[rows, least.indices[survives]] = False

    def swap(self, pair: tuple[int, int], budget: Budget) -> None:
        """Give back two regions and try a few others in their place; where one flips the prediction, the set has shrunk."""
        least = self.restored.sort(dim=1, stable=True)
        rows = (self.flipped & torch.isfinite(least.values[:, max(pair)])).nonzero()[:, 0]
        if len(rows) == 0:
            return
        given = least.indices[rows][:, list(pair)]
        state = self.removed[rows].scatter(1, given, False)
        closed = self.removed[rows] | ~self.exists[rows]
        height, region = (
            self._gradients(rows, state, budget.dimmed)
            .masked_fill(closed, -torch.inf)
            .sort(dim=1, descending=True, stable=True)
        )
        candidates, allowed = _shortlist(height, region, torch.zeros_like(rows), budget)
        trial = self._tried(rows, state, candidates, allowed, prefer_flips=True)
        sets = state.scatter(1, trial.region[:, None], True)
        kept = trial.flips.nonzero()[:, 0]
        kept = kept[self._flips(rows[kept], sets[kept])]
        rows, sets = rows[kept], sets[kept]
        self.turn[rows, trial.region[kept]] = self._next_turn(rows)
        self.removed[rows] = sets
        self.prune(rows)

    def found(self) -> SearchResult:
        """The result; a set that is still too large counts as no flip and is cut to the largest size."""
        self.flipped &= self.removed.sum(dim=1) <= self.largest
        order = torch.where(self.removed, self.turn, torch.iinfo(torch.int64).max).argsort(dim=1, stable=True)[
            :, : self.largest
        ]
        return SearchResult(
            torch.where(self.removed.gather(1, order), order, -1), self.flipped, self.effect, self.forwards
        )

    def ranking(self, dimmed: float) -> Int64[Tensor, "images regions"]:
        """All regions: the removed ones in their order, then the others by the derivative; unused numbers last."""
        rows = torch.arange(len(self.removed), device=self.removed.device)
        gradients = self._gradients(rows, self.removed, dimmed).masked_fill(~self.exists, -torch.inf)
        rest = gradients.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return torch.where(self.removed, self.turn - self.removed.shape[1] ** 3, rest).argsort(dim=1, stable=True)

    def _rows(self, limit: int) -> Int64[Tensor, "rows"]:
        """The images whose search goes on."""
        self.open &= ~self.flipped & (self.removed.sum(dim=1) < limit) & (self.exists & ~self.removed).any(dim=1)
        return self.open.nonzero()[:, 0]

    def _next_turn(self, rows: Tensor) -> Int64[Tensor, "rows"]:
        return self.turn[rows].amax(dim=1) + 1

    def _gradients(self, rows: Tensor, state: Tensor, dimmed: float) -> Float[Tensor, "rows regions"]:
        """The derivative by every region's removal, the removed ones gone and the rest dimmed."""
        objective = OBJECTIVES[self.objective]
        self.forwards[rows] += GRADIENT * objective.passes
        soft = torch.where(state, 1.0, dimmed)
        return self.scorer.gradients(
            self.task.masking.rows(rows), soft, self.task.labels[rows], self.task.runner_up[rows], objective
        )

    def _trusted(self, rows: Tensor, height: Tensor, limit: int, budget: Budget) -> Int64[Tensor, "rows"]:
        """How many regions are removed unseen: those that, as the derivative says, leave the prediction far from its flip."""
        if self.objective != "deletion":  # the other objectives say nothing about the distance to a flip
            return torch.zeros_like(rows)
        used = height.clamp_min(0).cumsum(dim=1)
        safe = (used < budget.trust * self.left[rows, None]).sum(dim=1).clamp_max(budget.unseen)
        room = torch.minimum(limit - self.removed[rows].sum(dim=1), torch.isfinite(height).sum(dim=1)) - 1
        return torch.minimum(safe, room)

    def _tried(self, rows: Tensor, state: Tensor, region: Tensor, allowed: Tensor, prefer_flips: bool) -> "Trial":
        """The best of some candidate regions for each image."""
        row, column = allowed.nonzero(as_tuple=True)
        owner, objective = rows[row], OBJECTIVES[self.objective]
        set_logits = self.scorer.set_logits(
            self.task.masking, owner, state[row].scatter(1, region[row, column][:, None], True), objective
        )
        self.forwards += objective.passes * torch.bincount(owner, minlength=len(self.forwards))
        value = objective.value(set_logits, self.task.labels[owner], self.task.runner_up[owner])
        flips = set_logits.without.argmax(dim=1) != self.task.labels[owner]
        values = torch.full(allowed.shape, -torch.inf, device=value.device)
        values[row, column] = value
        ranked = values.clone()
        if prefer_flips:
            ranked[row, column] += torch.where(flips, FLIP, 0.0)
        best = ranked.argmax(dim=1)  # the first of equal values, so the lowest region or the highest slope
        number = torch.zeros(allowed.shape, dtype=torch.int64, device=value.device)
        number[row, column] = torch.arange(len(row), device=value.device)
        chosen = number.gather(1, best[:, None])[:, 0]
        left = log_odds(set_logits.without, self.task.labels[owner])
        return Trial(region.gather(1, best[:, None])[:, 0], flips[chosen], left[chosen], values)

    def _decide(
        self, rows: Tensor, state: Tensor, region: Tensor, allowed: Tensor, prefer_flips: bool
    ) -> Float[Tensor, "rows candidates"]:
        """Remove the best of some candidate regions."""
        trial = self._tried(rows, state, region, allowed, prefer_flips)
        self.removed[rows] = state.scatter(1, trial.region[:, None], True)
        self.turn[rows, trial.region] = self._next_turn(rows)
        self.left[rows], self.flipped[rows] = trial.left, trial.flips & self.stops
        return trial.values

    def _seen_exactly(self, owner: Tensor, sets: Tensor) -> tuple[Tensor, Tensor]:
        """Log-odds and flips of sets, by the stored model."""
        if len(owner) == 0:
            return torch.zeros(0, device=owner.device), torch.zeros(0, dtype=torch.bool, device=owner.device)
        logits = self.exact.logits(self.task.masking, owner, ~sets)
        self.forwards += torch.bincount(owner, minlength=len(self.forwards))
        return log_odds(logits, self.task.labels[owner]), logits.argmax(dim=1) != self.task.labels[owner]

    def _flips(self, owner: Tensor, sets: Tensor) -> Bool[Tensor, "owner"]:
        return self._seen_exactly(owner, sets)[1]


class Trial(NamedTuple):
    """The best candidate of each image."""

    region: Int64[Tensor, "rows"]
    flips: Bool[Tensor, "rows"]
    left: Float[Tensor, "rows"]
    """Log-odds with it removed."""
    values: Float[Tensor, "rows candidates"]
    """The objective of every candidate."""


def _shortlist(height: Tensor, region: Tensor, start: Tensor, budget: Budget) -> tuple[Tensor, Tensor]:
    """The next few regions of a ranking, and which of them come close enough to the first."""
    place = start[:, None] + torch.arange(budget.tried, device=start.device)
    height, region = (
        torch.nn.functional.pad(value, (0, budget.tried), value=fill)
        for value, fill in ((height, -torch.inf), (region, 0))
    )
    height = height.gather(1, place)
    close = height >= torch.minimum(budget.spread * height[:, :1], height[:, :1])
    return region.gather(1, place), torch.isfinite(height) & close


def search(
    task: SearchInputs,
    scorer: Scorer,
    exact: Scorer,
    objective: ObjectiveName,
    largest: int,
    method: Method,
    budget: Budget = FAST,
) -> SearchResult:
    """The flipping sets of some images.

    Args:
        task: The images.
        scorer: The model as fast as it gets.
        exact: The stored model.
        objective: What is maximized.
        largest: The most regions of a set.
        method: `greedy` is the exhaustive search as published; `exhaustive` also prunes its sets; `fast` is ours.
        budget: How much the fast search tries.
    """
    state = Search(task, scorer, exact, objective, largest)
    if method == "fast":
        state.fast(budget)
        state.again()
        state.fast(CAREFUL)
        state.confirm()
        state.fast(budget)
    else:
        state.exhaustive()
        state.confirm()
        state.exhaustive()
    if method != "greedy":
        state.prune(state.flipped.nonzero()[:, 0])
    for pair in PAIRS[: budget.swaps] if method == "fast" else ():
        state.swap(pair, budget)
    return state.found()
