"""Counterfactual region search: the fewest regions whose removal changes ("flips") a prediction.

    min |S|  subject to  argmax f(x \\ S) ≠ y

`exhaustive` is the papers' greedy search: in every step each remaining region is tried. `fast` finds sets of the same
size for a fifth of the forward passes:

1. one backward pass ranks all regions: the derivative of the objective by the removal of each region, taken where all
   remaining regions are already dimmed a little, because a confident prediction is flat at the whole image;
2. the first regions of the ranking are removed without a trial, as long as the derivative predicts that the prediction
   holds by a wide margin; each of the next few regions is tried, and the best one is removed;
3. after the flip the return of every region is tried (`prune`) until none can return: the set is irreducible;
4. two regions are returned and one other region is tried in their place (`swap`).

Many images are searched together. Other designs were measured against this one (reports/log.md).
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

PAIRS = ((0, 1), (0, 2), (1, 2), (0, 3))
"""Which two regions a swap returns, as ranks: rank 0 is the region whose return raises the log-odds least."""


class Budget(NamedTuple):
    """How many trials the fast search makes; chosen on 320 training images of Codebirds (reports/log.md)."""

    dimmed: float = 0.3
    """How far the remaining regions are removed where the derivative is taken, 0 … 1."""
    trust: float = 0.8
    """Share of the log-odds, 0 … 1, that regions removed without a trial may use up by the derivative's prediction."""
    unseen: int = 6
    """The most regions that are removed without a trial in one step."""
    tried: int = 4
    """Regions tried in a step."""
    spread: float = 0.3
    """Only regions with at least this share of the largest derivative are tried, 0 … 1."""
    overshoot: int = 4
    """Regions by which a set may exceed the largest size before it is pruned."""
    swaps: int = 1
    """Swaps attempted for each image."""


FAST = Budget()
CAREFUL = FAST._replace(trust=0.0, tried=8, spread=0.0, overshoot=6)
"""The second attempt at images that did not flip."""


Method = Literal["fast", "exhaustive", "greedy"]


class SearchInputs(NamedTuple):
    """The images to search, with their predictions."""

    masking: MaskedImages
    labels: Int64[Tensor, "images"]
    """The predicted classes, y."""
    runner_up: Int64[Tensor, "images"]
    """The second most probable classes, c."""
    log_odds: Float[Tensor, "images"]
    """log p(y)/(1 − p(y)) of the whole images."""


class SearchResult(NamedTuple):
    """The set of each image that a search found."""

    order: Int64[Tensor, "images steps"]
    """The regions in the order of their removal; −1 after the end."""
    flipped: Bool[Tensor, "images"]
    """Whether the removal changes the prediction."""
    effect: Float[Tensor, "images regions"]
    """|change of the objective| when a region alone is removed; by the fast search to first order."""
    forwards: Int64[Tensor, "images"]
    """Forward passes spent."""


