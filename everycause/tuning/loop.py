"""Trials of a study, one after the other in each of any number of workers: none lost, none run twice, none stuck.

Each worker writes into a trial which process runs it. A trial whose process is dead is closed as failed, and its values
are queued again in a trial that names the one that it repeats. Only one process can close a trial, and that one queues
it; if it dies in between, another one does so a little later. A trial holds its place among those that the plan wants
until its repetitions are done, which hold none of their own: so a study has exactly as many as the plan says.

What Optuna 5 offers for this, measured here, and why parts of it are not used:

- Heartbeats (used for databases): they find dead workers of other machines. Journals and the gRPC proxy have none, and
  Optuna closes nothing there: a killed worker's trial stays RUNNING for ever. Hence the note of the process.
- `RetryHeartbeatStaleTrialCallback` (not used; `requeue` is called in its place): it copies everything noted in the
  dead trial into its repetition, its process and MLflow run included, and closes no MLflow run. It counts a user's stop
  like a crash, and it does nothing for workers that stop by an exception, nor for journals.
- `GridSampler` (not used; the points of a grid are queued): two workers on a grid of 12 points made 13 trials in three
  studies of three, one point twice. It tries points in shuffled order, not the present values first.
"""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from everycause.errors import UserError
from everycause.processes import is_dead, this_process, without_password
from everycause.tuning.space import ENQUEUED, Plan, Value, suggested
from everycause.tuning.study import (
    ATTEMPT,
    REASON,
    RETRIES,
    STOPPED,
    SURPLUS,
    given_up,
    holds_a_place,
    pruner_of,
    sampler_of,
    unqueued,
    values_of,
    watched_steps,
)

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)
FAULT = "raised by the trial itself"
"""Note on an exception that is a fault of the program, not the word of a storage that another worker was quicker."""
WORKER, RUN = "worker", "mlflow_run"
"""Notes in a trial: the process that runs it, and the MLflow run that records it."""
PATIENCE = 10.0
"""Seconds, on this process's own clock, for what another process does in its next moment: note in a trial who runs it,
or queue the values of a trial that it has closed. One that has not done so by then has died."""
POLL_SECONDS = 0.5
Closed = Callable[[str], None]
"""Is called with the id of the MLflow run of a trial whose worker died."""


@dataclass(frozen=True)
class RunningTrial:
    """A trial for the function that trains and measures it."""

    number: int
    """Number in the study, from 0."""
    values: dict[str, Value]
    """Dotted path → value."""
    trial: "optuna.Trial"
    watched: range
    """Steps after which the pruner wants a report: none before it may stop a trial, and not the last one."""

    def goes_on(self, value: float, step: int) -> bool:
        """Report the objective after a step; returns whether the pruner lets the trial go on."""
        self.trial.report(value, step)
        return not self.trial.should_prune()

    def has_run(self, run: str | None) -> None:
        """Note which MLflow run records the trial."""
        self.trial.set_user_attr(RUN, run)


Measure = Callable[[RunningTrial], dict[str, float] | None]
"""All measures of a trial, those of the plan's objectives among them; None when it was pruned."""


class SurplusError(Exception):
    """Two workers took the last trial, or the same repetition, at once, and this one was second."""


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

    A UserError of a trial (a loss that is not finite) fails that trial alone; the reason is kept with it.

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
        trial.set_user_attr(WORKER, this_process())
        if _is_surplus(study, plan, trial):
            trial.set_user_attr(SURPLUS, True)
            raise SurplusError
        values = suggested(trial, plan, present)
        running = RunningTrial(trial.number, values, trial, watched_steps(plan, steps))
        return _measured(trial, plan, running, measures_of)

    def is_orphan() -> bool:
        return worker is not None and os.getppid() != parent

    with bar_of(study, plan, hidden=worker is not None) as bar:
        while more(study, plan, closed) and not is_orphan():
            current.clear()
            drawn = sum(RETRIES not in trial.user_attrs for trial in study.get_trials(deepcopy=False))
            study.sampler = sampler_of(plan, drawn, worker or 0)
            try:
                study.optimize(objective, n_trials=1, catch=(UserError, SurplusError))
            except BaseException as error:
                if not _given_back(study, plan, current, error):
                    raise
            show(bar, study, plan)


def _is_surplus(study: "optuna.Study", plan: Plan, trial: "optuna.Trial") -> bool:
    """Whether the plan's places are taken by earlier trials, or an earlier trial repeats the same one."""
    earlier = [one for one in study.get_trials(deepcopy=False) if one.number < trial.number]
    if RETRIES in trial.user_attrs:
        return any(one.user_attrs.get(RETRIES) == trial.user_attrs[RETRIES] for one in earlier)
    return sum(holds_a_place(one, plan) for one in earlier) >= plan.trials


