"""The only door to Optuna: a resumable study over dotted params, in process, on a journal file.

A study remembers what it is about (data, model, rule, ranges); continuing it with anything else is refused. Trials never
call DVC: parallel `dvc exp run` breaks its own queue.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from everycause.section import Section

if TYPE_CHECKING:
    import optuna

SUBJECT = "subject"


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


class TuningParams(Section):
    """A study over params of one retraining row."""

    study: str = Field(min_length=1)
    """Its name in the journal."""
    row: Literal["filters", "masks", "joint"]
    """The row that is tuned."""
    rule: Literal["validation completeness", "validation accuracy"]
    """What is maximized; never a test split."""
    trials: int = Field(ge=1)
    """Finished trials in all; a study that has fewer goes on."""
    seed: int = Field(ge=0)
    """Of the sampler, and the seed of the base artifacts and trials."""
    parameters: dict[str, Range] = Field(min_length=1)
    """Dotted path → range."""


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
        if not bounds.low <= value <= bounds.high:
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
        study.enqueue_trial(start)
    elif known != told:
        changed = sorted(key for key in {*known, *told} if known.get(key) != told.get(key))
        raise ValueError(
            f"the study '{tuning.study}' in {journal} was made with another {', '.join(changed)}: give tuning.study a new name, or restore the old values"
        )
    return study


def optimize(study: "optuna.Study", tuning: TuningParams, value_of: Callable[[int, dict[str, float]], float]) -> None:
    """Run trials until the study has `tuning.trials` finished ones."""
    import optuna

    def objective(trial: optuna.Trial) -> float:
        chosen = {path: trial.suggest_float(path, bounds.low, bounds.high, log=bounds.log) for path, bounds in tuning.parameters.items()}
        return value_of(trial.number, chosen)

    remaining = tuning.trials - len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)))
    if remaining > 0:
        study.optimize(objective, n_trials=remaining, show_progress_bar=True)


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
