"""What a study searches: the `tuning` section, the plan of one study, and the values of its trials.

The search space is dotted paths into params.yaml, each with a range or a list of values. From top to bottom: bounds of
one parameter, the section, the plan that is made from it, present and published values, and the values of one trial.
"""

import difflib
import math
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from everycause.errors import UserError
from everycause.params import Section, flattened

if TYPE_CHECKING:
    import optuna

Value = bool | int | float | str
OBJECTIVES = ("validation completeness", "validation accuracy")
"""What a study may maximize: shares of validation images, 0 to 1."""
ENQUEUED = "enqueued"
"""Note in a trial that was queued: the values that it must try, exactly."""
NAME = r"^\w[^/\\]*$"
"""A name of a study or of a grid: folders are called by it."""
DIGITS = 3
"""Significant digits of sampled numbers: nobody adopts 0.00034893840294057845."""


class Range(Section):
    """The range of one number; whole numbers where the present value is one."""

    low: float
    high: float
    log: bool
    """Search on a logarithmic scale."""
    published: float | None = None
    """The value of the papers, tried in trial 1; without one that trial takes the present value."""

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
    """The value of the papers, tried in trial 1."""

    @model_validator(mode="after")
    def _hold_the_published_one(self) -> "Values":
        if self.published is not None and self.published not in self.values:
            raise UserError(f"the values {self.values} lack the published value {self.published}")
        return self


def _kind(bounds: Any) -> str:
    """Which of the two a section is meant to be, so that one mistake gives one message."""
    return "[values]" if isinstance(bounds, Values) or (isinstance(bounds, dict) and "values" in bounds) else "[range]"


Bounds = Annotated[Annotated[Range, Tag("[range]")] | Annotated[Values, Tag("[values]")], Discriminator(_kind)]
"""Of a sweep; tags in brackets stand in no message."""


class Ablation(Section):
    """A grid over parameters of one retraining row."""

    row: str = Field(min_length=1)
    """The row that is retrained."""
    parameters: dict[str, Values] = Field(min_length=1)
    """Dotted path → values; every combination is tried once."""


class Plan(NamedTuple):
    """One study: the sweep of the section, or one of its grids. Fields as in TuningParams."""

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
        """What must be the same when a study goes on."""
        parameters = {path: bounds.model_dump(exclude={"published"}) for path, bounds in self.parameters.items()}
        return {"row": self.row, "objectives": self.objectives, "seeds": self.seeds, "parameters": parameters}


