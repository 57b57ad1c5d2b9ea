"""One trial of a sweep: a row retrained with other values, measured on validation images, and recorded.

A trial retrains a row as the stage `retrain` does, byte for byte. A sweep may maximize measures of validation images,
never of a test split. This module is where training, evaluation, Optuna and MLflow meet.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError

from everycause import tracking
from everycause.data.erasures import ValidationErasures
from everycause.data.images import Framing
from everycause.data.sources import DataParams, open_split
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.evaluation.faithfulness import validation_causes
from everycause.inference import check_fits, logits_of
from everycause.models import Classifier, framing_of, load, model_fingerprint
from everycause.params import flattened
from everycause.training.counterfactuals import Recipe, Upstream
from everycause.training.fit import Epoch
from everycause.training.loss import accuracy
from everycause.training.rows import ROWS, retrain
from everycause.tuning.loop import RunningTrial
from everycause.tuning.space import Plan, Value, extremes, present_values, value_at
from everycause.tuning.upstream import TrialParams, UpstreamCache

COMPLETENESS, ACCURACY = "validation completeness", "validation accuracy"
QUICK = 4
"""After an epoch every fourth image is measured, which tells poor trials from good ones at a quarter of the cost."""


class ValidationJudge:
    """Measures a classifier on validation images, under the names that a sweep may maximize.

    Raises:
        UserError: an objective needs data whose parts are known, and those of these data are not.
    """

    def __init__(self, data: DataParams, validation: Split, threads: int, objectives: list[str]) -> None:
        self._validation = validation
        self._erasures = (
            ValidationErasures(data, threads) if data.code is not None or COMPLETENESS in objectives else None
        )

    @property
    def names(self) -> list[str]:
        """The measures that these data allow."""
        return [ACCURACY] if self._erasures is None else [ACCURACY, COMPLETENESS]

    def measures(self, classifier: Classifier) -> dict[str, float]:
        """Every measure that these data allow."""
        measures = {ACCURACY: accuracy(logits_of(classifier, self._validation), self._validation.labels)}
        return (
            measures
            if self._erasures is None
            else measures | {COMPLETENESS: validation_causes(classifier, self._erasures)["completeness"]}
        )

    def quick_value(self, classifier: Classifier, objective: str, accuracy_now: float) -> float:
        """An objective after an epoch, on some of the images: comparable with other trials alone."""
        if objective == ACCURACY or self._erasures is None:
            return accuracy_now
        return validation_causes(classifier, self._erasures, QUICK)["completeness"]


FILTER_TERMS = {"loss.lambda_mc", "loss.lambda_nonmc", "loss.surrogate"}
COUNTERFACTUALS = {"loss.lambda_augment", "background.augment_rate"}
NEVER = {"filters.compared", "filters.detection_frequency_threshold"}
"""Params that only other stages read."""


def with_values(params: TrialParams, values: dict[str, Value]) -> TrialParams:
    """The same parameters with some dotted paths changed; the paths must exist.

    Raises:
        UserError: a value is not one that the parameter may have.
    """
    raw: dict[str, Any] = copy.deepcopy(params.model_dump())
    for path, value in values.items():
        *parents, last = path.split(".")
        level = raw
        for key in parents:
            level = level[key]
        level[last] = value
    try:
        return TrialParams(**raw)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise UserError(
            f"tuning: '{where}' cannot be {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
        ) from error


def check_row(row: str, paths: list[str]) -> None:
    """Refuse a row that does not exist, and parameters that change nothing in it.

    Raises:
        UserError: there is one.
    """
    if row not in ROWS:
        raise UserError(f"tuning: '{row}' is not a retraining row (known: {', '.join(ROWS)})")
    for path in paths:
        if _changes_nothing(row, path):
            raise UserError(f"tuning: '{path}' changes nothing in the row '{row}': leave it out, or tune another row")


def _changes_nothing(name: str, path: str) -> bool:
    """Whether a parameter has no influence on a row."""
    section, row = path.split(".")[0], ROWS[name]
    if path in NEVER:
        return True
    if section == "filters" or path in FILTER_TERMS:
        return row.filters is None
    if path == "loss.lambda_augment" and row.objective is not None:
        return True
    if path in COUNTERFACTUALS:
        return row.removes is None and row.augments is None
    if section == "background" and row.others:
        return True
    needed = {"masks": row.removes is not None, "background": row.removes is not None, "rounds": row.rounds}
    return not needed.get(section, section != "exchange" or row.exchanges)


def check_plans(params: SimpleNamespace) -> None:
    """Look up every row and parameter that the sweep or a grid names, and try the ends of every range.

    Raises:
        UserError: one does not exist, or a value is not one that the parameter may have.
    """
    sections = TrialParams(**{name: getattr(params, name) for name in TrialParams.model_fields})
    for plan in (params.tuning.plan(), *map(params.tuning.plan, params.tuning.ablations)):
        try:
            check_values(plan, {path: value_at(sections.model_dump(), path) for path in plan.parameters}, sections)
        except UserError as error:
            raise UserError(f"params.yaml: {error}") from error


def check_values(plan: Plan, present: dict[str, Value], params: TrialParams) -> None:
    """Refuse a row, a parameter or a value of a plan that no trial could have.

    Raises:
        UserError: there is one.
    """
    check_row(plan.row, list(plan.parameters))
    for path, value in extremes(plan, present):
        with_values(params, {path: value})


class Trial(NamedTuple):
    """A classifier that is retrained as its epochs are drawn."""

    classifier: Classifier
    filters: dict[str, float]
    """The filter bank in a few numbers; empty for rows without filter terms."""
    epochs: Iterator[Epoch]


def trial(cache: UpstreamCache, row: str, params: TrialParams, data: DataParams, threads: int, seed: int) -> Trial:
    """A row about to be retrained with some params; masks and filters are made only if the row needs them.

    Raises:
        UserError: the row needs filters or masks that cannot be made; while epochs are drawn, the loss is not finite.
    """
    base = cache.base(params, seed)
    classifier = load(base, cache.device)
    upstream = Upstream(
        base=classifier,
        model=model_fingerprint(base),
        train=cache.train,
        validation=cache.validation,
        open_masks=lambda: cache.masks(base, params, seed),
        open_filters=lambda: cache.bank(base, params.filters, seed),
        watch_filters=False,
    )
    recipe = Recipe(
        data, params.masks, params.background, params.exchange, params.loss, params.filters.frequency_threshold, threads
    )
    retraining = retrain(row, upstream, recipe, params.retraining, params.rounds, seed)
    filters = upstream.filters.summary(params.filters) if ROWS[row].filters else {}
    return Trial(classifier, filters, retraining.epochs())


@dataclass(frozen=True)
class Sweep:
    """Everything that the trials of one study have in common."""

    plan: Plan
    present: dict[str, Value]
    """The present values of the tuned parameters."""
    subject: dict[str, Any]
    """Data and fixed params of the study: trials of other ones do not belong to it."""
    params: TrialParams
    data: DataParams
    threads: int
    cache: UpstreamCache
    judge: ValidationJudge
    seen_by: Callable[[Framing | None], tuple[UpstreamCache, ValidationJudge]]
    """Both on photographs framed as the network of a trial wants them."""
    tracked: tracking.TrackingParams
    tags: dict[str, str]

    @property
    def steps(self) -> int:
        """Number of epochs of a whole trial, over all its seeds."""
        return self.params.retraining.epochs * len(self.plan.seeds)

    def measures(self, asked: RunningTrial, parent: str | None) -> dict[str, float] | None:
        """Retrain and measure with a trial's values, in an MLflow run of its own; None if the pruner stops it."""
        tags = self.tags | {"study": self.plan.study, "row": self.plan.row, "trial": str(asked.number)}
        name = f"trial-{asked.number} · {self.plan.study}"
        history = self.cache.kept.parent / "trials" / self.plan.study / f"trial-{asked.number}.jsonl"
        with tracking.run(name, self.tracked, tags, dict(asked.values), history, parent) as record:
            asked.has_run(record.run_id)
            found: list[dict[str, float]] = []
            for position in range(len(self.plan.seeds)):
                try:
                    measured = self._retrained(asked, position, record)
                except UserError as error:
                    record.tag({"state": "failed", "reason": str(error)})
                    raise
                if measured is None:
                    record.status = "KILLED"
                    record.tag({"state": "pruned"})
                    return None
                found.append(measured)
            means = {name: sum(one[name] for one in found) / len(found) for name in found[0]}
            record(
                {f"best/{name.replace(' ', '_')}": means[name] for name in self.judge.names},
                self.params.retraining.epochs,
            )
            record.tag({"state": "complete"})
            return means

    def reference(self) -> dict[str, float]:
        """The measures of the row `continued`, to compare a grid with; empty if the pipeline has not made it."""
        continued = self.cache.artifacts / "models" / "continued" / f"seed-{self.plan.seeds[0]}"
        return self.judge.measures(load(continued, self.cache.device)) if continued.is_dir() else {}

    def _retrained(self, asked: RunningTrial, position: int, record: tracking.Record) -> dict[str, float] | None:
        """The measures of one seed; None if the pruner stops it."""
        seed, last = self.plan.seeds[position], {}
        params = with_values(self.params, asked.values)
        cache, judge = self.seen_by(framing_of(params.model))
        started = trial(cache, self.plan.row, params, self.data, self.threads, seed)
        prefix = f"seed-{seed}/" if len(self.plan.seeds) > 1 else ""
        for epoch in started.epochs:
            last = epoch.measures
            shown = {f"{prefix}{name}": value for name, value in last.items()}
            step = position * params.retraining.epochs + epoch.number
            if step not in asked.watched:
                record(shown, epoch.number)
                continue
            value = judge.quick_value(started.classifier, self.plan.objectives[0], last["validation/accuracy"])
            record(shown | {f"{prefix}quick_value/{self.plan.objectives[0].replace(' ', '_')}": value}, epoch.number)
            if not asked.goes_on(value, step):
                return None
        return judge.measures(started.classifier) | last | started.filters


