"""The only door to MLflow. Disk is the truth and MLflow a window: whatever fails in here is a warning, never a lost run."""

import copy
import json
import logging
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from pydantic import Field

from everycause.device import device_name
from everycause.models import Classifier
from everycause.params import Section

log = logging.getLogger(__name__)
HISTORY = "history.jsonl"
ROOT = Path(os.environ.get("DVC_ROOT", ".")).resolve()
"""The repository; in `dvc exp run --temp` the parent one, so that its runs are not lost in a temporary folder."""


class TrackingParams(Section):
    """What is recorded besides the artifacts on disk."""

    experiment: str = Field(min_length=1)
    """The MLflow experiment of the pipeline's runs; sweeps have one of their own."""
    log_models: bool
    """Whether the final models of headline rows are logged as MLflow models."""
    system_metrics_seconds: float = Field(ge=0)
    """Interval of CPU, memory and GPU readings; 0 turns them off."""


class Record:
    """Writes epochs to history.jsonl first and to MLflow second."""

    def __init__(self, history: Path | None, run: "Window | None") -> None:
        self._history = history
        self._run = run
        self.status = "FINISHED"
        """What the run will be called if nothing goes wrong from here on; KILLED for what was stopped on purpose."""

    def __call__(self, measures: dict[str, float], step: int) -> None:
        """Record one step's measures."""
        if self._history is not None:
            with self._history.open("a") as file:
                file.write(json.dumps({"step": step, **measures}, sort_keys=True) + "\n")
        if self._run is not None:
            self._run.attempt("log_metrics", measures, step=step)

    @property
    def run_id(self) -> str | None:
        """The MLflow run, where there is one."""
        return self._run.run_id if self._run is not None else None

    def tag(self, tags: dict[str, str]) -> None:
        """Say more about the run."""
        if self._run is not None:
            self._run.attempt("set_tags", tags)

    def artifacts(self, folder: Path) -> None:
        """Attach the files of a folder."""
        if self._run is not None:
            self._run.attempt("log_artifacts", str(folder))

    def model(self, classifier: Classifier) -> None:
        """Attach a model that loads back with mlflow.pytorch.load_model; it expects normalized images."""
        if self._run is not None:
            self._run.attempt(self._run.log_model, classifier)


class OpenRun:
    """An open MLflow run; the first call that fails closes the window with a warning."""

    def __init__(self, mlflow: Any, run_id: str) -> None:
        self.mlflow = mlflow
        self.run_id = run_id
        self.open = True

    def attempt(self, call: str | Callable[[], Any], *arguments: Any, **options: Any) -> None:
        """Call MLflow; a failure is a warning and the end of the logging."""
        if not self.open:
            return
        try:
            (getattr(self.mlflow, call) if isinstance(call, str) else call)(*arguments, **options)
        except Exception as error:
            self.open = False
            log.warning(
                "MLflow stopped answering (%s: %s): the run goes on, its results are on disk",
                type(error).__name__,
                _first_line(error),
            )

    def log_model(self, classifier: Classifier) -> None:
        """The network as an exported program with its signature."""
        network = copy.deepcopy(classifier.network).cpu().to(memory_format=torch.contiguous_format).eval()
        side = classifier.image_size
        self.mlflow.pytorch.log_model(
            network, name="model", input_example=np.zeros((2, 3, side, side), dtype=np.float32), serialization_format="pt2",
            pip_requirements=["torch", "timm"], metadata={"mean": classifier.statistics.mean, "standard_deviation": classifier.statistics.standard_deviation},
        )  # fmt: skip