def _measured(trial: "optuna.Trial", plan: Plan, running: RunningTrial, measures_of: Measure) -> list[float]:
    """The objectives of a trial; all its measures are kept with it."""
    import optuna

    try:
        measures = measures_of(running)
    except (KeyboardInterrupt, SystemExit):
        trial.set_user_attr(STOPPED, True)
        raise
    except UserError as error:
        trial.set_user_attr(REASON, str(error))
        log.warning("trial %d failed, the sweep goes on: %s", trial.number, error)
        raise
    except Exception as error:
        error.add_note(FAULT)
        raise
    if measures is None:
        raise optuna.TrialPruned
    for name, value in measures.items():
        trial.set_user_attr(name, value)
    return [measures[name] for name in plan.objectives]


def more(study: "optuna.Study", plan: Plan, closed: Closed) -> bool:
    """Whether the plan wants another trial beside those that are finished or truly running.

    Before it says no it waits for trials that are between two states: closed and not queued again yet, or begun
    without a note of their process. After some seconds it closes or queues them itself.
    """
    began = time.monotonic()
    while True:
        close_abandoned(study, plan, closed)
        trials = study.get_trials(deepcopy=False)
        repeats = any(one.state.name == "WAITING" and RETRIES in one.user_attrs for one in trials)
        if repeats or sum(holds_a_place(one, plan) for one in trials) < plan.trials:
            return True
        closed_alone = unqueued(trials, plan)
        nameless = [one for one in trials if one.state.name == "RUNNING" and WORKER not in one.user_attrs]
        if not closed_alone and not nameless:
            return False
        if time.monotonic() - began > PATIENCE:
            for trial in nameless:
                if _failed(study, trial.number):
                    requeue(study, plan, trial, closed)
            for trial in closed_alone:
                requeue(study, plan, trial, closed)
            began = time.monotonic()
        time.sleep(POLL_SECONDS)


def finished(study: "optuna.Study") -> "list[FrozenTrial]":
    """The trials that are done with: complete, pruned, or failed and not queued again."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.name in ("COMPLETE", "PRUNED") or given_up(trial)
    ]


def complete(study: "optuna.Study") -> "list[FrozenTrial]":
    """The trials that were measured to their end."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]


def close_abandoned(study: "optuna.Study", plan: Plan, closed: Closed) -> None:
    """Close the trials whose workers on this machine are dead, and queue their values again."""
    import optuna

    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        process = trial.user_attrs.get(WORKER)
        if process is not None and is_dead(process) and _failed(study, trial.number):
            requeue(study, plan, trial, closed)


def warn_of_running(study: "optuna.Study", storage: str) -> None:
    """Say which trials run in processes of which nothing is known here, and what to do if these have ended."""
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name == "RUNNING":
            process = trial.user_attrs.get(WORKER, {})
            log.warning(
                "trial %d is still run by process %s on %s; if that has ended, repeat it by "
                "`optuna tell --storage %s --study-name %s --trial-number %d --state fail` and another call of this",
                *(trial.number, process.get("pid", "?"), process.get("host", "?")),
                *(without_password(storage), study.study_name, trial.number),
            )


def requeue(study: "optuna.Study", plan: Plan, trial: "FrozenTrial", closed: Closed) -> None:
    """Queue the values of a failed trial again and close its MLflow run; heartbeats of a database call this, too."""
    if run := trial.user_attrs.get(RUN):
        closed(run)
    _queue(study, plan, trial.number)


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


def _failed(study: "optuna.Study", number: int) -> bool:
    """Close a running trial as failed; False if somebody else was faster."""
    import optuna

    try:
        study.tell(number, state=optuna.trial.TrialState.FAIL)
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
        return False
    return True


def _queue(study: "optuna.Study", plan: Plan, number: int) -> None:
    """Queue a trial's values again, once and not without end; a trial that died before it had values has none."""
    trials = study.get_trials(deepcopy=False)
    trial = trials[number]
    if trial in unqueued(trials, plan):
        exactly = trial.user_attrs.get(ENQUEUED)
        attempt = trial.user_attrs.get(ATTEMPT, 1) + (STOPPED not in trial.user_attrs)
        about = {ATTEMPT: attempt, RETRIES: number} | ({ENQUEUED: exactly} if exactly else {})
        study.enqueue_trial(values_of(trial), user_attrs=about)


def _given_back(study: "optuna.Study", plan: Plan, current: list[int], error: BaseException) -> bool:
    """Queue the values of the trial that an exception ended.

    Returns:
        Whether the loop may go on: another worker has closed the trial already, and repeats it.
    """
    import optuna

    if not current:
        return False
    told = isinstance(error, ValueError | optuna.exceptions.UpdateFinishedTrialError)
    mine = _failed(study, current[0]) or FAULT in getattr(error, "__notes__", ()) or not told
    trial = study.get_trials(deepcopy=False)[current[0]]
    if mine and trial.state == optuna.trial.TrialState.FAIL:
        _queue(study, plan, trial.number)
    return not mine
