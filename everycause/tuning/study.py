"""A study: created once, continued only if it is about the same thing; each trial is sampled with a seed of its own."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from everycause.errors import UserError
from everycause.params import flattened
from everycause.tuning.space import ENQUEUED, Plan, Value

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

SUBJECT, BEGUN = "subject", "begun"
"""Notes in a study: what it is about, and that what is tried first is queued."""
REASON, ATTEMPT, RETRIES = "reason", "attempt", "retries"
"""Notes in a trial: why it failed by itself, which attempt at its values it is (from 1), the trial that it repeats."""
SURPLUS, STOPPED = "surplus", "stopped"
"""Notes in a failed trial: it was one too many and never ran; a person stopped it."""
MOST_ATTEMPTS = 3
"""Values that ended as many workers are not tried again."""
ABSENT = "absent"
MOST_NAMED = 8
"""Differences that a sentence names."""


def open_study(
    storage: "BaseStorage", plan: Plan, subject: dict[str, Any], first: list[dict[str, Value]], lock: Path
) -> "optuna.Study":
    """The study, created with what is to be tried first, or continued.

    Args:
        storage: Where it lives.
        plan: What is searched.
        subject: What it is about: data, model, the params that no trial changes.
        first: Values that are tried before anything is sampled, in order.
        lock: A file on this machine that keeps two processes from creating it at once.

    Raises:
        UserError: a study of that name exists and is about something else; every difference is named.
    """
    import optuna

    description = json.loads(json.dumps({**subject, **plan.scheme}))
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        if plan.study in optuna.get_all_study_names(storage):
            study = optuna.load_study(study_name=plan.study, storage=storage)
            _check(study, description)
        else:
            directions = ["maximize"] * len(plan.objectives)
            study = optuna.create_study(study_name=plan.study, storage=storage, directions=directions)
            study.set_metric_names(plan.objectives)
            study.set_user_attr(SUBJECT, description)
        # a grid is its points; a sweep that was begun may go on from other present values
        if plan.grid or not study.user_attrs.get(BEGUN):
            trials = study.get_trials(deepcopy=False)
            begun = [
                one.user_attrs.get(ENQUEUED)
                for one in trials
                if holds_a_place(one, plan) or one.state.name == "WAITING"
            ]
            for values in first:
                if values not in begun:
                    study.enqueue_trial(values, user_attrs={ENQUEUED: values})
            study.set_user_attr(BEGUN, True)
    return study


def values_of(trial: "FrozenTrial") -> dict[str, Value]:
    """The values that a trial tries or has tried, exactly as they were queued or drawn."""
    return trial.user_attrs.get(ENQUEUED) or trial.params


def given_up(trial: "FrozenTrial") -> bool:
    """Whether a trial failed and is not run again: for a reason of its own, or because its values end every worker."""
    notes = trial.user_attrs
    ends_workers = notes.get(ATTEMPT, 1) >= MOST_ATTEMPTS and STOPPED not in notes
    return trial.state.name == "FAIL" and SURPLUS not in notes and (REASON in notes or ends_workers)


def holds_a_place(trial: "FrozenTrial", plan: Plan) -> bool:
    """Whether a trial is one of those that the plan wants.

    A trial that was cut short keeps its place while its values are run again; the repetitions hold none, and neither
    do trials that wait or that died before they had values.
    """
    if RETRIES in trial.user_attrs or SURPLUS in trial.user_attrs:
        return False
    state = trial.state.name
    return state in ("COMPLETE", "PRUNED", "RUNNING") or (state == "FAIL" and _has_values(trial, plan))


def unqueued(trials: "list[FrozenTrial]", plan: Plan) -> "list[FrozenTrial]":
    """The trials that were cut short and whose values are not queued again yet."""
    repeated = {trial.user_attrs.get(RETRIES) for trial in trials}
    return [
        trial
        for trial in trials
        if trial.state.name == "FAIL"
        and SURPLUS not in trial.user_attrs
        and not given_up(trial)
        and _has_values(trial, plan)
        and trial.number not in repeated
    ]


def _has_values(trial: "FrozenTrial", plan: Plan) -> bool:
    return REASON in trial.user_attrs or len(values_of(trial)) == len(plan.parameters)


def differences(known: dict[str, Any], description: dict[str, Any]) -> list[str]:
    """What differs between two subjects, as `path: before → now`."""
    before, now = flattened(known), flattened(description)
    changed = [path for path in {**before, **now} if before.get(path, ABSENT) != now.get(path, ABSENT)]
    return [f"{path}: {before.get(path, ABSENT)} → {now.get(path, ABSENT)}" for path in changed]


def sampler_of(plan: Plan, drawn: int, worker: int) -> "optuna.samplers.BaseSampler":
    """The sampler of the next trial, with a seed of its own.

    A sampler with one seed for the whole study would draw its first trials again whenever a study goes on or a second
    worker starts.

    Args:
        plan: What is searched.
        drawn: Trials that exist already, repeated ones left out.
        worker: Number of the worker, from 0.
    """
    import optuna

    seed = int(np.random.SeedSequence([plan.seed, drawn, worker]).generate_state(1)[0])
    match plan.sampler:
        case "nsga2":  # the default population of 50 would leave a short study without a second generation
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(4, min(50, plan.trials // 4)))
        case "tpe":
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(2, min(10, plan.trials // 4)))
    return optuna.samplers.RandomSampler(seed=seed)


def pruner_of(plan: Plan, steps: int) -> "optuna.pruners.BasePruner":
    """The pruner by name, for trials of so many steps; a quarter of them pass before it stops anything."""
    import optuna

    spared = _spared(steps)
    match plan.pruner:
        case "median":
            return optuna.pruners.MedianPruner(n_startup_trials=max(2, min(5, plan.trials // 4)), n_warmup_steps=spared)
        case "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=spared, max_resource=max(steps, spared + 1))
    return optuna.pruners.NopPruner()


def watched_steps(plan: Plan, steps: int) -> range:
    """The steps, counted from 1, after which the pruner is asked."""
    return range(_spared(steps), steps) if plan.pruner != "none" else range(0)


def _spared(steps: int) -> int:
    return max(1, steps // 4)


def _check(study: "optuna.Study", description: dict[str, Any]) -> None:
    """The study is about the same thing."""
    known = study.user_attrs.get(SUBJECT)
    if known is None and not study.get_trials(deepcopy=False):  # its maker died between two writes
        study.set_user_attr(SUBJECT, description)
        return
    if known is None:
        raise UserError(f"the study '{study.study_name}' was not made by this project: give tuning.study a new name")
    if changed := differences(known, description):
        more = f"; and {len(changed) - MOST_NAMED} more" if len(changed) > MOST_NAMED else ""
        raise UserError(
            f"the study '{study.study_name}' was made with something else ({'; '.join(changed[:MOST_NAMED])}{more}): "
            "give tuning.study a new name, or restore the old values"
        )