@dataclass
class Search:
    """The state of many images that are searched together."""

    task: SearchInputs
    scorer: Scorer
    """The accelerated model, which proposes."""
    exact: Scorer
    """The model exactly as it is stored, which confirms every flip."""
    objective: ObjectiveName
    largest: int
    """The most regions of a result."""
    stops: bool = True
    """Whether an image's search ends at the flip of its prediction."""

    def __post_init__(self) -> None:
        self.exists = self.task.masking.exists
        self.removed = torch.zeros_like(self.exists)
        self.removal_step = torch.zeros_like(self.exists, dtype=torch.int64)
        self.effect = torch.zeros_like(self.exists, dtype=torch.float32)
        self.log_odds_after_return = torch.full_like(self.effect, torch.inf)  # infinite for regions outside the set
        self.remaining_log_odds = self.task.log_odds.clone()
        self.flipped = torch.zeros_like(self.task.labels, dtype=torch.bool)
        self.active = ~self.flipped
        self.forwards = torch.zeros_like(self.task.labels)

    def exhaustive(self) -> None:
        """Try all remaining regions in every step, until the flip or the largest size; ties go to the lowest region."""
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
        """Rank the regions by derivatives in every step, and decide by a few trials."""
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
            self.removal_step[rows] = torch.where(new, self._next_step(rows)[:, None] + rank, self.removal_step[rows])
            candidates, allowed = _shortlist(height, region, unseen, budget)
            self._decide(rows, state | new, candidates, allowed, prefer_flips=True)

    def confirm(self) -> None:
        """Undo every flip that the stored model does not confirm, and go on with the stored model."""
        rows = self.flipped.nonzero()[:, 0]
        self.flipped[rows] = self._exact_outcome(rows, self.removed[rows])[1]
        self.active = torch.zeros_like(self.active).index_fill_(0, rows, True) & ~self.flipped
        self.scorer = self.exact

    def again(self) -> None:
        """Start again from the whole image where the prediction did not flip."""
        self.active = ~self.flipped
        self.removed[self.active], self.removal_step[self.active] = False, 0
        self.remaining_log_odds[self.active] = self.task.log_odds[self.active]

    def prune(self, rows: Tensor) -> None:
        """Return regions while the flip survives, each time the one whose return raises the log-odds least."""
        while len(rows):
            several = self.removed[rows].sum(dim=1, keepdim=True) > 1
            row, region = (self.removed[rows] & several).nonzero(as_tuple=True)
            sets = self.removed[rows[row]].scatter(1, region[:, None], False)
            remaining, flips = self._exact_outcome(rows[row], sets)
            self.log_odds_after_return[rows] = torch.inf
            self.log_odds_after_return[rows[row], region] = remaining
            returned = torch.full_like(self.effect[rows], torch.inf)
            returned[row[flips], region[flips]] = remaining[flips]
            least = returned.min(dim=1)
            survives = torch.isfinite(least.values)
            rows = rows[survives]
            self.removed[rows, least.indices[survives]] = False

    def swap(self, pair: tuple[int, int], budget: Budget) -> None:
        """Return two regions and try a few others in their place; where one flips, the set has shrunk by one."""
        least = self.log_odds_after_return.sort(dim=1, stable=True)
        others = (self.exists & ~self.removed).any(dim=1)  # a set of all regions leaves none to try
        rows = (self.flipped & others & torch.isfinite(least.values[:, max(pair)])).nonzero()[:, 0]
        if len(rows) == 0:
            return
        state = self.removed[rows].scatter(1, least.indices[rows][:, list(pair)], False)
        excluded = self.removed[rows] | ~self.exists[rows]
        height, region = (
            self._gradients(rows, state, budget.dimmed)
            .masked_fill(excluded, -torch.inf)
            .sort(dim=1, descending=True, stable=True)
        )
        candidates, allowed = _shortlist(height, region, torch.zeros_like(rows), budget)
        trial = self._best_trial(rows, state, candidates, allowed, prefer_flips=True)
        sets = state.scatter(1, trial.region[:, None], True)
        kept = trial.flips.nonzero()[:, 0]
        kept = kept[self._exact_outcome(rows[kept], sets[kept])[1]]
        rows, sets = rows[kept], sets[kept]
        self.removal_step[rows, trial.region[kept]] = self._next_step(rows)
        self.removed[rows] = sets
        self.prune(rows)

    def found(self) -> SearchResult:
        """The result; a set above the largest size counts as no flip and is cut to the largest size."""
        self.flipped &= self.removed.sum(dim=1) <= self.largest
        step = torch.where(self.removed, self.removal_step, torch.iinfo(torch.int64).max)
        order = step.argsort(dim=1, stable=True)[:, : self.largest]
        order = torch.where(self.removed.gather(1, order), order, -1)
        return SearchResult(order, self.flipped, self.effect, self.forwards)

    def ranking(self, dimmed: float) -> Int64[Tensor, "images regions"]:
        """All regions: the removed ones in their order, then the others by their derivative; unused numbers last."""
        rows = torch.arange(len(self.removed), device=self.removed.device)
        gradients = self._gradients(rows, self.removed, dimmed).masked_fill(~self.exists, -torch.inf)
        rest = gradients.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return torch.where(self.removed, self.removal_step - self.removed.shape[1] ** 3, rest).argsort(
            dim=1, stable=True
        )

    def _rows(self, limit: int) -> Int64[Tensor, "rows"]:
        """The images that are still searched."""
        self.active &= ~self.flipped & (self.removed.sum(dim=1) < limit) & (self.exists & ~self.removed).any(dim=1)
        return self.active.nonzero()[:, 0]

    def _next_step(self, rows: Tensor) -> Int64[Tensor, "rows"]:
        return self.removal_step[rows].amax(dim=1) + 1

    def _gradients(self, rows: Tensor, state: Tensor, dimmed: float) -> Float[Tensor, "rows regions"]:
        """The derivative by the removal of every region, with the set removed and the other regions dimmed."""
        objective = OBJECTIVES[self.objective]
        self.forwards[rows] += GRADIENT * objective.passes
        soft = torch.where(state, 1.0, dimmed)
        return self.scorer.gradients(
            self.task.masking.rows(rows), soft, self.task.labels[rows], self.task.runner_up[rows], objective
        )

    def _trusted(self, rows: Tensor, height: Tensor, limit: int, budget: Budget) -> Int64[Tensor, "rows"]:
        """How many regions are removed without a trial, because the derivative predicts that the flip is still far."""
        if self.objective != "deletion":  # the values of the other objectives are no distance to a flip
            return torch.zeros_like(rows)
        used = height.clamp_min(0).cumsum(dim=1)
        safe = (used < budget.trust * self.remaining_log_odds[rows, None]).sum(dim=1).clamp_max(budget.unseen)
        room = torch.minimum(limit - self.removed[rows].sum(dim=1), torch.isfinite(height).sum(dim=1)) - 1
        return torch.minimum(safe, room)

    def _best_trial(self, rows: Tensor, state: Tensor, region: Tensor, allowed: Tensor, prefer_flips: bool) -> "Trial":
        """The best of some candidate regions for each image."""
        row, column = allowed.nonzero(as_tuple=True)
        owner, objective = rows[row], OBJECTIVES[self.objective]
        sets = state[row].scatter(1, region[row, column][:, None], True)
        set_logits = self.scorer.set_logits(self.task.masking, owner, sets, objective)
        self.forwards += objective.passes * torch.bincount(owner, minlength=len(self.forwards))
        value = objective.value(set_logits, self.task.labels[owner], self.task.runner_up[owner])
        flips = set_logits.without.argmax(dim=1) != self.task.labels[owner]
        values = torch.full(allowed.shape, -torch.inf, device=value.device)
        values[row, column] = value
        flipping = torch.zeros_like(allowed)
        flipping[row, column] = flips
        best = best_candidate(values, flipping if prefer_flips else torch.zeros_like(flipping))
        number = torch.zeros(allowed.shape, dtype=torch.int64, device=value.device)
        number[row, column] = torch.arange(len(row), device=value.device)
        chosen = number.gather(1, best[:, None])[:, 0]
        remaining = log_odds(set_logits.without, self.task.labels[owner])
        return Trial(region.gather(1, best[:, None])[:, 0], flips[chosen], remaining[chosen], values)

    def _decide(
        self, rows: Tensor, state: Tensor, region: Tensor, allowed: Tensor, prefer_flips: bool
    ) -> Float[Tensor, "rows candidates"]:
        """Remove the best of some candidate regions."""
        trial = self._best_trial(rows, state, region, allowed, prefer_flips)
        self.removed[rows] = state.scatter(1, trial.region[:, None], True)
        self.removal_step[rows, trial.region] = self._next_step(rows)
        self.remaining_log_odds[rows], self.flipped[rows] = trial.remaining_log_odds, trial.flips & self.stops
        return trial.values

    def _exact_outcome(self, owner: Tensor, sets: Tensor) -> tuple[Tensor, Tensor]:
        """Log-odds and flips of sets, by the stored model."""
        if len(owner) == 0:
            return torch.zeros(0, device=owner.device), torch.zeros(0, dtype=torch.bool, device=owner.device)
        logits = self.exact.logits(self.task.masking, owner, ~sets)
        self.forwards += torch.bincount(owner, minlength=len(self.forwards))
        return log_odds(logits, self.task.labels[owner]), logits.argmax(dim=1) != self.task.labels[owner]


