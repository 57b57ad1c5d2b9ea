"""Recording of runs: history.jsonl on disk first, MLflow second. A failure of MLflow is a warning and never ends a run.

The first call that fails or takes too long is the last one of its run; the next run tries again. What MLflow missed is
noted in .cache/tracking, and `send_missed` sends it. A run that a killed process left open is closed as KILLED when the
next run of its experiment starts.
"""

import json
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field, field_validator

from everycause import tracking_store as store
from everycause.device import device_name
from everycause.errors import UserError
from everycause.params import Section
from everycause.processes import this_process, without_password
from everycause.tracking_missed import Journal, Trail, history_line, missed, send

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from everycause.models import Classifier

log = logging.getLogger(__name__)
ROOT = Path(os.environ.get("DVC_ROOT", ".")).resolve()
"""The repository; in `dvc exp run --temp` the one it was started from, or its runs would vanish with the copy."""
RESULTS = tuple(store.RESULTS.values())
"""Names in MLflow of the measures that matter."""
MISSED = Path(".cache") / "tracking"
"""Folder in the repository of what MLflow missed, a file for each run."""


class TrackingParams(Section):
    """What is recorded besides the artifacts on disk."""

    experiment: str = Field(min_length=1)
    """The MLflow experiment of the pipeline's runs; sweeps have one of their own."""
    log_models: bool
    """Whether the final models of headline rows are logged as MLflow models."""
    system_metrics_seconds: float = Field(ge=0, le=86_400)
    """Seconds between two readings of CPU, memory and GPU, at least 0.1; 0 turns them off."""

    @field_validator("system_metrics_seconds")
    @classmethod
    def _leaves_time_to_work(cls, seconds: float) -> float:
        if 0 < seconds < 0.1:
            raise UserError(f"{seconds!r} is too often: 0 (off) or at least 0.1")
        return seconds


class OpenRun:
    """A run in MLflow's store; the first call that fails is the last one, and a warning."""

    def __init__(self, client: "MlflowClient", run_id: str, journal: Journal) -> None:
        self.client = client
        self.run_id = run_id
        self._journal = journal
        self.open = True
        self._monitor: Any = None

    def attempt(self, call: Callable[[], Any], seconds: float | None = None) -> None:
        """Call MLflow within a time limit; a failure is a warning and the end of the recording in MLflow."""
        if not self.open:
            return
        try:
            store.within(_limit() if seconds is None else seconds, call)
        except Exception as error:
            self.open = False
            self._journal.keep()
            log.warning(
                "MLflow stopped answering (%s): the run goes on, its results are on disk, and "
                "`make sync-tracking` sends them later",
                store.reason(error),
            )

    def watch_system(self, seconds: float) -> None:
        """Read CPU, memory, disk, network and GPU every so many seconds, in a thread of MLflow's."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(
            self.run_id, sampling_interval=seconds, resume_logging=True, tracking_uri=tracking_uri()
        )
        self._monitor.start()

    def end(self, status: str, seconds: float) -> None:
        """Write the final status."""
        if self._monitor is not None and self.open:
            self.attempt(self._monitor.finish, seconds)
        elif self._monitor is not None:
            self._monitor._shutdown_event.set()  # finish() asks the server first, which no longer answers
        self.attempt(lambda: self.client.set_terminated(self.run_id, status), seconds)


class Record:
    """Writes measures to history.jsonl first and to MLflow second."""

    def __init__(self, history: Path | None, run: OpenRun | None, journal: Journal, trail: Trail | None = None) -> None:
        self._history = history
        self._run = run
        self._journal = journal
        self._trail = trail or Trail(None)
        self.status = "FINISHED"
        """Status of the run if nothing goes wrong from here on; KILLED for what was stopped on purpose."""

    def __call__(self, measures: dict[str, float], step: int) -> None:
        """Record one step's measures."""
        if self._history is not None:
            with self._history.open("a", encoding="utf-8") as file:
                file.write(history_line(step, measures))
        points = (self._trail.time_of(step, measures), step, dict(measures))
        self._journal.add("measures", points)
        if run := self._run:
            run.attempt(lambda: store.log_metrics(run.client, run.run_id, [points]))

    @property
    def run_id(self) -> str | None:
        """The id of the MLflow run, where there is one."""
        return self._run.run_id if self._run is not None else None

    def tag(self, tags: dict[str, str]) -> None:
        """Add tags to the run."""
        self._journal.add("tags", tags)
        if run := self._run:
            run.attempt(lambda: store.set_tags(run.client, run.run_id, tags))

    def artifacts(self, folder: Path) -> None:
        """Attach the files of a folder; one that is not whole yet loses the end of its name when it is."""
        self._journal.add("files", str(folder.resolve().with_name(folder.name.removesuffix(".partial"))))
        if run := self._run:
            run.attempt(lambda: store.attach(run.client, run.run_id, folder), store.UPLOAD_SECONDS)

    def model(self, classifier: "Classifier") -> None:
        """Attach a model that loads back with mlflow.pytorch.load_model; it expects normalized images."""
        if run := self._run:
            run.attempt(lambda: store.log_model(run.client, run.run_id, classifier), store.UPLOAD_SECONDS)


def unrecorded() -> Record:
    """A record that keeps nothing, for processes whose work another one records."""
    return Record(None, None, Journal(ROOT / MISSED, {}))


