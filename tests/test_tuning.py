from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from everycause.training.trial import TrialParams, with_values
from everycause.tuning import Range, TuningParams, defaults, open_study, optimize, write_proposal

RANGES = {
    "objective.lambda_mc": Range(low=1e-4, high=2e-3, log=True),
    "filters.confidence_threshold": Range(low=0.05, high=0.99, log=False),
}
TUNING = TuningParams(study="toy", row="joint", rule="validation accuracy", trials=4, seed=0, parameters=RANGES)
SUBJECT = {"data": "d", "model": "m"}


@pytest.fixture
def trial_params(raw: dict) -> TrialParams:
    return TrialParams(**{name: raw[name] for name in TrialParams.model_fields})


def value_of(number: int, chosen: dict[str, float]) -> float:
    return 1 - abs(chosen["filters.confidence_threshold"] - 0.4) - chosen["objective.lambda_mc"]


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

    def dies(number: int, _chosen: dict[str, float]) -> float:
        if number == 1:
            raise KeyboardInterrupt
        return 0.5

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
        with_values(trial_params, {"filters.heads.sparsity": 1.0})
