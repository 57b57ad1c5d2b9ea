from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from everycause.training.trial import TrialParams, with_values
from everycause.tuning import Ablation, Range, TuningParams, Values, ablation, defaults, open_study, optimize, write_grid, write_proposal

RANGES = {
    "objective.lambda_mc": Range(low=1e-4, high=2e-3, log=True),
    "filters.confidence_threshold": Range(low=0.05, high=0.99, log=False),
}
GRIDS = {
    "one": Ablation(row="filters", parameters={"objective.lambda_mc": Values(values=[1e-4, 1e-3, 2e-3])}),
    "two": Ablation(
        row="filters", parameters={"objective.lambda_mc": Values(values=[1e-3, 2e-3]), "objective.lambda_nonmc": Values(values=[1e-5, 1e-4, 2e-4])}
    ),
}
TUNING = TuningParams(study="toy", row="joint", rule="validation accuracy", trials=4, seed=0, parameters=RANGES, ablations=GRIDS)
SUBJECT = {"data": "d", "model": "m"}


@pytest.fixture
def trial_params(raw: dict) -> TrialParams:
    return TrialParams(**{name: raw[name] for name in TrialParams.model_fields})


def value_of(number: int, chosen: dict[str, float]) -> dict[str, float]:
    return {"validation accuracy": 1 - abs(chosen.get("filters.confidence_threshold", 0.4) - 0.4) - chosen["objective.lambda_mc"], "train/mc": 3.0}


def finished(journal: Path, trials: int, start: dict[str, float]) -> optuna.Study:
    tuning = TUNING.model_copy(update={"trials": trials})
    study = open_study(journal, tuning, SUBJECT, start)
    optimize(study, tuning, value_of)
    return study


def test_a_study_starts_at_the_present_values_and_goes_on_where_it_stopped(tmp_path: Path, trial_params: TrialParams) -> None:
    start = defaults(trial_params.model_dump(), TUNING)
    first = finished(tmp_path / "journal.log", 3, start)
    assert first.trials[0].params == start
    before = [trial.params for trial in first.trials]
    second = finished(tmp_path / "journal.log", 5, start)
    assert [trial.params for trial in second.trials][:3] == before and len(second.trials) == 5
    assert len(finished(tmp_path / "journal.log", 5, start).trials) == 5


def test_a_trial_that_fails_is_repeated_by_the_next_call(tmp_path: Path, trial_params: TrialParams) -> None:
    start = defaults(trial_params.model_dump(), TUNING)
    study = open_study(tmp_path / "journal.log", TUNING, SUBJECT, start)

    def dies(number: int, _chosen: dict[str, float]) -> dict[str, float]:
        if number == 1:
            raise KeyboardInterrupt
        return {"validation accuracy": 0.5}

    with pytest.raises(KeyboardInterrupt):
        optimize(study, TUNING, dies)
    again = finished(tmp_path / "journal.log", 4, start)
    assert sum(trial.state == optuna.trial.TrialState.COMPLETE for trial in again.trials) == 4


def test_a_study_about_something_else_is_refused_and_the_difference_named(tmp_path: Path, trial_params: TrialParams) -> None:
    start = defaults(trial_params.model_dump(), TUNING)
    finished(tmp_path / "journal.log", 1, start)
    with pytest.raises(ValueError, match="was made with another model"):
        open_study(tmp_path / "journal.log", TUNING, SUBJECT | {"model": "other"}, start)


def test_the_proposal_says_by_which_rule_it_was_chosen(tmp_path: Path, trial_params: TrialParams) -> None:
    study = finished(tmp_path / "journal.log", 4, defaults(trial_params.model_dump(), TUNING))
    write_proposal(study, TUNING, tmp_path)
    text = (tmp_path / "best_params.yaml").read_text()
    assert text.startswith("# Proposed by the study 'toy'") and "selected by validation accuracy" in text
    best: dict[str, Any] = yaml.safe_load(text)
    assert with_values(trial_params, {"objective.lambda_mc": best["objective"]["lambda_mc"]}).objective.lambda_mc == study.best_params["objective.lambda_mc"]
    assert {"trials.csv", "history.png", "parallel_coordinates.png"} <= {file.name for file in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("path", "bounds", "message"),
    [
        ("objective.lambda", (0.0, 1.0), "'objective.lambda' is not a parameter"),
        ("masks.grid", (2.0, 8.0), "'masks.grid' is not a parameter"),
        ("fill.source", (0.0, 1.0), "not a number"),
        ("objective.lambda_augment", (2.0, 3.0), "excludes the present value 1.0"),
    ],
)
def test_wrong_paths_and_ranges_are_one_sentence(trial_params: TrialParams, path: str, bounds: tuple[float, float], message: str) -> None:
    tuning = TUNING.model_copy(update={"parameters": {path: Range(low=bounds[0], high=bounds[1], log=False)}})
    with pytest.raises(ValueError, match=message):
        defaults(trial_params.model_dump(), tuning)


def test_a_parameter_that_needs_new_upstream_artifacts_is_refused(trial_params: TrialParams) -> None:
    with pytest.raises(ValueError, match="new upstream artifacts"):
        with_values(trial_params, {"masks.regions": 49.0})


@pytest.mark.parametrize(("name", "combinations"), [("one", 3), ("two", 6)])
def test_an_ablation_tries_every_combination_once_and_goes_on_where_it_stopped(tmp_path: Path, trial_params: TrialParams, name: str, combinations: int) -> None:
    grid = ablation(TUNING, name)
    start = defaults(trial_params.model_dump(), grid)
    calls: list[dict[str, float]] = []

    def stops(number: int, chosen: dict[str, float]) -> dict[str, float]:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(chosen)
        return value_of(number, chosen)

    with pytest.raises(KeyboardInterrupt):
        optimize(open_study(tmp_path / "journal.log", grid, SUBJECT, start), grid, stops)
    study = open_study(tmp_path / "journal.log", grid, SUBJECT, start)
    optimize(study, grid, value_of)
    complete = [tuple(trial.params.values()) for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    assert len(complete) == len(set(complete)) == combinations and tuple(start.values()) in complete
    write_grid(study, grid, {"validation accuracy": 0.9}, tmp_path)
    lines = (tmp_path / "trials.csv").read_text().splitlines()
    assert len(lines) == combinations + 1 and "train/mc" in lines[0] and (tmp_path / "grid.png").stat().st_size > 5000


def test_an_ablation_that_is_not_there_or_lacks_the_present_value_is_refused(trial_params: TrialParams) -> None:
    with pytest.raises(ValueError, match="has no 'three' .known: one, two"):
        ablation(TUNING, "three")
    grid = ablation(TUNING, "one").model_copy(update={"parameters": {"objective.lambda_mc": Values(values=[0.5, 0.6])}})
    with pytest.raises(ValueError, match="lack the present value 0.001"):
        defaults(trial_params.model_dump(), grid)
