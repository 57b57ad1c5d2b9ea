"""A study: created once, gone on with only if it is about the same thing, sampled from a seed of its own for every trial."""

import json
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from filelock import FileLock

from everycause.errors import UserError
from everycause.params import flattened
from everycause.tuning.space import ENQUEUED, Plan, Value

# MERGED DOC: """Where studies live: a journal file, any database that SQLAlchemy reaches, or Optuna's gRPC proxy in front of one.
#
# Trap: Optuna's heartbeats exist for databases alone, and reach back over a proxy no more than from a journal; who died on
# this machine is found by its process instead (everycause.tuning.loop).
# """


if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

HEARTBEAT_SECONDS = 20
"""A trial in a database says so often that it is alive; after three times as long without a word it is given up."""
PROXY_SECONDS = 10
"""How long a proxy may take to answer."""
START_ATTEMPTS = 3
"""Several processes may create the tables of one database at once: all but one fail, and find them a moment later."""


def open_storage(
    address: str, stale: "Callable[[Study, FrozenTrial], None]", heartbeat: int = HEARTBEAT_SECONDS
) -> "BaseStorage":
    """A storage by its address: a path is a journal file, `grpc://host:port` a proxy, everything else a database URL.

    Args:
        address: The address.
        stale: Called for a trial of a database whose heartbeat has stopped.
        heartbeat: Seconds between the signs of life of a trial in a database.

    Raises:
        UserError: the storage is not to be reached or not readable; passwords are left out of the sentence.
    """
    import optuna
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    try:
        if "://" not in address:
            return _journal(Path(address))
        if address.startswith("grpc://"):
            return _proxy(address)
        return _database(address, stale, heartbeat)
    except (OSError, ImportError, ValueError, KeyError, TypeError, OptunaError, SQLAlchemyError) as error:
        reason = (str(error).strip().splitlines() or [""])[0].replace(address, shown(address))
        raise UserError(
            f"the storage {shown(address)} is not to be had ({type(error).__name__}: {reason}): start it, or give --storage a journal file or another URL"
        ) from error


def shown(address: str) -> str:
    """An address without its password."""
    password = urlsplit(address).password if "://" in address else None
    return address.replace(f":{password}@", ":***@") if password else address


def _journal(path: Path) -> "BaseStorage":
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def _proxy(address: str) -> "BaseStorage":
    from optuna.storages import GrpcStorageProxy

    parts = urlsplit(address)
    storage = GrpcStorageProxy(host=parts.hostname or "localhost", port=parts.port or 13000)
    storage.wait_server_ready(timeout=PROXY_SECONDS)
    return storage


def _database(url: str, stale: "Callable[[Study, FrozenTrial], None]", heartbeat: int) -> "BaseStorage":
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    connected = partial(
        RDBStorage, url, heartbeat_interval=heartbeat, grace_period=3 * heartbeat, heartbeat_stale_trial_callback=stale
    )
    for _ in range(START_ATTEMPTS - 1):
        try:
            return connected()
        except SQLAlchemyError:
            time.sleep(1)
    return connected()


if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage

SUBJECT, BEGUN = "subject", "begun"
"""What a study tells about itself: what it is about, and that what is to be tried first is queued."""
REASON, ATTEMPT = "reason", "attempt"
"""What a failed trial tells: a reason of its own, or how often its values have ended a worker."""
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

    enqueued = json.loads(json.dumps({**subject, **plan.scheme}))
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        known_studies = optuna.get_all_study_names(storage)
        if plan.study in known_studies:
            study = optuna.load_study(study_name=plan.study, storage=storage)
            _check(study, enqueued)
        else:
            study = optuna.create_study(
                study_name=plan.study, storage=storage, directions=["maximize"] * len(plan.objectives)
            )
            study.set_metric_names(plan.objectives)
            study.set_user_attr(SUBJECT, enqueued)
        if plan.grid or not study.user_attrs.get(
            BEGUN
        ):  # a grid is its list; a sweep that was begun may go on from other present values
            begun = [
                one.user_attrs.get(ENQUEUED)
                for one in study.get_trials(deepcopy=False)
                if counts(one) or one.state.name == "WAITING"
            ]
            for values in first:
                if values not in begun:
                    study.enqueue_trial(values, user_attrs={ENQUEUED: values})
            study.set_user_attr(BEGUN, True)
    return study


def counts(trial: "optuna.trial.FrozenTrial") -> bool:
    """Whether a trial is one of those that a plan wants: not one that waits, and not one whose values are queued again."""
    state = trial.state.name
    return state in ("COMPLETE", "PRUNED", "RUNNING") or (
        state == "FAIL" and (REASON in trial.user_attrs or trial.user_attrs.get(ATTEMPT, 1) >= MOST_ATTEMPTS)
    )


def differences(known: dict[str, Any], enqueued: dict[str, Any]) -> list[str]:
    """What differs between two subjects, as `path: before → now`."""
    before, now = flattened(known), flattened(enqueued)
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


def _check(study: "optuna.Study", enqueued: dict[str, Any]) -> None:
    """The study is about the same thing."""
    known = study.user_attrs.get(SUBJECT)
    if known is None and not study.get_trials(deepcopy=False):  # its maker died between two writes
        study.set_user_attr(SUBJECT, enqueued)
        return
    if known is None:
        raise UserError(f"the study '{study.study_name}' was not made by this project: give tuning.study a new name")
    if changed := differences(known, enqueued):
        named = "; ".join(changed[:MOST_NAMED]) + (
            f"; and {len(changed) - MOST_NAMED} more" if len(changed) > MOST_NAMED else ""
        )
        raise UserError(
            f"the study '{study.study_name}' was made with something else ({named}): give tuning.study a new name, or restore the old values"
        )
