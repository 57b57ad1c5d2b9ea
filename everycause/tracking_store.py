"""Calls to MLflow's store: each names its run by id, and has a time limit.

MLflow's stack of active runs is not used: one failed call leaves a run open on it, in which everything later is
recorded. Every call runs in a thread of its own with a time limit, because timeouts of HTTP requests are counted from
one byte to the next: a server that sends a byte a second is waited for without end.
"""

import copy
import json
import logging
import os
import re
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from filelock import FileLock

from everycause.artifacts import DAMAGED, UNFINISHED
from everycause.processes import is_dead, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from everycause.models import Classifier

log = logging.getLogger(__name__)
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""MLflow's own limits (it would wait for minutes, and print addresses), where the user has not set them."""
CALL_SECONDS = 20.0
"""Time limit of a call to a server or its database."""
LOCAL_SECONDS = 60.0
"""Time limit of a call to a SQLite file, whose tables the first call makes."""
UPLOAD_SECONDS = 180.0
"""Time limit of what sends files."""
STOP_SECONDS = 5.0
"""Time limit of the last call of a run that was stopped or failed."""
MOST_PARAMS, MOST_METRICS, LONGEST_PARAM, LONGEST_METRIC = 100, 1000, 6000, 250
"""What MLflow takes at once, and characters of a parameter's value and of a metric's name."""
PARENT, PROCESS, STATE = "mlflow.parentRunId", "process", "state"
"""Tags: the run that this one belongs to, the process that writes it, and how it ended."""
RESULTS = {
    "test/accuracy/test": "results/test",
    "test/accuracy/corruptions": "results/corruptions",
    "test/worst_group": "results/worst_group",
    "test/completeness": "results/completeness",
    "validation/accuracy": "results/validation",
}
"""Measures that matter → their second name in MLflow. Its comparison of runs opens on the name that is first in the
alphabet, which would be the load of the CPU: the others are called system, test, train and validation."""
QUIET = ("mlflow", "alembic", "sqlalchemy", "urllib3")
"""Loggers that print tracebacks of what this module says in one line."""
T = TypeVar("T")


class TooSlowError(Exception):
    """MLflow has not answered within its time limit."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """What a call returns, or its exception; after the time limit its thread is left behind."""
    outcome: Future[T] = Future()

    def answer() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=answer, daemon=True, name="mlflow call").start()
    try:
        return outcome.result(timeout=seconds)
    except TimeoutError as error:
        if outcome.done():  # an error of the call itself
            raise
        raise TooSlowError(f"no answer within {seconds:g} s") from error


def limit(uri: str) -> float:
    """Seconds that a call may take."""
    return LOCAL_SECONDS if is_file(uri) else CALL_SECONDS


def is_file(uri: str) -> bool:
    """Whether a store is a SQLite file, which no network lies before."""
    return uri.startswith("sqlite")


def load_mlflow() -> None:
    """Import MLflow with its own limits set and its tracebacks off: before the first call, whose time limit runs."""
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    import mlflow  # noqa: F401

    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def open_client(uri: str, root: Path) -> "MlflowClient":
    """A client of the store at an address; a SQLite file and its tables are made by one process at a time."""
    from mlflow import MlflowClient

    with _one_maker(uri, root):
        return MlflowClient(uri)


def _one_maker(uri: str, root: Path) -> AbstractContextManager[Any]:
    """Several processes that create one SQLite store at once corrupt it, hence a lock.

    It is not held for a server, which other stages would then wait for as well.
    """
    return FileLock(root / ".mlflow.lock", timeout=LOCAL_SECONDS) if is_file(uri) else nullcontext()


def experiment_of(client: "MlflowClient", name: str, root: Path) -> str:
    """The experiment's id, created if need be."""
    with _one_maker(client.tracking_uri, root):
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        location = (root / "mlartifacts" / name).as_uri() if is_file(client.tracking_uri) else None
        kind = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=kind))
        except Exception:
            found = client.get_experiment_by_name(name)  # somebody else may have created it in the meantime
            if found is None:
                raise
            return str(found.experiment_id)


def close_cut_off(client: "MlflowClient", experiment: str) -> None:
    """Close the runs that dead processes of this machine left running."""
    for other in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        if PROCESS in other.data.tags and is_dead(json.loads(other.data.tags[PROCESS])):
            terminate(client, other.info.run_id, "KILLED")


