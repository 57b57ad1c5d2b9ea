"""One trial of a sweep: a row retrained with other values, as the stage `retrain` would retrain it, byte for byte."""

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError

from everycause.data.dataset import DataParams
from everycause.model import Classifier, load
from everycause.training.fit import Epoch, Training, fit
from everycause.training.rounds import rounds
from everycause.training.rows import ROUNDS, ROWS, Recipe, Upstream, goal_of
from everycause.training.stock import Stock, TrialParams

Value = bool | int | float | str
FILTER_TERMS = {"objective.lambda_mc", "objective.lambda_nonmc", "objective.surrogate"}
COUNTERFACTUALS = {"objective.lambda_augment", "fill.augment_rate"}
NEVER = {"filters.compared", "filters.detection_frequency_threshold"}
"""Read by other stages alone."""


def with_values(params: TrialParams, values: dict[str, Value]) -> TrialParams:
    """The same parameters with some dotted paths changed; the paths must exist.

    Raises:
        ValueError: a value is not one that the parameter may have.
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
        raise ValueError(f"tuning: '{where}' cannot be {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}") from error


def check_row(row: str, paths: list[str]) -> None:
    """Refuse a row that does not exist, and parameters that change nothing in it.

    Raises:
        ValueError: there is one.
    """
    if row not in (*ROWS, ROUNDS):
        raise ValueError(f"tuning: '{row}' is not a retraining row (known: {', '.join([*ROWS, ROUNDS])})")
    for path in paths:
        if _changes_nothing(row, path):
            raise ValueError(f"tuning: '{path}' changes nothing in the row '{row}': leave it out, or tune another row")


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
    return (section in ("masks", "fill") and not removes) or (section == "rounds" and not in_rounds)


class Trial(NamedTuple):
    """A classifier that is retrained as its epochs are drawn."""

    classifier: Classifier
    filters: dict[str, float]
    """The filter bank in a few numbers; none in rounds."""
    epochs: Iterator[Epoch]


def trial(stock: Stock, row: str, params: TrialParams, data: DataParams, threads: int, seed: int) -> Trial:
    """A row about to be retrained with some params.

    Raises:
        ValueError: a class has no image above the confidence threshold, or no prediction flips; drawing epochs raises it for a loss that is not finite.
    """
    base = stock.base(params, seed)
    masks = stock.masks(base, params, seed)
    bank = stock.bank(base, params.filters, seed) if row != ROUNDS else None
    torch.manual_seed(seed)  # trials of one process must not depend on each other
    classifier = load(base, stock.device)
    recipe = Recipe(data, params.masks, params.fill, params.objective, params.filters.frequency_threshold, threads)
    upstream = Upstream(classifier, bank, masks, stock.train)
    if bank is None:
        training = Training(classifier, stock.train, stock.validation, params.retraining, seed, ROUNDS)
        return Trial(classifier, {}, (epoch for done in rounds(training, upstream, recipe, params.rounds, []) for epoch in done.epochs))
    goal = goal_of(ROWS[row], upstream, recipe, seed)
    return Trial(classifier, bank.summary(params.filters), fit(classifier, stock.train, stock.validation, params.retraining, seed, goal, row))
