"""Trials, one after the other, by any number of workers: none lost, none run twice, none stuck.

A worker says in each trial which process it is. A trial whose process is gone is closed as failed and its values are queued
again; whoever closes it queues it, and only one can. Databases do the same for other machines, by heartbeats.
"""

import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import psutil
from tqdm import tqdm

from everycause.errors import UserError
from everycause.tuning.space import ENQUEUED, Plan, Value, suggested
from everycause.tuning.study import ATTEMPT, MOST_ATTEMPTS, REASON, counts, pruner_of, sampler_of, watched_steps

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)
WORKER, RUN, RETRIES = "worker", "mlflow_run", "retries"
"""What a trial tells about itself, beside its measures and why it failed: its process, its record, the trial that it repeats."""
NAMELESS = timedelta(seconds=10)
"""A trial says who runs it in its first moments; one that has not by then died in them."""
Closed = Callable[[str], None]
"""Told the MLflow run of a trial whose worker died."""


@dataclass(frozen=True)
class RunningTrial:
    """A trial as its measurer sees it."""

    number: int
    """In the study, from 0."""
    values: dict[str, Value]
    """Dotted path → value."""
    trial: "optuna.Trial"
    watched: range
    """Steps after which the pruner wants a report: none before it may stop anything, and not the last, which costs no more."""

    def goes_on(self, value: float, step: int) -> bool:
        """Report the objective after a step; whether the pruner lets the trial go on."""
        self.trial.report(value, step)
        return not self.trial.should_prune()

    def has_run(self, run: str | None) -> None:
        """Say which MLflow run records it."""
        self.trial.set_user_attr(RUN, run)


Measure = Callable[[RunningTrial], dict[str, float] | None]
"""All measures of a trial, those of the plan's objectives among them; None when it was pruned."""


class SurplusError(Exception):
    """Two workers asked for the last trial at once, and this one was second."""


def optimize(
    study: "optuna.Study",
    plan: Plan,
    present: dict[str, Value],
    measures_of: Measure,
    steps: int,
    closed: Closed,
    worker: int | None = None,
) -> None:
    """Run trials until the study has as many as the plan wants, or others are running the last of them.

    A ValueError of a trial (a loss that is not finite) fails that trial alone; the reason is kept with it.

    Args:
        study: The study.
        plan: What is searched.
        present: The present values of its parameters.
        measures_of: Trains and measures.
        steps: Reports of a whole trial.
        closed: Called for the MLflow run of every trial whose worker was found dead.
        worker: Number of this worker among several, which show no bar of their own.
    """
    study.pruner = pruner_of(plan, steps)
    current: list[int] = []
    parent = os.getppid()

    def objective(trial: "optuna.Trial") -> list[float]:
        current.append(trial.number)
        trial.set_user_attr(WORKER, _myself())
        earlier = [one for one in study.get_trials(deepcopy=False) if one.number < trial.number]
        if sum(map(counts, earlier)) >= plan.trials and RETRIES not in trial.user_attrs:
            raise SurplusError
        return _measured(
            trial,
            plan,
            RunningTrial(trial.number, suggested(trial, plan, present), trial, watched_steps(plan, steps)),
            measures_of,
        )

    with bar_of(study, plan, hidden=worker is not None) as bar:
        while more(study, plan, closed) and (
            worker is None or os.getppid() == parent
        ):  # an orphan stops after its trial
            current.clear()
            drawn = sum(RETRIES not in trial.user_attrs for trial in study.get_trials(deepcopy=False))
            study.sampler = sampler_of(plan, drawn, worker or 0)
            try:
                study.optimize(objective, n_trials=1, catch=(UserError, SurplusError))
            except BaseException as error:
                if not _given_back(study, plan, current, error):
                    raise
            show(bar, study, plan)


def _measured(trial: "optuna.Trial", plan: Plan, asked: RunningTrial, measures_of: Measure) -> list[float]:
    """The objectives of a trial; all its measures are kept with it."""
    import optuna

    try:
        measures = measures_of(asked)
    except UserError as error:
        trial.set_user_attr(REASON, str(error))
        log.warning("trial %d failed, the sweep goes on: %s", trial.number, error)
        raise
    if measures is None:
        raise optuna.TrialPruned
    for name, value in measures.items():
        trial.set_user_attr(name, value)
    return [measures[name] for name in plan.objectives]


