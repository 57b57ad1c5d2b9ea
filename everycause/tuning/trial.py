"""A sweep at the edge, where training, judging, Optuna and MLflow meet: what its trials share, and one trial retrained and recorded."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError

from everycause import tracking
from everycause.data.codebirds import ValidationErasures
from everycause.data.sources import DataParams, open_split
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.evaluation.completeness import completeness_score, effective_causes, profile, reliance
from everycause.inference import logits_of, logits_of_images
from everycause.models import Classifier, load, model_fingerprint
from everycause.params import flattened
from everycause.training.fit import Epoch, Training, fit
from everycause.training.loss import accuracy
from everycause.training.rounds import rounds
from everycause.training.rows import ROUNDS, ROWS, Recipe, Upstream, goal_of
from everycause.tuning.loop import RunningTrial
from everycause.tuning.space import Plan, Value, extremes, present_values
from everycause.tuning.upstream import TrialParams, UpstreamCache

# MERGED DOC: """What a sweep may maximize: measures of validation images, never of a test split."""
# MERGED DOC: """One trial of a sweep: a row retrained with other values, as the stage `retrain` would retrain it, byte for byte."""


COMPLETENESS, ACCURACY = "validation completeness", "validation accuracy"
GLANCE = 4
"""After an epoch every so many-th image is looked at, enough to tell a poor trial from a good one at a quarter of the cost."""


def validation_causes(classifier: Classifier, erasures: ValidationErasures, every: int = 1) -> dict[str, float]:
    """Completeness and the reliance on each part, from erasures of validation images, or of every so many-th of them."""
    accuracies = {
        parts: accuracy(logits_of_images(classifier, images[::every]), labels[::every])
        for parts, images, labels in erasures
    }
    code = erasures.code
    shares = reliance(accuracies, code.length)
    measures = {
        "completeness": completeness_score(profile(accuracies, code), code.num_classes),
        "effective_causes": effective_causes(shares),
    }
    return measures | {f"reliance/{part}": share for part, share in enumerate(shares)}


class ValidationJudge:
    """Measures a classifier on validation images, by the names that a sweep may maximize.

    Raises:
        UserError: an objective needs data whose parts are known, and these are not.
    """

    def __init__(self, data: DataParams, validation: Split, threads: int, objectives: list[str]) -> None:
        self._validation = validation
        self._erasures = (
            ValidationErasures(data, threads) if data.code is not None or COMPLETENESS in objectives else None
        )

    @property
    def names(self) -> list[str]:
        """What can be had of these data."""
        return [ACCURACY] if self._erasures is None else [ACCURACY, COMPLETENESS]

    def measures(self, classifier: Classifier) -> dict[str, float]:
        """Every measure that can be had of these data."""
        measures = {ACCURACY: accuracy(logits_of(classifier, self._validation), self._validation.labels)}
        return (
            measures
            if self._erasures is None
            else measures | {COMPLETENESS: validation_causes(classifier, self._erasures)["completeness"]}
        )

    def glance(self, classifier: Classifier, objective: str, accuracy_now: float) -> float:
        """An objective after an epoch: cheap, and comparable only with another trial's."""
        if objective == ACCURACY or self._erasures is None:
            return accuracy_now
        return validation_causes(classifier, self._erasures, GLANCE)["completeness"]


FILTER_TERMS = {"loss.lambda_mc", "loss.lambda_nonmc", "loss.surrogate"}
COUNTERFACTUALS = {"loss.lambda_augment", "background.augment_rate"}
NEVER = {"filters.compared", "filters.detection_frequency_threshold"}
"""Read by other stages alone."""


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
    if row not in (*ROWS, ROUNDS):
        raise UserError(f"tuning: '{row}' is not a retraining row (known: {', '.join([*ROWS, ROUNDS])})")
    for path in paths:
        if _changes_nothing(row, path):
            raise UserError(f"tuning: '{path}' changes nothing in the row '{row}': leave it out, or tune another row")


def _changes_nothing(row: str, path: str) -> bool:
    section = path.split(".")[0]
    in_rounds = row == ROUNDS
    filters = not in_rounds and ROWS[row].filters is not None
    removes = in_rounds or ROWS[row].removes is not None
    augments = removes or ROWS[row].augments is not None
    if path in NEVER:
        return True
    if section == "filters" or path in FILTER_TERMS:
        return not filters
    if path in COUNTERFACTUALS:
        return not augments
    return (section in ("masks", "background") and not removes) or (section == "rounds" and not in_rounds)


class Trial(NamedTuple):
    """A classifier that is retrained as its epochs are drawn."""

    classifier: Classifier
    filters: dict[str, float]
    """The filter bank in a few numbers; none in rounds."""
    epochs: Iterator[Epoch]


