"""One trial of a sweep: a row retrained with other weights and thresholds on the artifacts that exist already."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from everycause.data.split import Split
from everycause.explanation.filters import FilterBank, FilterParams, accumulate, local_filters
from everycause.explanation.heads import LinearHead
from everycause.explanation.masks import Masks
from everycause.inference import readout_of
from everycause.model import Classifier, Readout, load, model_fingerprint
from everycause.section import Section
from everycause.training.fill import FillParams
from everycause.training.fit import Epoch, FitParams, fit
from everycause.training.objective import ObjectiveParams
from everycause.training.rows import ROWS, Recipe, Upstream, goal_of


class TrialParams(Section):
    """The sections that a trial may change."""

    filters: FilterParams
    fill: FillParams
    objective: ObjectiveParams
    retraining: FitParams


def with_values(params: TrialParams, values: dict[str, float]) -> TrialParams:
    """The same parameters with some dotted paths changed.

    Raises:
        ValueError: a path lies outside the sections that a trial may change, or a value is out of range.
    """
    raw: dict[str, Any] = copy.deepcopy(params.model_dump())
    for path, value in values.items():
        *parents, last = path.split(".")
        if not parents or parents[0] not in raw:
            raise ValueError(f"tuning.parameters: '{path}' would need new upstream artifacts; a trial can change {', '.join(raw)}")
        level = raw
        for key in parents:
            level = level[key]
        level[last] = value
    return TrialParams(**raw)


class Trial(NamedTuple):
    """A classifier that is retrained as its epochs are drawn."""

    classifier: Classifier
    filters: dict[str, float]
    """Its filter bank in a few numbers."""
    epochs: Iterator[Epoch]


@dataclass(frozen=True)
class Shared:
    """What all trials share: the base, its masks and its heads, and its readout of the training split, computed once."""

    base: Path
    validation: Split
    upstream: Upstream
    head: LinearHead
    seen: Readout
    made_with: FilterParams
    """What the bank at hand was made with."""

    @classmethod
    def open(cls, artifacts: Path, seed: int, train: Split, validation: Split, filters: FilterParams, device: torch.device) -> "Shared":
        """The artifacts of one seed.

        Raises:
            ValueError: one is missing or belongs to another base.
        """
        base = artifacts / "models" / "base" / f"seed-{seed}"
        classifier, model = load(base, device), model_fingerprint(base)
        bank = FilterBank.load(artifacts / "filters" / "minimum_correct" / f"seed-{seed}", model)
        masks = Masks.load(artifacts / "masks" / "counterfactual" / f"seed-{seed}", model, train.identity)
        head = LinearHead(*classifier.head()).to("cpu")
        return cls(base, validation, Upstream(classifier, bank, masks, train), head, readout_of(classifier, train), filters)

    def trial(self, row: str, params: TrialParams, recipe: Recipe, seed: int, device: torch.device) -> Trial:
        """A row about to be retrained. A changed confidence threshold recounts the filters, changed heads are trained anew, nothing else is repeated.

        Raises:
            ValueError: a class has no image above the confidence threshold; drawing epochs raises it for a loss that is not finite.
        """
        classifier, train, before = load(self.base, device), self.upstream.train, self.upstream.bank
        assert before is not None
        local, filters = before.local, params.filters
        if (filters.generator, filters.heads) != (self.made_with.generator, self.made_with.heads):
            local = local_filters(filters.generator, self.seen, train.labels, self.head, filters.heads, seed, device)
        bank = accumulate(local, self.head, self.seen, train.labels, train.class_names, filters.confidence_threshold, before.model)
        recipe = recipe._replace(fill=params.fill, weights=params.objective, frequency_threshold=filters.frequency_threshold)
        goal = goal_of(ROWS[row], replace(self.upstream, bank=bank), recipe, seed)
        return Trial(classifier, bank.summary(filters), fit(classifier, train, self.validation, params.retraining, seed, goal, row))