def more(study: "optuna.Study", plan: Plan, closed: Closed) -> bool:
    """Whether the plan wants another trial, beside those that are finished or truly running; what was lost is always run again."""
    while True:
        close_abandoned(study, plan, closed)
        trials = study.get_trials(deepcopy=False)
        if sum(map(counts, trials)) < plan.trials or any(
            one.state.name == "WAITING" and RETRIES in one.user_attrs for one in trials
        ):
            return True
        if not any(one.state.name == "RUNNING" and WORKER not in one.user_attrs for one in trials):
            return False
        time.sleep(0.5)  # one that has not said who runs it will do so, or is soon known to be dead


def finished(study: "optuna.Study") -> "list[FrozenTrial]":
    """The trials that are done with: complete, pruned, or failed for a reason of their own."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished() and counts(trial)]


def complete(study: "optuna.Study") -> "list[FrozenTrial]":
    """The trials that were measured to their end."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]


def close_abandoned(study: "optuna.Study", plan: Plan, closed: Closed) -> None:
    """Close the trials whose workers on this machine are dead, and queue their values again."""
    import optuna

    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        if _abandoned(trial) and _failed(study, trial.number):
            lost(study, plan, trial, closed)


def lost(study: "optuna.Study", plan: Plan, trial: "FrozenTrial", closed: Closed) -> None:
    """Queue the values of a failed trial again and close its MLflow run; the heartbeats of a database end here, too."""
    if run := trial.user_attrs.get(RUN):
        closed(run)
    _queue(study, plan, trial, trial.user_attrs.get(ATTEMPT, 1) + 1)


def bar_of(study: "optuna.Study", plan: Plan, *, hidden: bool = False) -> "tqdm[Any]":
    """A progress bar of trials with the best value so far."""
    bar = tqdm(total=plan.trials, desc=plan.study, unit="trial", disable=True if hidden else None)
    show(bar, study, plan)
    return bar


def show(bar: "tqdm[Any]", study: "optuna.Study", plan: Plan) -> None:
    """Bring a progress bar up to date."""
    bar.n = min(len(finished(study)), plan.trials)
    if whole := complete(study):
        best = max(whole, key=lambda trial: trial.values[0])
        bar.set_postfix_str(f"best {plan.objectives[0]} {best.values[0]:.4f} (trial {best.number})", refresh=False)
    bar.refresh()


def _myself() -> dict[str, Any]:
    """This process, so that another can tell whether it lives."""
    return {"host": socket.gethostname(), "pid": psutil.Process().pid, "started": psutil.Process().create_time()}


def _abandoned(trial: "FrozenTrial") -> bool:
    """Whether the process that ran a trial is dead; of other machines nothing is known."""
    who = trial.user_attrs.get(WORKER)
    if who is None:
        return trial.datetime_start is not None and datetime.now() - trial.datetime_start > NAMELESS
    if who["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(who["pid"])
        return abs(process.create_time() - who["started"]) > 1 or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _failed(study: "optuna.Study", number: int) -> bool:
    """Close a running trial as failed; False if somebody else was faster."""
    import optuna

    try:
        study.tell(number, state=optuna.trial.TrialState.FAIL)
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
        return False
    return True


def _queue(study: "optuna.Study", plan: Plan, trial: "FrozenTrial", attempt: int) -> None:
    """Queue a trial's values again, once; a trial that died before it had values has none to lose."""
    enqueued = trial.user_attrs.get(ENQUEUED)
    values, about = (
        enqueued or trial.params,
        {ATTEMPT: attempt, RETRIES: trial.number} | ({ENQUEUED: enqueued} if enqueued else {}),
    )
    known = {one.user_attrs.get(RETRIES) for one in study.get_trials(deepcopy=False)}
    if len(values) == len(plan.parameters) and attempt <= MOST_ATTEMPTS and trial.number not in known:
        study.enqueue_trial(values, user_attrs=about)


def _given_back(study: "optuna.Study", plan: Plan, current: list[int], error: BaseException) -> bool:
    """Queue the values of the trial that an exception ended; whether the loop may go on, since another worker has it already."""
    import optuna

    if not current:
        return False
    mine = _failed(study, current[0]) or not isinstance(error, ValueError | optuna.exceptions.UpdateFinishedTrialError)
    trial = study.get_trials(deepcopy=False)[current[0]]
    if mine and trial.state == optuna.trial.TrialState.FAIL:
        told_to_stop = isinstance(error, KeyboardInterrupt | SystemExit)
        _queue(study, plan, trial, trial.user_attrs.get(ATTEMPT, 1) + (not told_to_stop))
    return not mine
