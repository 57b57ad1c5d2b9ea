"""The only door to Optuna: a resumable study over dotted params, in process, on a journal file.

A study remembers what it is about (data, model, rule, ranges); continuing it with anything else is refused. Trials never
call DVC: parallel `dvc exp run` breaks its own queue.
"""

import json
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from everycause.section import Section

if TYPE_CHECKING:
    import optuna

SUBJECT = "subject"
RULES_SHOWN = ("validation completeness", "validation accuracy")


class Range(Section):
    """Where one parameter is searched."""

    low: float
    high: float
    log: bool
    """Search on a logarithmic scale."""

    @model_validator(mode="after")
    def _is_a_range(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError("a logarithmic range must begin above 0")
        return self


class Values(Section):
    """The values that one parameter takes in a grid."""

    values: list[float] = Field(min_length=2)
    """The present value must be one of them: it is what the others are read against."""


class Ablation(Section):
    """A grid over params of one retraining row."""

    row: str = Field(min_length=1)
    """The row that is retrained."""
    parameters: dict[str, Values] = Field(min_length=1)
    """Dotted path → values; all combinations are tried."""


class TuningParams(Section):
    """A study over params of one retraining row."""

    study: str = Field(min_length=1)
    """Its name in the journal."""
    row: str = Field(min_length=1)
    """The row that is tuned, one of everycause.training.rows."""
    rule: Literal["validation completeness", "validation accuracy"]
    """What is maximized; never a test split."""
    trials: int = Field(ge=1)
    """Finished trials in all; a study that has fewer goes on."""
    seed: int = Field(ge=0)
    """Of the sampler, and the seed of the base artifacts and trials."""
    parameters: dict[str, Range | Values] = Field(min_length=1)
    """Dotted path → range; values instead of ranges make a grid."""
    ablations: dict[str, Ablation]
    """Grids by name, for `make ablation name=…`."""

    @property
    def grid(self) -> dict[str, list[float]] | None:
        """The values of every parameter, where the study is a grid."""
        return {path: one.values for path, one in self.parameters.items() if isinstance(one, Values)} or None


def ablation(tuning: TuningParams, name: str) -> TuningParams:
    """The study that tries every combination of an ablation's values.

    Raises:
        ValueError: there is no ablation of that name.
    """
    if name not in tuning.ablations:
        raise ValueError(f"tuning.ablations has no '{name}' (known: {', '.join(tuning.ablations) or 'none'})")
    chosen = tuning.ablations[name]
    trials = math.prod(len(one.values) for one in chosen.parameters.values())
    return tuning.model_copy(update={"study": f"ablation-{name}", "row": chosen.row, "trials": trials, "parameters": dict(chosen.parameters)})


def value_at(params: dict[str, Any], path: str) -> float:
    """The number at a dotted path.

    Raises:
        ValueError: there is none.
    """
    value: Any = params
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            raise ValueError(f"tuning.parameters: '{path}' is not a parameter that a trial can change (sections: {', '.join(params)})")
        value = value[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"tuning.parameters: '{path}' is {value!r}, not a number")
    return float(value)


def defaults(params: dict[str, Any], tuning: TuningParams) -> dict[str, float]:
    """The present values of the tuned parameters in the sections that a trial may change.

    Raises:
        ValueError: a path does not exist or its range excludes the present value.
    """
    present = {path: value_at(params, path) for path in tuning.parameters}
    for path, value in present.items():
        bounds = tuning.parameters[path]
        if isinstance(bounds, Values):
            if value not in bounds.values:
                raise ValueError(f"tuning.ablations: the values {bounds.values} of '{path}' lack the present value {value}, which the others are read against")
        elif not bounds.low <= value <= bounds.high:
            raise ValueError(f"tuning.parameters.{path}: the range {bounds.low} … {bounds.high} excludes the present value {value}")
    return present


def open_study(journal: Path, tuning: TuningParams, subject: dict[str, Any], start: dict[str, float]) -> "optuna.Study":
    """The study, created with the present values as trial 0, or continued.

    Raises:
        ValueError: a study of that name exists and is about something else; the difference is named.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal.parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=tuning.study, storage=JournalStorage(JournalFileBackend(str(journal))), direction="maximize", load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=tuning.seed),
    )  # fmt: skip
    told = json.loads(json.dumps(subject))
    known = study.user_attrs.get(SUBJECT)
    if known is None:
        study.set_user_attr(SUBJECT, told)
        if tuning.grid is None:
            study.enqueue_trial(start)
    elif known != told:
        changed = sorted(key for key in {*known, *told} if known.get(key) != told.get(key))
        raise ValueError(
            f"the study '{tuning.study}' in {journal} was made with another {', '.join(changed)}: give tuning.study a new name, or restore the old values"
        )
    return study


def optimize(study: "optuna.Study", tuning: TuningParams, measures_of: Callable[[int, dict[str, float]], dict[str, float]]) -> None:
    """Run trials until the study has `tuning.trials` finished ones; the rule's measure is maximized, the others are kept beside it."""
    import optuna

    def chosen_by(trial: optuna.Trial, path: str, bounds: Range | Values) -> float:
        if isinstance(bounds, Values):
            return trial.suggest_float(path, min(bounds.values), max(bounds.values))
        return trial.suggest_float(path, bounds.low, bounds.high, log=bounds.log)

    def objective(trial: optuna.Trial) -> float:
        measures = measures_of(trial.number, {path: chosen_by(trial, path, bounds) for path, bounds in tuning.parameters.items()})
        for name, value in measures.items():
            trial.set_user_attr(name, value)
        return measures[tuning.rule]

    complete = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    remaining = tuning.trials - len(complete)
    if tuning.grid:  # Optuna's own grid sampler counts a trial that was stopped as done
        waiting = study.get_trials(states=(optuna.trial.TrialState.WAITING,))
        known = [*(trial.params for trial in complete), *(trial.system_attrs["fixed_params"] for trial in waiting)]
        combinations = [dict(zip(tuning.grid, values, strict=True)) for values in product(*tuning.grid.values())]
        for chosen in (one for one in combinations if one not in known):
            study.enqueue_trial(chosen)
    if remaining > 0:
        study.optimize(objective, n_trials=remaining, show_progress_bar=True)


def finished(study: "optuna.Study") -> Any:
    """The table of finished trials: number, value, every parameter and every measure, in the order of the parameters."""
    table = study.trials_dataframe(attrs=("number", "value", "params", "user_attrs", "state"))
    table = table[table["state"] == "COMPLETE"].rename(columns=lambda name: name.removeprefix("params_").removeprefix("user_attrs_"))
    return table.sort_values([path for path in study.best_params], ignore_index=True).drop(columns="state")


def write_grid(study: "optuna.Study", tuning: TuningParams, reference: dict[str, float], folder: Path) -> None:
    """An ablation's table and figure: a line over one parameter, a heat map over two; `reference` is the continued base's."""
    import matplotlib.pyplot as plt

    table, paths = finished(study), list(tuning.parameters)
    table.to_csv(folder / "trials.csv", index=False)
    shown = [name for name in RULES_SHOWN if name in table.columns]
    figure, axes = plt.subplots(1, len(shown), figsize=(5.4 * len(shown), 3.8), squeeze=False)
    for axis, name in zip(axes[0], shown, strict=True):
        if len(paths) == 1:
            axis.plot(table[paths[0]], table[name], marker="o", color="#d98c00", label=tuning.row)
            axis.set(xlabel=paths[0], ylabel=name)
            if name in reference:
                axis.axhline(reference[name], color="#222222", linestyle="--", linewidth=1, label="continued")
            axis.legend(frameon=False, fontsize=8)
        else:
            square = table.pivot_table(index=paths[0], columns=paths[1], values=name)
            axis.imshow(square, cmap="viridis", aspect="auto", origin="lower")
            for (row, column), value in np.ndenumerate(square.to_numpy()):
                axis.text(column, row, f"{value:.3f}", ha="center", va="center", color="black" if value > square.to_numpy().mean() else "white", fontsize=9)
            axis.set_xticks(range(square.shape[1]), [f"{value:g}" for value in square.columns])
            axis.set_yticks(range(square.shape[0]), [f"{value:g}" for value in square.index])
            continued = f" (continued {reference[name]:.3f})" if name in reference else ""
            axis.set(xlabel=paths[1], ylabel=paths[0], title=name + continued)
    figure.tight_layout()
    figure.savefig(folder / "grid.png", dpi=110, metadata={"Software": None})
    plt.close(figure)


def write_proposal(study: "optuna.Study", tuning: TuningParams, folder: Path) -> None:
    """The winner, the table of trials and the plots, for a person to adopt or not."""
    import matplotlib.pyplot as plt
    import optuna.visualization.matplotlib as drawing
    import yaml

    header = f"# Proposed by the study '{tuning.study}': trial {study.best_trial.number} of {len(study.trials)}, selected by {tuning.rule} = {study.best_value:.4f}\n"
    nested: dict[str, Any] = {}
    for path, value in study.best_params.items():
        *parents, last = path.split(".")
        level = nested
        for key in parents:
            level = level.setdefault(key, {})
        level[last] = value
    folder.joinpath("best_params.yaml").write_text(header + yaml.safe_dump(nested))
    table = study.trials_dataframe(attrs=("number", "value", "params", "state"))
    table.to_csv(folder / "trials.csv", index=False)
    for name, draw in (("history", drawing.plot_optimization_history), ("parallel_coordinates", drawing.plot_parallel_coordinate)):
        draw(study)
        plt.gcf().set_size_inches(9, 5)
        plt.tight_layout()
        plt.savefig(folder / f"{name}.png", dpi=110)
        plt.close("all")
