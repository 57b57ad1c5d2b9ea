"""Studies in one process: what is tried, what is refused, what goes on."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest

from everycause.tuning.loop import RunningTrial, lost, optimize
from everycause.tuning.space import Plan, Range, Values, starts
from everycause.tuning.study import differences, open_storage, open_study, pruner_of, sampler_of, shown
from tests.tuning.toy import PARAMETERS, PRESENT, plan_of, value_of

SUBJECT = {"data": "d", "base": {"seed-0": "m"}, "params": {"retraining.epochs": 8}}
COMPLETE = optuna.trial.TrialState.COMPLETE


def measured(asked: RunningTrial) -> dict[str, float]:
    return {
        "validation accuracy": value_of(asked.values),
        "validation completeness": asked.values["a.x"] ** 2,
        "train/mc": 3.0,
    }


def opened(folder: Path, plan: Plan, subject: dict[str, Any] = SUBJECT) -> optuna.Study:
    storage = open_storage(str(folder / "journal.log"), lambda *_: None)
    return open_study(storage, plan, subject, starts(plan, PRESENT), folder / "lock")


def finished(
    folder: Path, plan: Plan, measures: Any = measured, steps: int = 1, worker: int | None = None
) -> optuna.Study:
    study = opened(folder, plan)
    optimize(study, plan, PRESENT, measures, steps, lambda _: None, worker)
    return study


def test_a_study_starts_at_the_present_and_the_published_values_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first = finished(tmp_path, plan_of(3))
    assert [trial.params for trial in first.trials[:2]] == [PRESENT, PRESENT | {"a.x": 0.25}]
    before = [trial.params for trial in first.trials]
    second = finished(tmp_path, plan_of(6))
    assert [trial.params for trial in second.trials][:3] == before and len(second.trials) == 6
    assert len(finished(tmp_path, plan_of(6)).trials) == 6
    assert len({str(trial.params) for trial in second.trials}) == 6


@pytest.mark.parametrize(
    "sampler", ["tpe", "random"]
)  # nsga2 counts the trial that was cut short as one of a generation
def test_one_worker_draws_the_same_trials_whether_it_was_stopped_or_not(tmp_path: Path, sampler: str) -> None:
    """A sampler with one seed for the study would begin its draws again after each stop."""
    plan = plan_of(14)._replace(sampler=sampler)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = finished(tmp_path / "whole", plan)

    for stop in (4, 9):

        def stops(asked: RunningTrial, stop: int = stop) -> dict[str, float]:
            if asked.number == stop:
                raise KeyboardInterrupt
            return measured(asked)

        with pytest.raises(KeyboardInterrupt):
            finished(tmp_path / "parts", plan, stops)
    parts = finished(tmp_path / "parts", plan)
    assert [trial.params for trial in parts.get_trials(states=(COMPLETE,))] == [trial.params for trial in whole.trials]


def test_two_workers_draw_different_values_at_the_same_moment() -> None:
    plan = plan_of(20)._replace(sampler="random")
    drawn = []
    for worker in range(2):
        study = optuna.create_study(sampler=sampler_of(plan, 5, worker))
        drawn.append(study.ask().suggest_float("x", 0, 1))
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_a_trial_that_is_cut_short_is_queued_again_with_its_values(tmp_path: Path, error: type[BaseException]) -> None:
    def dies(asked: RunningTrial) -> dict[str, float]:
        if asked.number == 0:
            raise error
        return measured(asked)

    with pytest.raises(error):
        finished(tmp_path, plan_of(4), dies)
    again = finished(tmp_path, plan_of(4))
    complete = again.get_trials(states=(COMPLETE,))
    assert len(complete) == 4 and [trial.params for trial in complete].count(PRESENT) == 1
    assert again.trials[0].state == optuna.trial.TrialState.FAIL


def test_a_trial_that_fails_for_a_reason_of_its_own_fails_alone_and_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def diverges(asked: RunningTrial) -> dict[str, float]:
        if asked.number == 1:
            raise ValueError("the loss is nan at epoch 1, batch 3")
        return measured(asked)

    study = finished(tmp_path, plan_of(4), diverges)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[1].user_attrs["reason"] == "the loss is nan at epoch 1, batch 3"
    assert "trial 1 failed, the sweep goes on: the loss is nan" in caplog.text


def test_a_trial_that_was_given_to_another_worker_is_let_go(tmp_path: Path) -> None:
    """A machine that stalls and comes back finds its trial closed by a heartbeat and queued again."""
    plan, study = plan_of(3), opened(tmp_path, plan_of(3))

    def stalls(asked: RunningTrial) -> dict[str, float]:
        if asked.number == 0:
            other = opened(tmp_path, plan)
            other.tell(0, state=optuna.trial.TrialState.FAIL)
            lost(other, plan, other.trials[0], lambda _: None)
        return measured(asked)

    optimize(study, plan, PRESENT, stalls, 1, lambda _: None)
    complete = study.get_trials(states=(COMPLETE,))
    assert len(complete) == 3 and [trial.params for trial in complete].count(PRESENT) == 1


def test_a_trial_whose_worker_died_before_it_said_its_name_is_waited_for_and_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everycause.tuning.loop.NAMELESS", timedelta(seconds=1))
    opened(tmp_path, plan_of(3)).ask()
    study = finished(tmp_path, plan_of(3))
    assert [trial.params for trial in study.get_trials(states=(COMPLETE,))].count(PRESENT) == 1
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]


def test_the_second_of_two_workers_that_ask_for_the_last_trial_leaves_it(tmp_path: Path) -> None:
    plan = plan_of(3)
    study = opened(tmp_path, plan)

    def asks_too(asked: RunningTrial) -> dict[str, float]:
        if (
            asked.number == 0
        ):  # two others take one each, as if at the same moment: one too many for this loop's next question
            for _ in range(2):
                other = study.ask()
                other.set_user_attr("worker", {"host": "elsewhere", "pid": 1, "started": 0.0})
                study.tell(other, [0.5])
        return measured(asked)

    optimize(study, plan, PRESENT, asks_too, 1, lambda _: None)
    assert len(study.get_trials(states=(COMPLETE,))) == 3


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_poor_trials_are_pruned_by_their_epochs_and_counted(tmp_path: Path, pruner: str) -> None:
    epochs: dict[int, int] = {}

    def learns(asked: RunningTrial) -> dict[str, float] | None:
        for epoch in range(1, 9):
            epochs[asked.number] = epoch
            if epoch in asked.watched and not asked.goes_on(epoch * (1.0 if asked.number < 5 else 0.1), epoch):
                return None
        return measured(asked)

    study = finished(tmp_path, plan_of(12)._replace(pruner=pruner), learns, steps=8)
    states = [trial.state.name for trial in study.trials]
    assert len(states) == 12 and set(states[:2]) == {"COMPLETE"} and "PRUNED" in states[5:]
    pruned = [number for number, state in enumerate(states) if state == "PRUNED"]
    assert all(2 <= epochs[number] < 8 or pruner == "hyperband" for number in pruned)


def test_without_a_pruner_every_trial_is_whole() -> None:
    assert isinstance(pruner_of(plan_of(20), 8), optuna.pruners.NopPruner)


def test_two_objectives_make_a_front(tmp_path: Path) -> None:
    plan = plan_of(16)._replace(objectives=["validation accuracy", "validation completeness"], sampler="nsga2")
    study = finished(tmp_path, plan)
    front = study.best_trials
    for one in study.trials:  # slow reference: the front are the trials that no other dominates
        dominated = any(
            all(a >= b for a, b in zip(other.values, one.values, strict=True)) and other.values != one.values
            for other in study.trials
        )
        assert dominated == (one.number not in {trial.number for trial in front})


@pytest.mark.parametrize(
    ("subject", "change", "message"),
    [
        (SUBJECT | {"base": {"seed-0": "other"}}, {}, "base.seed-0: m → other"),
        (SUBJECT | {"data": "e"}, {}, "data: d → e"),
        (SUBJECT | {"params": {"retraining.epochs": 4}}, {}, "params.retraining.epochs: 8 → 4"),
        (SUBJECT | {"params": {"retraining.epochs": 8, "masks.new": 1}}, {}, "params.masks.new: absent → 1"),
        (
            SUBJECT,
            {"objectives": ["validation completeness"]},
            "objectives: .'validation accuracy'. → .'validation completeness'.",
        ),
        (SUBJECT, {"seeds": [0, 1]}, r"seeds: \[0\] → \[0, 1\]"),
        (SUBJECT, {"row": "masks"}, "row: joint → masks"),
        (
            SUBJECT,
            {"parameters": PARAMETERS | {"a.x": Range(low=0.0, high=2.0, log=False)}},
            "parameters.a.x.high: 1.0 → 2.0",
        ),
    ],
)
def test_a_study_about_something_else_is_refused_and_every_difference_named(
    tmp_path: Path, subject: dict, change: dict, message: str
) -> None:
    opened(tmp_path, plan_of(1))
    with pytest.raises(ValueError, match=message) as caught:
        opened(tmp_path, plan_of(1)._replace(**change), subject)
    assert "give tuning.study a new name" in str(caught.value) and "\n" not in str(caught.value)


def test_more_trials_another_sampler_and_pruner_go_on_with_the_same_study(tmp_path: Path) -> None:
    opened(tmp_path, plan_of(1))
    opened(tmp_path, plan_of(9)._replace(sampler="random", pruner="median", seed=3))
    assert differences({"a": {"b": 1}}, {"a": {"b": 1}}) == []


def test_a_study_whose_maker_died_between_two_writes_is_begun_by_the_next(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "journal.log"), lambda *_: None)
    optuna.create_study(study_name="toy", storage=storage, direction="maximize")
    assert [trial.params for trial in finished(tmp_path, plan_of(2)).trials] == [PRESENT, PRESENT | {"a.x": 0.25}]


def test_a_study_goes_on_from_an_adopted_winner_without_trying_it_again(tmp_path: Path) -> None:
    finished(tmp_path, plan_of(3))
    adopted = PRESENT | {"a.x": 0.75}
    storage = open_storage(str(tmp_path / "journal.log"), lambda *_: None)
    study = open_study(storage, plan_of(5), SUBJECT, starts(plan_of(5), adopted), tmp_path / "lock")
    optimize(study, plan_of(5), adopted, measured, 1, lambda _: None)
    assert len(study.trials) == 5 and adopted not in [trial.params for trial in study.trials]


def test_a_study_of_another_program_is_refused(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "journal.log"), lambda *_: None)
    optuna.create_study(study_name="toy", storage=storage).ask()
    with pytest.raises(ValueError, match="was not made by this project"):
        opened(tmp_path, plan_of(1))


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("postgresql://researcher:secret@127.0.0.1:1/studies", "OperationalError"),
        ("sqlite:////nowhere/at/all/study.db", "unable to open database file"),
        ("mystery://host/studies", "NoSuchModuleError"),
        ("{tmp}", "IsADirectoryError"),
        ("{tmp}/broken.log", "JSONDecodeError"),
        ("{tmp}/broken.log/journal.log", "Error"),
        ("grpc://127.0.0.1:1", "Error"),
    ],
)
def test_a_storage_that_cannot_be_reached_is_one_sentence_without_its_password(
    tmp_path: Path, address: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everycause.tuning.study.PROXY_SECONDS", 1)
    (tmp_path / "broken.log").write_text("not a journal\nat all\n")
    address = address.format(tmp=tmp_path)
    with pytest.raises(ValueError, match=reason) as caught:
        open_storage(address, lambda *_: None)
    said = str(caught.value)
    assert (
        shown(address) in said and "secret" not in said and "\n" not in said and "start it, or give --storage" in said
    )


@pytest.mark.parametrize("values", [(1e-4, 1e-3, 2e-3), ("bank", "own", "mean")])
def test_an_ablation_tries_every_combination_once_and_goes_on_where_it_stopped(tmp_path: Path, values: tuple) -> None:
    plan = Plan(
        "grid",
        "filters",
        ["validation accuracy"],
        6,
        [0],
        "random",
        "none",
        0,
        {"a.x": Values(values=list(values)), "a.n": Values(values=[1, 2])},
        grid=True,
    )
    present = {"a.x": values[0], "a.n": 1}
    calls: list[dict] = []

    def stops(asked: RunningTrial) -> dict[str, float]:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(asked.values)
        return {"validation accuracy": 0.5 + 0.1 * asked.values["a.n"]}

    def study() -> optuna.Study:
        return open_study(
            open_storage(str(tmp_path / "journal.log"), lambda *_: None),
            plan,
            SUBJECT,
            starts(plan, present),
            tmp_path / "lock",
        )

    def fails_once(asked: RunningTrial) -> dict[str, float]:
        if len(calls) == 2:
            calls.append(asked.values)
            raise ValueError("the loss is nan")
        return {"validation accuracy": 0.1}

    with pytest.raises(KeyboardInterrupt):
        optimize(study(), plan, present, stops, 1, lambda _: None)
    for _ in range(2):  # what failed for a reason of its own is not tried again
        optimize(study(), plan, present, fails_once, 1, lambda _: None)
    assert not study().get_trials(states=(optuna.trial.TrialState.WAITING,))
    complete = [tuple(trial.params.values()) for trial in study().get_trials(states=(COMPLETE,))]
    assert len(complete) == len(set(complete)) == 5 and tuple(present.values()) in complete
