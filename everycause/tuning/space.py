"""The space that a plan searches: dotted paths into params, their present and published values, and what a trial uses."""

import difflib
from itertools import product
from typing import TYPE_CHECKING, Any

from everycause.params import flattened
from everycause.tuning.plan import Plan, Range, Value, Values

if TYPE_CHECKING:
    import optuna

TOLD = "told"
"""Where a trial that was queued keeps the values that it was told to try."""
DIGITS = 3
"""Sampled numbers are used, shown and proposed with this many significant digits: nobody adopts 0.00034893840294057845."""


def value_at(params: dict[str, Any], path: str) -> Value:
    """The number, switch or text at a dotted path.

    Raises:
        ValueError: there is none.
    """
    value: Any = params
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            close = difflib.get_close_matches(path, list(flattened(params)), n=1)
            hint = f", did you mean '{close[0]}'?" if close else ""
            raise ValueError(f"tuning.parameters: '{path}' is not a parameter that a trial can change{hint} (sections: {', '.join(params)})")
        value = value[key]
    if not isinstance(value, bool | int | float | str):
        raise ValueError(f"tuning.parameters: '{path}' is {value!r}, not a number, a switch or a name")
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
        ValueError: a path does not exist, its bounds are of another kind, or they exclude the present value.
    """
    present = {path: value_at(params, path) for path in plan.parameters}
    where = "tuning.ablations" if plan.grid else "tuning.parameters"
    for path, value in present.items():
        bounds = plan.parameters[path]
        if isinstance(bounds, Values):
            if value not in bounds.values:
                raise ValueError(f"{where}: the values {bounds.values} of '{path}' lack the present value {value}, which the others are read against")
        elif isinstance(value, bool | str):
            raise ValueError(f"{where}.{path}: {value!r} is not a number: give 'values' to choose from instead of a range")
        elif not bounds.low <= value <= bounds.high:
            raise ValueError(f"{where}.{path}: the range {bounds.low} … {bounds.high} excludes the present value {value}")
        elif isinstance(value, int) and not (bounds.low.is_integer() and bounds.high.is_integer()):
            raise ValueError(f"{where}.{path}: the present value {value} is a whole number, so low and high must be, too")
    return present


def extremes(plan: Plan, present: dict[str, Value]) -> list[tuple[str, Value]]:
    """Every value at which a path's bounds could be wrong: the ends of ranges, and all values that are named."""
    ends: list[tuple[str, Value]] = []
    for path, bounds in plan.parameters.items():
        whole = isinstance(present[path], int)
        ends += [(path, value) for value in (bounds.values if isinstance(bounds, Values) else (_as(bounds.low, whole), _as(bounds.high, whole)))]
    return ends


def starts(plan: Plan, present: dict[str, Value]) -> list[dict[str, Value]]:
    """What is tried before anything is sampled: the present values, then the published ones; of a grid, everything."""
    if plan.grid:
        axes = [bounds.values for bounds in plan.parameters.values() if isinstance(bounds, Values)]
        return [dict(zip(plan.parameters, values, strict=True)) for values in product(*axes)]
    published = dict(present)
    for path, bounds in plan.parameters.items():
        if bounds.published is not None:
            published[path] = bounds.published if isinstance(bounds, Values) else _as(bounds.published, isinstance(present[path], int))
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
    told = trial.user_attrs.get(TOLD, {})
    return {path: value if path in told else rounded(value, plan.parameters[path]) for path, value in trial.params.items()}


def rounded(value: Value, bounds: Range | Values) -> Value:
    """A sampled number with few digits, within its range."""
    if not isinstance(value, float) or isinstance(bounds, Values):
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), bounds.low), bounds.high)


def _as(value: float, whole: bool) -> Value:
    return int(value) if whole else float(value)
