"""The space that a plan searches: dotted paths into params, their present and published values, and what a trial uses."""

import difflib
import math
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from everycause.errors import UserError
from everycause.params import Section, flattened

# MERGED DOC: """What is searched, how, and by what it is judged: the `tuning:` section, and the plan of one study."""


Value = bool | int | float | str
OBJECTIVES = ("validation completeness", "validation accuracy")
"""What a study may maximize: shares of validation images, 0 to 1."""


class Range(Section):
    """Where one number is searched; whole numbers where the present value is one."""

    low: float
    high: float
    log: bool
    """Search on a logarithmic scale."""
    published: float | None = None
    """The papers' choice, for trial 1; without one that trial keeps the present value."""

    @model_validator(mode="after")
    def _is_a_range(self) -> "Range":
        if not self.low < self.high:
            raise UserError(f"low ({self.low}) must be below high ({self.high})")
        if self.log and self.low <= 0:
            raise UserError("a logarithmic range must begin above 0")
        if self.published is not None and not self.low <= self.published <= self.high:
            raise UserError(f"the range {self.low} … {self.high} excludes the published value {self.published}")
        return self


class Values(Section):
    """The values that one parameter may take: categories of a sweep, or an axis of a grid."""

    values: list[Value] = Field(min_length=2)
    """The present value must be one of them: it is what the others are read against."""
    published: Value | None = None
    """The papers' choice, for trial 1."""

    @model_validator(mode="after")
    def _are_different(self) -> "Values":
        if len(set(self.values)) < len(self.values):
            raise UserError(f"the values {self.values} repeat themselves")
        if self.published is not None and self.published not in self.values:
            raise UserError(f"the values {self.values} lack the published value {self.published}")
        return self


class Ablation(Section):
    """A grid over params of one retraining row."""

    row: str = Field(min_length=1)
    """The row that is retrained."""
    parameters: dict[str, Values] = Field(min_length=1)
    """Dotted path → values; all combinations are tried."""


class Plan(NamedTuple):
    """One study: the sweep of the section, or one of its grids."""

    study: str
    row: str
    objectives: list[str]
    trials: int
    seeds: list[int]
    sampler: str
    pruner: str
    seed: int
    parameters: dict[str, Range | Values]
    grid: bool
    """Every combination of the values is tried once; nothing is sampled and nothing pruned."""

    @property
    def scheme(self) -> dict[str, object]:
        """What a study must have been made with to be gone on with."""
        return {
            "row": self.row, "objectives": self.objectives, "seeds": self.seeds,
            "parameters": {path: bounds.model_dump(exclude={"published"}) for path, bounds in self.parameters.items()},
        }  # fmt: skip


class TuningParams(Section):
    """A study over params of one retraining row."""

    study: str = Field(min_length=1)
    """Its name in the storage."""
    row: str = Field(min_length=1)
    """The row that is tuned: one of everycause.training.rows, or masks_rounds."""
    objectives: list[str] = Field(min_length=1, max_length=2)
    """What is maximized, never on a test split: one measure, or two for a front of trials of which neither gains without the other's loss."""
    trials: int = Field(ge=1)
    """Trials in all, pruned ones counted; a study that has fewer goes on."""
    seeds: list[int] = Field(min_length=1)
    """Every trial is trained once for each, on this seed's base, and its measures averaged."""
    sampler: Literal["tpe", "nsga2", "random"]
    """Optuna's sampler."""
    pruner: Literal["none", "median", "hyperband"]
    """What stops a trial whose epochs promise little; `none` with two objectives."""
    seed: int = Field(ge=0)
    """Of the sampler: one worker draws the same trials again, also when it is stopped and goes on."""
    parameters: dict[str, Range | Values] = Field(min_length=1)
    """Dotted path → range or values."""
    ablations: dict[str, Ablation]
    """Grids by name, for `make ablation name=…`."""

    @field_validator("objectives")
    @classmethod
    def _never_a_test_split(cls, objectives: list[str]) -> list[str]:
        for name in objectives:
            if name not in OBJECTIVES:
                raise UserError(
                    f"'{name}' is not among the measures of validation images ({', '.join(OBJECTIVES)}); what is measured on a test split, shifted or not, cannot be tuned on"
                )
        if len(set(objectives)) < len(objectives):
            raise UserError(f"'{objectives[0]}' is named twice")
        return objectives

    @model_validator(mode="after")
    def _two_objectives_are_not_pruned(self) -> "TuningParams":
        if len(self.objectives) > 1 and self.pruner != "none":
            raise UserError(f"Optuna cannot prune a study of two objectives: set pruner to none, not {self.pruner}")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise UserError(f"seeds {self.seeds} must be different and not negative")
        return self

    def plan(self, ablation: str = "") -> Plan:
        """The sweep, or the grid of an ablation.

        Raises:
            UserError: there is no ablation of that name.
        """
        if not ablation:
            return Plan(
                self.study,
                self.row,
                self.objectives,
                self.trials,
                self.seeds,
                self.sampler,
                self.pruner,
                self.seed,
                dict(self.parameters),
                grid=False,
            )
        if ablation not in self.ablations:
            raise UserError(f"tuning.ablations has no '{ablation}' (known: {', '.join(self.ablations) or 'none'})")
        chosen = self.ablations[ablation]
        trials = math.prod(len(one.values) for one in chosen.parameters.values())
        return Plan(
            f"ablation-{ablation}",
            chosen.row,
            self.objectives[:1],
            trials,
            self.seeds,
            "random",
            "none",
            self.seed,
            dict(chosen.parameters),
            grid=True,
        )