class Trial(NamedTuple):
    """The best candidate of each image."""

    region: Int64[Tensor, "rows"]
    flips: Bool[Tensor, "rows"]
    remaining_log_odds: Float[Tensor, "rows"]
    """With the candidate removed."""
    values: Float[Tensor, "rows candidates"]
    """The objective of every candidate."""


def best_candidate(
    values: Float[Tensor, "rows candidates"], flips: Bool[Tensor, "rows candidates"]
) -> Int64[Tensor, "rows"]:
    """The candidate with the largest (flips, value): a flip comes before any value; the first one of equals."""
    passed_over = flips.any(dim=1, keepdim=True) & ~flips
    return values.masked_fill(passed_over, -torch.inf).argmax(dim=1)


def _shortlist(height: Tensor, region: Tensor, start: Tensor, budget: Budget) -> tuple[Tensor, Tensor]:
    """The next few regions of a ranking, and which of them have a derivative close enough to the largest."""
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
    """Search the regions of each image whose removal flips its prediction.

    Args:
        task: The images.
        scorer: The accelerated model, which proposes.
        exact: The stored model, which confirms.
        objective: The set function that is maximized.
        largest: The most regions of a set.
        method: `greedy` is the exhaustive search as published; `exhaustive` also prunes its sets; `fast` is ours.
        budget: How many trials the fast search makes.
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