def prepared(
    params: SimpleNamespace, plan: Plan, artifacts: Path, kept: Path, threads: int, device: torch.device
) -> Sweep:
    """A sweep whose plan fits the params, and whose artifacts exist.

    Raises:
        UserError: the plan names something that does not exist, or a base of the pipeline's seeds is missing.
    """
    present_params = TrialParams(**{name: getattr(params, name) for name in TrialParams.model_fields})
    raw = present_params.model_dump()
    present = present_values(raw, plan)
    check_values(plan, present, present_params)

    @lru_cache
    def seen_by(framing: Framing | None) -> tuple[UpstreamCache, ValidationJudge]:
        data = params.data.seen_by(framing)
        train, validation = (open_split(data, name, threads) for name in ("train", "validation"))
        cache = UpstreamCache(artifacts, kept, present_params, train, validation, device)
        return cache, ValidationJudge(data, validation, threads, plan.objectives)

    cache, judge = seen_by(framing_of(present_params.model))
    train, validation = cache.train, cache.validation
    bases = {seed: artifacts / "models" / "base" / f"seed-{seed}" for seed in plan.seeds if seed in params.seeds}
    for base in bases.values():
        check_fits(load(base), train)
    fixed = {path: value for path, value in flattened(raw).items() if path not in plan.parameters}
    subject: dict[str, Any] = {"data": train.identity, "validation": validation.identity, "params": fixed}
    if not any(path.startswith(("model.", "training.")) for path in plan.parameters):
        subject["base"] = {f"seed-{seed}": model_fingerprint(base) for seed, base in bases.items()}
    tracked = params.tracking.model_copy(update={"experiment": f"{params.tracking.experiment}-tuning"})
    tags = {"stage": "tune", "threads": str(threads), **tracking.identity(device, train.identity)}
    return Sweep(
        plan=plan,
        present=present,
        subject=subject,
        params=present_params,
        data=params.data,
        threads=threads,
        cache=cache,
        judge=judge,
        seen_by=seen_by,
        tracked=tracked,
        tags=tags,
    )