@contextmanager
def run(
    name: str,
    params: TrackingParams,
    tags: dict[str, str],
    logged: dict[str, Any],
    history: Path | None = None,
    parent: str | None = None,
    resume: str | None = None,
    trail: Path | None = None,
) -> Iterator[Record]:
    """A recorded piece of work: one MLflow run, FAILED when the block raises or the process is told to stop.

    Args:
        name: Name of the run.
        params: Where it is recorded.
        tags: What it is.
        logged: Its parameters, flat.
        history: A file that gets every measure as well.
        parent: Id of the MLflow run that it belongs to.
        resume: Id of the MLflow run that it goes on with; a new one is begun where the store does not have it.
        trail: A file of an unfinished artifact that notes this id, so that a killed run goes on as the same run.
    """
    if history is not None:
        history.parent.mkdir(parents=True, exist_ok=True)
        history.unlink(missing_ok=True)
    tags = tags | ({store.PARENT: parent} if parent else {}) | {store.PROCESS: json.dumps(this_process())}
    flat = {key: str(value) for key, value in logged.items()}
    journal = Journal(ROOT / MISSED, {"experiment": params.experiment, "name": name, "tags": tags, "logged": flat})
    trod = Trail(trail)
    opened = _start(journal, params, trod.run or resume)
    trod.go_on(journal)
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, _stop) if in_main_thread else None
    record, status, seconds = Record(history, opened, journal, trod), "FAILED", store.STOP_SECONDS
    try:
        yield record
        status, seconds = record.status, _limit()
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)
        journal.add("end", (int(time.time() * 1000), status))
        if opened is not None:
            opened.end(status, seconds)


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
    """Close the run of a process that died: nobody else would, and it would be shown as running for ever."""
    try:
        store.load_mlflow()
        store.within(_limit(), lambda: store.terminate(_client(), run_id, "FAILED"))
    except Exception as error:
        log.warning("MLflow did not close the run %s (%s)", run_id, store.reason(error))


def experiment_id(name: str) -> str:
    """Id of an experiment in the store, created if need be.

    Raises:
        UserError: the store cannot be reached or read.
    """
    try:
        store.load_mlflow()
        return store.within(_limit(), lambda: store.experiment_of(_client(), name, ROOT))
    except Exception as error:
        raise UserError(
            f"MLflow at {without_password(tracking_uri())} cannot be reached or read ({store.reason(error)}): "
            "start the server, or set MLFLOW_TRACKING_URI to another store or to nothing"
        ) from error


def send_missed() -> tuple[int, int]:
    """Send what MLflow missed while it could not be reached.

    Returns:
        The runs that were sent, and those that wait because their processes still run.

    Raises:
        UserError: MLflow cannot be reached now, or what was noted of a run is damaged.
    """
    ended, running = missed(ROOT / MISSED)
    parents: dict[str, str] = {}
    refused = []
    for journal in ended:
        number = experiment_id(journal.about["experiment"])
        try:
            store.within(store.UPLOAD_SECONDS, partial(send, _client(), number, journal, parents))
        except Exception as error:
            refused.append(f"'{journal.about['name']}' ({store.reason(error)}), noted in {journal.file}")
    if refused:
        raise UserError(
            f"MLflow at {without_password(tracking_uri())} did not take {len(refused)} of {len(ended)} runs, first "
            f"{refused[0]}: mend the store and run this again, or delete the file"
        )
    return len(ended), len(running)


def tag_experiment(number: str, tag: str, value: str) -> bool:
    """Add a tag to an experiment; whether the store has taken it."""
    try:
        store.within(_limit(), lambda: _client().set_experiment_tag(number, tag, value))
    except Exception:
        return False
    return True


def _start(journal: Journal, params: TrackingParams, resume: str | None) -> OpenRun | None:
    """Open a run, or warn and go on without."""
    begun: list[OpenRun] = []
    about = journal.about
    about["run"] = resume

    def opening() -> None:
        client = _client()
        experiment = store.experiment_of(client, params.experiment, ROOT)
        about["run"] = store.begin(client, experiment, about["name"], about["tags"], about["began"], resume)
        begun.append(OpenRun(client, about["run"], journal))
        store.close_cut_off(client, experiment)  # after `begin`, which takes over the run that goes on
        store.log_params(client, about["run"], about["logged"])

    try:
        store.load_mlflow()
        store.within(_limit(), opening)
    except Exception as error:
        journal.keep()
        log.warning(
            "MLflow at %s is not to be had (%s): this run is recorded on disk only, and `make sync-tracking` sends it "
            "later",
            *(without_password(tracking_uri()), store.reason(error)),
        )
        if begun and not isinstance(error, store.TooSlowError):  # the run exists and cannot be written to: close it
            with suppress(Exception):
                store.within(store.STOP_SECONDS, lambda: begun[0].client.set_terminated(begun[0].run_id, "FAILED"))
        return None
    if params.system_metrics_seconds:
        begun[0].attempt(lambda: begun[0].watch_system(params.system_metrics_seconds))
    return begun[0]


def _client() -> "MlflowClient":
    return store.open_client(tracking_uri(), ROOT)


def _limit() -> float:
    return store.limit(tracking_uri())


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit("terminated")


def _git(*arguments: str) -> str:
    """Output of a git command, or nothing where there is no repository."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