def trial(stock: UpstreamCache, row: str, params: TrialParams, data: DataParams, threads: int, seed: int) -> Trial:
    """A row about to be retrained with some params.

    Raises:
        UserError: a class has no image above the confidence threshold, or no prediction flips; drawing epochs raises it for a loss that is not finite.
    """
    base = stock.base(params, seed)
    masks = stock.masks(base, params, seed)
    bank = stock.bank(base, params.filters, seed) if row != ROUNDS else None
    torch.manual_seed(seed)  # trials of one process must not depend on each other
    classifier = load(base, stock.device)
    recipe = Recipe(data, params.masks, params.background, params.loss, params.filters.frequency_threshold, threads)
    upstream = Upstream(classifier, bank, masks, stock.train)
    if bank is None:
        training = Training(classifier, stock.train, stock.validation, params.retraining, seed, ROUNDS)
        return Trial(
            classifier,
            {},
            (epoch for done in rounds(training, upstream, recipe, params.rounds, []) for epoch in done.epochs),
        )
    goal = goal_of(ROWS[row], upstream, recipe, seed)
    return Trial(
        classifier,
        bank.summary(params.filters),
        fit(classifier, stock.train, stock.validation, params.retraining, seed, goal, row),
    )


@dataclass(frozen=True)
class Sweep:
    """Everything that the trials of one study share."""

    plan: Plan
    present: dict[str, Value]
    """The present values of the tuned parameters."""
    subject: dict[str, Any]
    """What the study is about."""
    params: TrialParams
    data: DataParams
    threads: int
    stock: UpstreamCache
    judge: ValidationJudge
    tracked: tracking.TrackingParams
    tags: dict[str, str]

    @property
    def steps(self) -> int:
        """Reports of a whole trial."""
        return self.params.retraining.epochs * len(self.plan.seeds)

    def measures(self, asked: RunningTrial, parent: str | None) -> dict[str, float] | None:
        """Retrain and measure with a trial's values, in an MLflow run of its own; None where the pruner stops it."""
        tags = self.tags | {"study": self.plan.study, "row": self.plan.row, "trial": str(asked.number)}
        with tracking.run(
            f"{self.plan.study}/trial-{asked.number}", self.tracked, tags, dict(asked.values), parent=parent
        ) as record:
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
        """The measures of the continued base, which every value of a grid is read against, where the pipeline has made it."""
        continued = self.stock.artifacts / "models" / "continued" / f"seed-{self.plan.seeds[0]}"
        return self.judge.measures(load(continued, self.stock.device)) if continued.is_dir() else {}

    def _retrained(self, asked: RunningTrial, position: int, record: tracking.Record) -> dict[str, float] | None:
        """The measures of one seed; None where the pruner stops it."""
        seed, last = self.plan.seeds[position], {}
        params = with_values(self.params, asked.values)
        started = trial(self.stock, self.plan.row, params, self.data, self.threads, seed)
        prefix = f"seed-{seed}/" if len(self.plan.seeds) > 1 else ""
        for epoch in started.epochs:
            last = epoch.measures
            shown = {f"{prefix}{name}": value for name, value in last.items()}
            step = position * params.retraining.epochs + epoch.number
            if step not in asked.watched:
                record(shown, epoch.number)
                continue
            value = self.judge.glance(started.classifier, self.plan.objectives[0], last["validation/accuracy"])
            record(shown | {f"{prefix}glance/{self.plan.objectives[0].replace(' ', '_')}": value}, epoch.number)
            if not asked.goes_on(value, step):
                return None
        return self.judge.measures(started.classifier) | last | started.filters


def prepared(
    params: SimpleNamespace, plan: Plan, artifacts: Path, kept: Path, threads: int, device: torch.device
) -> Sweep:
    """A sweep whose plan fits the params, and whose artifacts are at hand.

    Raises:
        UserError: anything that the plan names does not exist or cannot be, or an artifact of the pipeline's seeds is missing.
    """
    present_params = TrialParams(**{name: getattr(params, name) for name in TrialParams.model_fields})
    raw = present_params.model_dump()
    present = present_values(raw, plan)
    check_row(plan.row, list(plan.parameters))
    for path, value in extremes(plan, present):
        with_values(present_params, {path: value})
    train, validation = (open_split(params.data, name, threads) for name in ("train", "validation"))
    bases = {seed: artifacts / "models" / "base" / f"seed-{seed}" for seed in plan.seeds if seed in params.seeds}
    for base in bases.values():
        load(base)
    fixed = {path: value for path, value in flattened(raw).items() if path not in plan.parameters}
    subject: dict[str, Any] = {"data": train.identity, "validation": validation.identity, "params": fixed}
    if not any(path.startswith(("model.", "training.")) for path in plan.parameters):
        subject["base"] = {f"seed-{seed}": model_fingerprint(base) for seed, base in bases.items()}
    tracked = params.tracking.model_copy(update={"experiment": f"{params.tracking.experiment}-tuning"})
    return Sweep(
        plan, present, subject, present_params, params.data, threads, UpstreamCache(artifacts, kept, present_params, train, validation, device),
        ValidationJudge(params.data, validation, threads, plan.objectives), tracked, {"stage": "tune", "threads": str(threads), **tracking.identity(device, train.identity)},
    )  # fmt: skip