def begin(
    client: "MlflowClient", experiment: str, name: str, tags: dict[str, str], began: int, resume: str | None
) -> str:
    """The id of a run that is now running: the one to go on with, or a new one that began so many ms after 1970."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking.context.registry import resolve_tags

    if resume is not None:
        try:
            if client.get_run(resume).info.lifecycle_stage == "active":
                client.update_run(resume, status="RUNNING")
                set_tags(client, resume, {STATE: "went on", **tags})
                return resume
        except MlflowException:  # the store does not have it any more
            log.debug("MLflow has no run %s: a new one is begun", resume)
    return str(client.create_run(experiment, began, resolve_tags(tags), name).info.run_id)


def terminate(client: "MlflowClient", run_id: str, status: str) -> None:
    """Close the run of a dead process."""
    client.set_tag(run_id, STATE, "its process died")
    client.set_terminated(run_id, status)


def log_params(client: "MlflowClient", run_id: str, logged: dict[str, Any]) -> None:
    """Write parameters, in as few calls as MLflow takes."""
    from mlflow.entities import Param

    params = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in logged.items()]
    for start in range(0, len(params), MOST_PARAMS):
        client.log_batch(run_id, params=params[start : start + MOST_PARAMS])


def log_metrics(client: "MlflowClient", run_id: str, points: list[tuple[int, int, dict[str, float]]]) -> None:
    """Write the measures of steps, each with its time in ms since 1970: what is sent twice is stored once."""
    from mlflow.entities import Metric

    metrics = [
        Metric(shown, float(value), now, step)
        for now, step, measures in points
        for taken, (name, value) in zip(metric_names(list(measures)), measures.items(), strict=True)
        for shown in (taken, *([RESULTS[name]] if name in RESULTS else []))
    ]
    for start in range(0, len(metrics), MOST_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + MOST_METRICS])


def metric_names(names: list[str]) -> list[str]:
    """Names that MLflow takes, one for each; history.jsonl keeps the real ones.

    It takes letters, digits, and _ - . space : / alone. A name that is too long, or would become another measure's,
    is cut and ends in a hash of the real one.
    """
    plain = [_plain(name) for name in names]
    clear = [
        len(short) <= LONGEST_METRIC and (short == name or plain.count(short) == 1)
        for name, short in zip(names, plain, strict=True)
    ]
    cut = [
        f"{short[: LONGEST_METRIC - 9]} {zlib.crc32(name.encode()):08x}"
        for name, short in zip(names, plain, strict=True)
    ]
    return [short if kept else hashed for short, kept, hashed in zip(plain, clear, cut, strict=True)]


def _plain(name: str) -> str:
    parts = (re.sub(r"[^\w\-. :]", "_", part) for part in name.split("/"))
    return "/".join("_" if part in ("", ".", "..") else part for part in parts)


def set_tags(client: "MlflowClient", run_id: str, tags: dict[str, str]) -> None:
    """Add tags to a run in one call."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])


def attach(client: "MlflowClient", run_id: str, folder: Path) -> None:
    """Attach the files of a folder, but none that are gone when it is whole."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if not file.name.startswith((".", UNFINISHED)) and file.suffix != DAMAGED:
            place = file.parent.relative_to(folder).as_posix()
            client.log_artifact(run_id, str(file), None if place == "." else place)


def log_model(client: "MlflowClient", run_id: str, classifier: "Classifier") -> None:
    """Attach a network to a run as an exported program with its signature."""
    import mlflow

    mlflow.set_tracking_uri(client.tracking_uri)
    network = copy.deepcopy(classifier.network).cpu().to(memory_format=torch.contiguous_format).eval()
    side, statistics = classifier.image_size, classifier.statistics
    experiment = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(experiment, name="model", source_run_id=run_id)
    mlflow.models.Model.log(  # what mlflow.pytorch.log_model calls, which takes no run id
        artifact_path=None,
        name="model",
        run_id=run_id,
        model_id=model.model_id,
        flavor=mlflow.pytorch,
        pytorch_model=network,
        input_example=np.zeros((2, 3, side, side), dtype=np.float32),
        serialization_format="pt2",
        pip_requirements=["torch", "timm"],
        metadata={"mean": statistics.mean, "standard_deviation": statistics.standard_deviation},
    )


def reason(error: BaseException) -> str:
    """An error's class and first line, without passwords."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {without_password(first)}"
