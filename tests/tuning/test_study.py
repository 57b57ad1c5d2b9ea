"""Studies in one process: what is tried, what is refused, what goes on."""

from pathlib import Path
from typing import Any

import optuna
import pytest

from everycause.errors import UserError
from everycause.processes import without_password
from everycause.tuning.loop import RunningTrial, optimize, requeue
from everycause.tuning.space import Plan, Range, Values, starts
from everycause.tuning.storages import open_storage
from everycause.tuning.study import differences, open_study, pruner_of, sampler_of
from tests.tuning.toy import PARAMETERS, PRESENT, plan_of, value_of

SUBJECT = {"data": "d", "base": {"seed-0": "m"}, "params": {"retraining.epochs": 8}}
COMPLETE = optuna.trial.TrialState.COMPLETE


def measured(running: RunningTrial) -> dict[str, float]:
    return {
        "validation accuracy": value_of(running.values),
        "validation completeness": running.values["a.x"] ** 2,
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

        def stops(running: RunningTrial, stop: int = stop) -> dict[str, float]:
            if running.number == stop:
                raise KeyboardInterrupt
            return measured(running)

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
    def dies(running: RunningTrial) -> dict[str, float]:
        if running.number == 0:
            raise error
        return measured(running)

    with pytest.raises(error):
        finished(tmp_path, plan_of(4), dies)
    again = finished(tmp_path, plan_of(4))
    complete = again.get_trials(states=(COMPLETE,))
    assert len(complete) == 4 and [trial.params for trial in complete].count(PRESENT) == 1
    assert again.trials[0].state == optuna.trial.TrialState.FAIL


def test_a_trial_that_fails_for_a_reason_of_its_own_fails_alone_and_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def diverges(running: RunningTrial) -> dict[str, float]:
        if running.number == 1:
            raise UserError("the loss is nan at epoch 1, batch 3")
        return measured(running)

    study = finished(tmp_path, plan_of(4), diverges)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[1].user_attrs["reason"] == "the loss is nan at epoch 1, batch 3"
    assert "trial 1 failed, the sweep goes on: the loss is nan" in caplog.text


def test_a_trial_that_was_given_to_another_worker_is_let_go(tmp_path: Path) -> None:
    """A machine that stalls and comes back finds its trial closed by a heartbeat and queued again."""
    plan, study = plan_of(3), opened(tmp_path, plan_of(3))

    def stalls(running: RunningTrial) -> dict[str, float]:
        if running.number == 0:
            other = opened(tmp_path, plan)
            other.tell(0, state=optuna.trial.TrialState.FAIL)
            requeue(other, plan, other.trials[0], lambda _: None)
        return measured(running)

    optimize(study, plan, PRESENT, stalls, 1, lambda _: None)
    complete = study.get_trials(states=(COMPLETE,))
    assert len(complete) == 3 and [trial.params for trial in complete].count(PRESENT) == 1


def test_a_trial_whose_worker_died_before_it_said_its_name_is_waited_for_and_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everycause.tuning.loop.PATIENCE", 1.0)
    opened(tmp_path, plan_of(3)).ask()
    study = finished(tmp_path, plan_of(3))
    assert [trial.params for trial in study.get_trials(states=(COMPLETE,))].count(PRESENT) == 1
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]


