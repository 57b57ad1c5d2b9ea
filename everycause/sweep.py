"""A sweep at the edge, where training, judging, Optuna and MLflow meet: what its trials share, and one trial retrained and recorded."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from everycause import tracking
from everycause.data.dataset import DataParams, open_split
from everycause.evaluation.selection import Judge
from everycause.model import load, model_fingerprint
from everycause.params import flattened
from everycause.training.stock import Stock, TrialParams
from everycause.training.trial import check_row, trial, with_values
from everycause.tuning.loop import Asked
from everycause.tuning.plan import Plan, Value
from everycause.tuning.space import extremes, present_values


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
    stock: Stock
    judge: Judge
    tracked: tracking.TrackingParams
    tags: dict[str, str]

    @property
    def steps(self) -> int:
        """Reports of a whole trial."""
        return self.params.retraining.epochs * len(self.plan.seeds)

    def measures(self, asked: Asked, parent: str | None) -> dict[str, float] | None:
        """Retrain and measure with a trial's values, in an MLflow run of its own; None where the pruner stops it."""
        tags = self.tags | {"study": self.plan.study, "row": self.plan.row, "trial": str(asked.number)}
        with tracking.run(f"{self.plan.study}/trial-{asked.number}", self.tracked, tags, dict(asked.values), parent=parent) as record:
            asked.has_run(record.run_id)
            found: list[dict[str, float]] = []
            for position in range(len(self.plan.seeds)):
                try:
                    measured = self._retrained(asked, position, record)
                except ValueError as error:
                    record.tag({"state": "failed", "reason": str(error)})
                    raise
                if measured is None:
                    record.status = "KILLED"
                    record.tag({"state": "pruned"})
                    return None
                found.append(measured)
            means = {name: sum(one[name] for one in found) / len(found) for name in found[0]}
            record({f"best/{name.replace(' ', '_')}": means[name] for name in self.judge.names}, self.params.retraining.epochs)
            record.tag({"state": "complete"})
            return means

    def reference(self) -> dict[str, float]:
        """The measures of the continued base, which every value of a grid is read against, where the pipeline has made it."""
        continued = self.stock.artifacts / "models" / "continued" / f"seed-{self.plan.seeds[0]}"
        return self.judge.measures(load(continued, self.stock.device)) if continued.is_dir() else {}

    def _retrained(self, asked: Asked, position: int, record: tracking.Record) -> dict[str, float] | None:
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


def prepared(params: SimpleNamespace, plan: Plan, artifacts: Path, kept: Path, threads: int, device: torch.device) -> Sweep:
    """A sweep whose plan fits the params, and whose artifacts are at hand.

    Raises:
        ValueError: anything that the plan names does not exist or cannot be, or an artifact of the pipeline's seeds is missing.
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
        plan, present, subject, present_params, params.data, threads, Stock(artifacts, kept, present_params, train, validation, device),
        Judge(params.data, validation, threads, plan.objectives), tracked, {"stage": "tune", "threads": str(threads), **tracking.identity(device, train.identity)},
    )  # fmt: skip
