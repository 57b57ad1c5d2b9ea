from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
import pandas
import pytest
import yaml

from everycause.errors import UserError
from everycause.tuning.loop import RunningTrial, optimize
from everycause.tuning.report import _edge, table_of, winner, write_grid, write_proposal
from everycause.tuning.space import Plan, Range, Values, starts
from everycause.tuning.storages import open_storage
from everycause.tuning.study import open_study
from tests.tuning.test_study import SUBJECT, finished, measured
from tests.tuning.toy import PRESENT, plan_of

BOTH = ["validation accuracy", "validation completeness"]


def test_the_proposal_says_by_which_rule_it_was_chosen_and_is_what_the_trial_used(tmp_path: Path) -> None:
    plan = plan_of(8)
    study = finished(tmp_path, plan)
    write_proposal(study, plan, PRESENT, tmp_path)
    text = (tmp_path / "best_params.yaml").read_text()
    best = max(study.trials, key=lambda trial: trial.value)
    assert text.startswith(
        f"# Proposed by the study 'toy' (row joint): trial {best.number}, selected by the highest validation accuracy"
    )
    proposed = yaml.safe_load(text)["a"]
    assert float(f"{proposed['x']:.3g}") == proposed["x"] and proposed["x"] == pytest.approx(
        best.params["a.x"], rel=1e-2
    )
    report = (tmp_path / "report.md").read_text()
    assert report.splitlines()[2].startswith(
        "**Selection rule**: the highest validation accuracy, on validation images; no test split was read"
    )
    assert (
        f"| {best.number} (proposed)" in report
        and "| 0 (present values) |" in report
        and "| 1 (published values) |" in report
    )
    for name in ("history", "parallel_coordinates", "importances"):
        assert f"({name}.png)" in report and (tmp_path / f"{name}.png").stat().st_size > 5000


def test_the_table_has_every_trial_and_why_it_failed(tmp_path: Path) -> None:
    def sometimes(running: RunningTrial) -> dict[str, float] | None:
        if running.number == 2:
            raise UserError("the loss is nan")
        if running.number == 3:
            running.goes_on(0.1, 1)
            return None
        return measured(running)

    plan = plan_of(6)
    study = finished(tmp_path, plan, sometimes)
    write_proposal(study, plan, PRESENT, tmp_path)
    table = pandas.read_csv(tmp_path / "trials.csv")
    assert list(table["state"]) == ["complete", "complete", "failed", "pruned", "complete", "complete"]
    assert (
        table["reason"][2] == "the loss is nan"
        and np.isnan(table["validation accuracy"][3])
        and table["pruned after"][3] == 1
    )
    report = (tmp_path / "report.md").read_text()
    assert (
        "Trial 2 failed: the loss is nan." in report
        and "4 complete, 1 failed, 1 pruned" in report
        and "(curves.png)" in report
    )


def test_the_winner_of_a_front_is_on_it_and_its_rule_is_said(tmp_path: Path) -> None:
    plan = plan_of(12)._replace(objectives=BOTH)
    study = finished(tmp_path, plan)
    trial, rule = winner(study, plan)
    assert sum(trial.values) == max(
        sum(one.values) for one in study.trials
    )  # the largest sum of all is never dominated
    assert trial.number in {one.number for one in study.best_trials} and "the largest sum of the two" in rule
    write_proposal(study, plan, PRESENT, tmp_path)
    assert {"pareto_front.png", "history_accuracy.png", "importances_completeness.png"} <= {
        file.name for file in tmp_path.iterdir()
    }
    assert table_of(study, plan)["front"].sum() == len(study.best_trials)


def test_trials_that_are_all_alike_have_no_importances_but_a_proposal(tmp_path: Path) -> None:
    plan = plan_of(3)
    write_proposal(finished(tmp_path, plan, lambda _: {"validation accuracy": 0.5}), plan, PRESENT, tmp_path)
    assert (
        not (tmp_path / "importances.png").exists()
        and "trial 0, selected" in (tmp_path / "best_params.yaml").read_text()
    )


def test_a_study_without_a_complete_trial_proposes_nothing_and_says_why(tmp_path: Path) -> None:
    def never(_asked: RunningTrial) -> dict[str, float]:
        raise UserError("the loss is nan")

    plan = plan_of(2)
    with pytest.raises(
        ValueError, match="no trial of the study 'toy' is complete; the last one failed: the loss is nan"
    ):
        write_proposal(finished(tmp_path, plan, never), plan, PRESENT, tmp_path)


def test_the_bar_shows_the_best_value_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("everycause.tuning.loop.tqdm.set_postfix_str", lambda _bar, text, **_: shown.append(text))
    study = finished(tmp_path, plan_of(3))
    best = max(study.trials, key=lambda trial: trial.value)
    assert shown[-1] == f"best validation accuracy {best.value:.4f} (trial {best.number})"


@pytest.mark.parametrize(
    "axes",
    [
        {"a.x": [1e-4, 1e-3, 2e-3]},
        {"a.source": ["own", "bank", "mean"]},
        {"a.x": [1e-3, 2e-3], "a.source": ["own", "bank"]},
    ],
)
def test_a_grid_is_drawn_over_numbers_and_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axes: dict[str, list]
) -> None:
    parameters = {path: Values(values=values) for path, values in axes.items()}
    plan = Plan(
        "grid",
        "filters",
        BOTH[:1],
        int(np.prod([len(values) for values in axes.values()])),
        [0],
        "random",
        "none",
        0,
        parameters,
        grid=True,
    )
    present = {path: values[0] for path, values in axes.items()}
    study: optuna.Study = open_study(
        open_storage(str(tmp_path / "journal.log"), lambda *_: None),
        plan,
        SUBJECT,
        starts(plan, present),
        tmp_path / "lock",
    )
    optimize(
        study,
        plan,
        present,
        lambda running: {"validation accuracy": 0.5 + running.number / 100, "train/mc": 3.0},
        1,
        lambda _: None,
    )
    monkeypatch.setattr(plt, "close", lambda _figure: None)
    write_grid(study, plan, {"validation accuracy": 0.9}, tmp_path)
    lines = (tmp_path / "trials.csv").read_text().splitlines()
    assert len(lines) == plan.trials + 1 and "train/mc" in lines[0] and (tmp_path / "grid.png").is_file()
    axis = plt.gcf().axes[0]
    values = {combination: 0.5 + number / 100 for number, combination in enumerate(product(*axes.values()))}
    shown = axis.images[0].get_array() if len(axes) == 2 else axis.lines[0].get_ydata()
    assert np.ravel(shown).tolist() == pytest.approx([values[combination] for combination in sorted(values)])


@pytest.mark.parametrize(
    ("bounds", "value", "said"),
    [
        (Range(low=1e-4, high=1.0, log=True), 1.2e-4, "lower"),
        (Range(low=1e-4, high=1.0, log=True), 0.01, ""),
        (Range(low=0.0, high=1.0, log=False), 0.01, "lower"),
        (Range(low=0.0, high=1.0, log=False), 0.97, "upper"),
        (Range(low=1.0, high=9.0, log=False), 9, "upper"),
        (Values(values=["own", "bank"]), "own", ""),
    ],
)
def test_a_winner_at_the_end_of_its_range_is_pointed_out(bounds: Range | Values, value: Any, said: str) -> None:
    hint = _edge(bounds, value)
    assert (f"at the {said} end of its range" in hint) if said else hint == ""