def test_the_second_of_two_workers_that_ask_for_the_last_trial_leaves_it(tmp_path: Path) -> None:
    plan = plan_of(3)
    study = opened(tmp_path, plan)

    def asks_too(running: RunningTrial) -> dict[str, float]:
        if (
            running.number == 0
        ):  # two others take one each, as if at the same moment: one too many for this loop's next question
            for _ in range(2):
                other = study.ask()
                other.set_user_attr("worker", {"host": "elsewhere", "pid": 1, "started": 0.0})
                study.tell(other, [0.5])
        return measured(running)

    optimize(study, plan, PRESENT, asks_too, 1, lambda _: None)
    assert len(study.get_trials(states=(COMPLETE,))) == 3


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_poor_trials_are_pruned_by_their_epochs_and_counted(tmp_path: Path, pruner: str) -> None:
    epochs: dict[int, int] = {}

    def learns(running: RunningTrial) -> dict[str, float] | None:
        for epoch in range(1, 9):
            epochs[running.number] = epoch
            if epoch in running.watched and not running.goes_on(epoch * (1.0 if running.number < 5 else 0.1), epoch):
                return None
        return measured(running)

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
        ("{tmp}/broken.log", "line 1 is damaged, JSONDecodeError"),
        ("{tmp}/broken.log/journal.log", "Error"),
        ("grpc://127.0.0.1:1", "Error"),
    ],
)
def test_a_storage_that_cannot_be_reached_is_one_sentence_without_its_password(
    tmp_path: Path, address: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everycause.tuning.storages.PROXY_SECONDS", 1)
    (tmp_path / "broken.log").write_text("not a journal\nat all\n")
    address = address.format(tmp=tmp_path)
    with pytest.raises(UserError, match=reason) as caught:
        open_storage(address, lambda *_: None)
    said = str(caught.value)
    assert (
        without_password(address) in said
        and "secret" not in said
        and "\n" not in said
        and "give --storage a journal file or another URL" in said
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [("3", "line 2 is damaged"), ("[]", "line 2 is damaged"), ("{}", "line 2 is damaged"), ('{"op_code": 99}', "")],
)
def test_a_journal_with_a_line_that_is_no_entry_is_one_sentence_with_its_name(
    tmp_path: Path, line: str, reason: str
) -> None:
    finished(tmp_path, plan_of(1))
    journal = tmp_path / "journal.log"
    first, *others = journal.read_text().splitlines()
    journal.write_text("\n".join([first, line, *others]) + "\n")
    with pytest.raises(UserError, match=f"journal.log is not to be had .*{reason}") as caught:
        opened(tmp_path, plan_of(1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite+pysqlite:///:memory:"])
def test_a_study_in_memory_would_be_lost_and_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="lies in memory and would be lost: name a file"):
        open_storage(address, lambda *_: None)


@pytest.mark.parametrize("slashes", ["sqlite:/study.db", "sqlite:study.db", "postgresql:/me:secret@host/studies"])
def test_a_url_with_a_slash_too_few_is_refused_with_the_right_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slashes: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"write (sqlite:///study.db|postgresql://me:...@host/studies)") as caught:
        open_storage(slashes, lambda *_: None)
    assert "secret" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_journal_that_ends_within_a_line_is_read_to_there_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = tmp_path / "journal.log"
    finished(tmp_path, plan_of(3))
    journal.write_bytes(journal.read_bytes()[:-7])  # the last trial's end was not written whole
    study = finished(tmp_path, plan_of(4))
    assert caplog.text.count(f"{journal} ended in the middle of a line") == 1
    assert len(study.get_trials(states=(COMPLETE,))) == 3  # the cut one is still said to run, by this process
    with journal.open("ab") as file:  # and a writer that dies while this study is open
        file.write(b'{"op_code": 5, "wor')
    study.set_user_attr("note", 1)
    assert opened(tmp_path, plan_of(4)).user_attrs["note"] == 1


def test_a_study_has_exactly_its_trials_while_one_is_closed_and_not_queued_again_yet(tmp_path: Path) -> None:
    """A worker looks for work between another's closing of a dead trial and its queueing of it."""
    plan = plan_of(3)
    study = opened(tmp_path, plan)

    def is_closed_between(running: RunningTrial) -> dict[str, float]:
        if running.number == 0:
            dead = study.ask()
            study.tell(dead, state=optuna.trial.TrialState.FAIL)  # trial 1 has the published values, queued
        if running.number == 2:
            requeue(study, plan, study.trials[1], lambda _: None)
        return measured(running)

    optimize(study, plan, PRESENT, is_closed_between, 1, lambda _: None)
    states = [(trial.state.name, trial.user_attrs.get("retries")) for trial in study.trials]
    assert states == [("COMPLETE", None), ("FAIL", None), ("COMPLETE", None), ("COMPLETE", 1)]
    assert study.trials[3].params == PRESENT | {"a.x": 0.25}


def test_what_was_closed_by_a_worker_that_died_before_it_queued_it_is_queued_once_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everycause.tuning.loop.PATIENCE", 0.2)
    study = opened(tmp_path, plan_of(2))
    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    for _ in range(2):
        study = finished(tmp_path, plan_of(2))
    complete = study.get_trials(states=(COMPLETE,))
    assert [trial.params for trial in complete].count(PRESENT) == 1 and len(complete) == 2


def test_two_repetitions_of_one_trial_are_run_once(tmp_path: Path) -> None:
    study = opened(tmp_path, plan_of(2))
    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    for _ in range(2):
        study.enqueue_trial(PRESENT, user_attrs={"retries": 0, "attempt": 2})
    study = finished(tmp_path, plan_of(2))
    complete = study.get_trials(states=(COMPLETE,))
    assert [trial.params for trial in complete].count(PRESENT) == 1 and len(complete) == 2


def test_a_person_may_stop_a_trial_as_often_as_they_like(tmp_path: Path) -> None:
    def stops(_running: RunningTrial) -> dict[str, float]:
        raise KeyboardInterrupt

    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            finished(tmp_path, plan_of(1), stops)
    study = finished(tmp_path, plan_of(1))
    assert [trial.params for trial in study.get_trials(states=(COMPLETE,))] == [PRESENT]


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

    def stops(running: RunningTrial) -> dict[str, float]:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(running.values)
        return {"validation accuracy": 0.5 + 0.1 * running.values["a.n"]}

    def study() -> optuna.Study:
        return open_study(
            open_storage(str(tmp_path / "journal.log"), lambda *_: None),
            plan,
            SUBJECT,
            starts(plan, present),
            tmp_path / "lock",
        )

    def fails_once(running: RunningTrial) -> dict[str, float]:
        if len(calls) == 2:
            calls.append(running.values)
            raise UserError("the loss is nan")
        return {"validation accuracy": 0.1}

    with pytest.raises(KeyboardInterrupt):
        optimize(study(), plan, present, stops, 1, lambda _: None)
    for _ in range(2):  # what failed for a reason of its own is not tried again
        optimize(study(), plan, present, fails_once, 1, lambda _: None)
    assert not study().get_trials(states=(optuna.trial.TrialState.WAITING,))
    complete = [tuple(trial.params.values()) for trial in study().get_trials(states=(COMPLETE,))]
    assert len(complete) == len(set(complete)) == 5 and tuple(present.values()) in complete


def test_a_fault_of_the_program_ends_the_sweep_with_its_traceback(tmp_path: Path) -> None:
    calls = []

    def faulty(_running: object) -> dict[str, float]:
        calls.append(1)
        raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        finished(tmp_path, plan_of(2), faulty)
    assert len(calls) == 1