if TYPE_CHECKING:
    import optuna

ENQUEUED = "told"
"""Where a trial that was queued keeps the values that it was told to try."""
DIGITS = 3
"""Sampled numbers are used, shown and proposed with this many significant digits: nobody adopts 0.00034893840294057845."""


def value_at(params: dict[str, Any], path: str) -> Value:
    """The number, switch or text at a dotted path.

    Raises:
        UserError: there is none.
    """
    value: Any = params
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            close = difflib.get_close_matches(path, list(flattened(params)), n=1)
            hint = f", did you mean '{close[0]}'?" if close else ""
            raise UserError(
                f"tuning.parameters: '{path}' is not a parameter that a trial can change{hint} (sections: {', '.join(params)})"
            )
        value = value[key]
    if not isinstance(value, bool | int | float | str):
        raise UserError(f"tuning.parameters: '{path}' is {value!r}, not a number, a switch or a name")
    return value


def nested(flat: dict[str, Value]) -> dict[str, Any]:
    """Dotted paths as the sections that they name."""
    whole: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split(".")
        level = whole
        for key in parents:
            level = level.setdefault(key, {})
        level[last] = value
    return whole


def present_values(params: dict[str, Any], plan: Plan) -> dict[str, Value]:
    """The present values of the tuned parameters, among the sections that a trial may change.

    Raises:
        UserError: a path does not exist, its bounds are of another kind, or they exclude the present value.
    """
    present = {path: value_at(params, path) for path in plan.parameters}
    where = "tuning.ablations" if plan.grid else "tuning.parameters"
    for path, value in present.items():
        bounds = plan.parameters[path]
        if isinstance(bounds, Values):
            if value not in bounds.values:
                raise UserError(
                    f"{where}: the values {bounds.values} of '{path}' lack the present value {value}, which the others are read against"
                )
        elif isinstance(value, bool | str):
            raise UserError(
                f"{where}.{path}: {value!r} is not a number: give 'values' to choose from instead of a range"
            )
        elif not bounds.low <= value <= bounds.high:
            raise UserError(
                f"{where}.{path}: the range {bounds.low} … {bounds.high} excludes the present value {value}"
            )
        elif isinstance(value, int) and not (bounds.low.is_integer() and bounds.high.is_integer()):
            raise UserError(
                f"{where}.{path}: the present value {value} is a whole number, so low and high must be, too"
            )
    return present


def extremes(plan: Plan, present: dict[str, Value]) -> list[tuple[str, Value]]:
    """Every value at which a path's bounds could be wrong: the ends of ranges, and all values that are named."""
    ends: list[tuple[str, Value]] = []
    for path, bounds in plan.parameters.items():
        whole = isinstance(present[path], int)
        ends += [
            (path, value)
            for value in (
                bounds.values if isinstance(bounds, Values) else (_as(bounds.low, whole), _as(bounds.high, whole))
            )
        ]
    return ends


def starts(plan: Plan, present: dict[str, Value]) -> list[dict[str, Value]]:
    """What is tried before anything is sampled: the present values, then the published ones; of a grid, everything."""
    if plan.grid:
        axes = [bounds.values for bounds in plan.parameters.values() if isinstance(bounds, Values)]
        return [dict(zip(plan.parameters, values, strict=True)) for values in product(*axes)]
    published = dict(present)
    for path, bounds in plan.parameters.items():
        if bounds.published is not None:
            published[path] = (
                bounds.published
                if isinstance(bounds, Values)
                else _as(bounds.published, isinstance(present[path], int))
            )
    return [present] if published == present else [present, published]


def suggested(trial: "optuna.Trial", plan: Plan, present: dict[str, Value]) -> dict[str, Value]:
    """Values for a trial, as it uses them."""
    for path, bounds in plan.parameters.items():
        if isinstance(bounds, Values):
            trial.suggest_categorical(path, bounds.values)
        elif isinstance(present[path], int):
            trial.suggest_int(path, int(bounds.low), int(bounds.high), log=bounds.log)
        else:
            trial.suggest_float(path, bounds.low, bounds.high, log=bounds.log)
    return used(trial, plan)


def used(trial: "optuna.Trial | optuna.trial.FrozenTrial", plan: Plan) -> dict[str, Value]:
    """The values that a trial trains with: those it was told to try exactly, sampled ones rounded."""
    enqueued = trial.user_attrs.get(ENQUEUED, {})
    return {
        path: value if path in enqueued else rounded(value, plan.parameters[path])
        for path, value in trial.params.items()
    }


def rounded(value: Value, bounds: Range | Values) -> Value:
    """A sampled number with few digits, within its range."""
    if not isinstance(value, float) or isinstance(bounds, Values):
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), bounds.low), bounds.high)


def _as(value: float, whole: bool) -> Value:
    return int(value) if whole else float(value)
