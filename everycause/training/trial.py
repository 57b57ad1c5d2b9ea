"""One trial of a sweep: a row retrained with other weights and thresholds on the artifacts that exist already."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from everycause.data.split import Split
from everycause.explanation.filters import FilterBank, FilterParams, LinearHead, accumulate
from everycause.explanation.masks import Masks
from everycause.inference import readout_of
from everycause.model import Classifier, Readout, load, model_fingerprint
from everycause.section import Section
from everycause.training.fill import FillParams
from everycause.training.fit import Epoch, FitParams, fit
from everycause.training.objective import ObjectiveParams
from everycause.training.rows import ROWS, Recipe, Upstream, goal_of

REUSED = ("filters.heads",)
"""Parameters below these would need new upstream artifacts."""


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
        if not parents or parents[0] not in raw or path.startswith(REUSED):
            raise ValueError(
                f"tuning.parameters: '{path}' would need new upstream artifacts; a trial can change {', '.join(raw)} (but not {', '.join(REUSED)})"
            )
        level = raw
        for key in parents:
            level = level[key]
        level[last] = value
    return TrialParams(**raw)


@dataclass(frozen=True)
class Shared:
    """What all trials share: the base, its masks and its heads, and its readout of the training split, computed once."""

    base: Path
    validation: Split
    upstream: Upstream
    head: LinearHead
    seen: Readout

    @classmethod
    def open(cls, artifacts: Path, seed: int, train: Split, validation: Split, device: torch.device) -> "Shared":
        """The artifacts of one seed.

        Raises:
            ValueError: one is missing or belongs to another base.
        """
        base = artifacts / "models" / "base" / f"seed-{seed}"
        classifier, model = load(base, device), model_fingerprint(base)
        bank = FilterBank.load(artifacts / "filters" / "minimum_correct" / f"seed-{seed}", model)
        masks = Masks.load(artifacts / "masks" / "counterfactual" / f"seed-{seed}", model, train.identity)
        head = LinearHead(*(value.cpu() for value in classifier.head()))
        return cls(base, validation, Upstream(classifier, bank, masks, train), head, readout_of(classifier, train))

    def retrained(self, row: str, params: TrialParams, recipe: Recipe, seed: int, device: torch.device, heard: Callable[[Epoch], None]) -> Classifier:
        """A row retrained; every epoch is `heard`. A changed confidence threshold recounts the filters, nothing else is repeated.

        Raises:
            ValueError: the loss is not finite, or a class has no image above the confidence threshold.
        """
        classifier, train, before = load(self.base, device), self.upstream.train, self.upstream.bank
        bank = accumulate(before.heads, self.head, self.seen, train.labels, train.class_names, params.filters.confidence_threshold, before.model)
        recipe = recipe._replace(fill=params.fill, weights=params.objective, frequency_threshold=params.filters.frequency_threshold)
        goal = goal_of(ROWS[row], replace(self.upstream, bank=bank), recipe, seed)
        for epoch in fit(classifier, train, self.validation, params.retraining, seed, goal, row):
            heard(epoch)
        return classifier