class TuningParams(Section):
    """A search over parameters of one retraining row, and grids over others."""

    study: str = Field(pattern=NAME)
    """Name of the study in its storage, and of its folder."""
    row: str = Field(min_length=1)
    """The row that is tuned: one of everycause.training.rows."""
    objectives: list[str] = Field(min_length=1, max_length=2)
    """What is maximized, on validation images and never on a test split: one measure, or two. Of two, a front is found:
    the trials of which none gains in one measure without losing in the other."""
    trials: int = Field(ge=1, le=1_000_000)
    """Number of trials, pruned ones counted; a study that has fewer goes on."""
    seeds: list[int] = Field(min_length=1)
    """Every trial is trained once for each seed, on the base of that seed; its measures are averaged."""
    sampler: Literal["tpe", "nsga2", "random"]
    """Optuna's sampler."""
    pruner: Literal["none", "median", "hyperband"]
    """Optuna's pruner, which stops trials that are poor after some epochs; `none` with two objectives."""
    seed: int = Field(ge=0, le=2**32 - 1)
    """Seed of the sampler: one worker draws the same trials again, also when it is stopped and goes on."""
    parameters: dict[str, Bounds] = Field(min_length=1)
    """Dotted path → range or values."""
    ablations: dict[Annotated[str, Field(pattern=NAME)], Ablation]
    """Grids by name, for `make ablation name=…`."""

    @field_validator("objectives")
    @classmethod
    def _never_a_test_split(cls, objectives: list[str]) -> list[str]:
        for name in objectives:
            if name not in OBJECTIVES:
                raise UserError(
                    f"'{name}' is not among the measures of validation images ({', '.join(OBJECTIVES)}); "
                    "what is measured on a test split, shifted or not, cannot be tuned on"
                )
        return objectives

    @model_validator(mode="after")
    def _two_objectives_are_not_pruned(self) -> "TuningParams":
        if len(self.objectives) > 1 and self.pruner != "none":
            raise UserError(f"Optuna cannot prune a study of two objectives: set pruner to none, not {self.pruner}")
        if not 0 <= min(self.seeds) <= max(self.seeds) < 2**32:
            raise UserError(f"seeds {self.seeds} must lie between 0 and {2**32 - 1}")
        return self

    def plan(self, ablation: str = "") -> Plan:
        """The sweep, or the grid of an ablation.

        Raises:
            UserError: there is no ablation of that name.
        """
        if not ablation:
            return Plan(
                study=self.study,
                row=self.row,
                objectives=self.objectives,
                trials=self.trials,
                seeds=self.seeds,
                sampler=self.sampler,
                pruner=self.pruner,
                seed=self.seed,
                parameters=dict(self.parameters),
                grid=False,
            )
        if ablation not in self.ablations:
            raise UserError(f"tuning.ablations has no '{ablation}' (known: {', '.join(self.ablations) or 'none'})")
        chosen = self.ablations[ablation]
        return Plan(
            study=f"ablation-{ablation}",
            row=chosen.row,
            objectives=self.objectives[:1],
            trials=math.prod(len(one.values) for one in chosen.parameters.values()),
            seeds=self.seeds,
            sampler="random",
            pruner="none",
            seed=self.seed,
            parameters=dict(chosen.parameters),
            grid=True,
        )


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
                f"tuning.parameters: '{path}' is not a parameter that a trial can change{hint} "
                f"(sections: {', '.join(params)})"
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
                    f"{where}: the values {bounds.values} of '{path}' lack the present value {value}, "
                    "which the others are read against"
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
    """The values that a check must try, by path: both ends of every range, and every listed value."""
    ends: list[tuple[str, Value]] = []
    for path, bounds in plan.parameters.items():
        whole = isinstance(present[path], int)
        listed = bounds.values if isinstance(bounds, Values) else (_as(bounds.low, whole), _as(bounds.high, whole))
        ends += [(path, value) for value in listed]
    return ends


def starts(plan: Plan, present: dict[str, Value]) -> list[dict[str, Value]]:
    """The values of the first trials: the present ones, then the published ones; of a grid, every combination."""
    if plan.grid:
        axes = [bounds.values for bounds in plan.parameters.values() if isinstance(bounds, Values)]
        return [dict(zip(plan.parameters, values, strict=True)) for values in product(*axes)]
    published = dict(present)
    for path, bounds in plan.parameters.items():
        if bounds.published is not None:
            whole = isinstance(present[path], int)
            published[path] = bounds.published if isinstance(bounds, Values) else _as(bounds.published, whole)
    return [present] if published == present else [present, published]


def suggested(trial: "optuna.Trial", plan: Plan, present: dict[str, Value]) -> dict[str, Value]:
    """The values that a trial trains with, drawn by the study's sampler where the trial was not queued."""
    for path, bounds in plan.parameters.items():
        if isinstance(bounds, Values):
            trial.suggest_categorical(path, bounds.values)
        elif isinstance(present[path], int):
            trial.suggest_int(path, int(bounds.low), int(bounds.high), log=bounds.log)
        else:
            trial.suggest_float(path, bounds.low, bounds.high, log=bounds.log)
    return used(trial, plan)


def used(trial: "optuna.Trial | optuna.trial.FrozenTrial", plan: Plan) -> dict[str, Value]:
    """The values that a trial trains with: queued ones exactly, sampled ones rounded."""
    enqueued = trial.user_attrs.get(ENQUEUED, {})
    return {
        path: value if path in enqueued else rounded(value, plan.parameters[path])
        for path, value in trial.params.items()
    }


def rounded(value: Value, bounds: Range | Values) -> Value:
    """A sampled number with few digits, within its range; anything else as it is."""
    if not isinstance(value, float) or isinstance(bounds, Values):
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), bounds.low), bounds.high)


def _as(value: float, whole: bool) -> Value:
    return int(value) if whole else float(value)