@contextmanager
def run(
    name: str,
    params: TrackingParams,
    tags: dict[str, str],
    logged: dict[str, Any],
    history: Path | None = None,
    parent: str | None = None,
    resume: str | None = None,
) -> Iterator[Record]:
    """A recorded stretch of work: one MLflow run, FAILED when the block raises or the process is told to stop.

    Args:
        name: Its name.
        params: Where it is recorded.
        tags: What it is.
        logged: Its parameters, flat.
        history: A file that gets what is recorded as well.
        parent: The MLflow run that it belongs to.
        resume: The MLflow run that it goes on with; a new one is begun where the store does not have it.
    """
    if history is not None:
        history.unlink(missing_ok=True)
    window = _start(name, params, tags, logged, parent, resume)
    previous = signal.signal(signal.SIGTERM, _stop) if _in_main_thread() else None
    record, status = Record(history, window), "FAILED"
    try:
        yield record
        status = record.status
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)
        if window is not None:
            window.attempt("end_run", status)


def identity(device: torch.device, data: str) -> dict[str, str]:
    """Tags that say where and on what a run was made."""
    tags = {
        "device": device_name(device),
        "torch": torch.__version__,
        "data": data,
        "git_commit": _git("rev-parse", "HEAD") or "none",
    }
    tags["git_dirty"] = str(bool(_git("status", "--porcelain"))).lower()
    for variable in ("DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        if value := os.environ.get(variable):
            tags[variable.lower()] = value
    return tags


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or a SQLite file in the repository."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{ROOT / 'mlflow.db'}"


def close(run_id: str) -> None:
    """Call a run FAILED whose process died without a word, or it would be running for ever."""
    try:
        import mlflow

        mlflow.set_tracking_uri(tracking_uri())
        client = mlflow.MlflowClient()
        client.set_tag(run_id, "state", "its process died")
        client.set_terminated(run_id, "FAILED")
    except Exception as error:
        log.warning("MLflow did not close the run %s (%s: %s)", run_id, type(error).__name__, _first_line(error))


def experiment_id(name: str) -> str:
    """The id of an experiment in the store, created if need be."""
    import mlflow

    mlflow.set_tracking_uri(tracking_uri())
    return _experiment(mlflow, name)


def _start(
    name: str,
    params: TrackingParams,
    tags: dict[str, str],
    logged: dict[str, Any],
    parent: str | None,
    resume: str | None,
) -> OpenRun | None:
    """Open a run, or warn and go on without."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    started = None
    try:
        import mlflow

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        mlflow.set_tracking_uri(tracking_uri())
        experiment = _experiment(mlflow, params.experiment)
        if params.system_metrics_seconds:
            mlflow.set_system_metrics_sampling_interval(params.system_metrics_seconds)
        started = mlflow.start_run(
            run_id=resume if resume is not None and _has(mlflow, resume) else None, experiment_id=experiment, run_name=name, tags=tags,
            nested=parent is not None, parent_run_id=parent, log_system_metrics=params.system_metrics_seconds > 0,
        )  # fmt: skip
        mlflow.log_params(logged)
        return OpenRun(mlflow, started.info.run_id)
    except Exception as error:
        if started is not None:  # opened but not to be written to: the next run must not land in it
            with suppress(Exception):
                mlflow.end_run("FAILED")
        log.warning(
            "MLflow at %s is not to be had (%s: %s): this run is recorded on disk only",
            tracking_uri(),
            type(error).__name__,
            _first_line(error),
        )
        return None


def _experiment(mlflow: Any, name: str) -> str:
    """The experiment's id. Several processes that create one SQLite store at once corrupt it, hence the lock."""
    with FileLock(ROOT / ".mlflow.lock"):
        found = mlflow.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        local = tracking_uri().startswith("sqlite")
        location = (ROOT / "mlartifacts" / name).as_uri() if local else None
        return mlflow.create_experiment(
            name, artifact_location=location, tags={"mlflow.experimentKind": "custom_model_development"}
        )


def _has(mlflow: Any, run_id: str) -> bool:
    """Whether the store knows a run and has not deleted it."""
    try:
        return mlflow.get_run(run_id).info.lifecycle_stage == "active"
    except mlflow.exceptions.MlflowException:
        return False


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit("terminated")


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _git(*arguments: str) -> str:
    """Output of a git command, or nothing where there is no repository."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
