import json
import logging
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest
import torch
from filelock import FileLock, Timeout

from everycause import tracking
from everycause import tracking_store as store
from everycause.artifacts import HISTORY
from everycause.errors import UserError
from everycause.params import flattened
from everycause.tracking import TrackingParams, identity, run
from stages import address
from tests.conftest import ROOT, make_classifier

PARAMS = TrackingParams(experiment="tests", log_models=True, system_metrics_seconds=0.0)
TAGS = {"stage": "test"}


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> None:
    monkeypatch.setattr(tracking, "ROOT", tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")


def runs() -> list:
    mlflow.set_tracking_uri(tracking.tracking_uri())
    return mlflow.search_runs(experiment_names=["tests"], output_format="list")


def lines(history: Path) -> list[dict]:
    return [json.loads(line) for line in history.read_text().splitlines()]


def test_a_run_is_on_disk_and_in_the_store_and_its_model_loads_back(tmp_path: Path) -> None:
    classifier = make_classifier()
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "table.md").write_text("| a |")
    with run("one", PARAMS, TAGS | identity(torch.device("cpu"), "data-1"), {"a.b": 1}, tmp_path / HISTORY) as record:
        for step in (1, 2):
            record({"loss": 1 / step, "accuracy": 0.5}, step)
        record.artifacts(tmp_path / "files")
        record.model(classifier)
    assert lines(tmp_path / HISTORY) == [
        {"step": 1, "loss": 1.0, "accuracy": 0.5},
        {"step": 2, "loss": 0.5, "accuracy": 0.5},
    ]
    (stored,) = runs()
    assert (
        stored.info.status == "FINISHED"
        and stored.data.metrics == {"loss": 0.5, "accuracy": 0.5}
        and stored.data.params == {"a.b": "1"}
    )
    assert {"device", "torch", "data", "git_commit", "git_dirty"} <= set(stored.data.tags)
    (logged,) = mlflow.search_logged_models(experiment_ids=[stored.info.experiment_id], output_format="list")
    loaded = mlflow.pytorch.load_model(logged.model_uri)
    images = torch.randn(3, 3, 32, 32)
    assert torch.allclose(loaded(images), classifier(images), atol=1e-5)
    assert (tmp_path / "mlartifacts").is_dir()


def test_an_exception_marks_the_run_as_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), run("broken", PARAMS, TAGS, {}, tmp_path / HISTORY) as record:
        record({"loss": 1.0}, 1)
        raise RuntimeError
    assert runs()[0].info.status == "FAILED" and len(lines(tmp_path / HISTORY)) == 1


def test_a_server_that_is_down_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with caplog.at_level(logging.WARNING), run("down", PARAMS, TAGS, {}, tmp_path / HISTORY) as record:
        record({"loss": 1.0}, 1)
        record.artifacts(tmp_path)
        record.model(make_classifier())
    assert "recorded on disk only" in caplog.text and lines(tmp_path / HISTORY) == [{"step": 1, "loss": 1.0}]


def test_a_store_that_dies_during_a_run_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def dead(*_arguments: object, **_options: object) -> None:
        raise ConnectionError("the server is gone")

    with caplog.at_level(logging.WARNING), run("dying", PARAMS, TAGS, {}, tmp_path / HISTORY) as record:
        record({"loss": 1.0}, 1)
        with monkeypatch.context() as patch:
            patch.setattr(store, "log_metrics", dead)
            record({"loss": 0.5}, 2)
            record({"loss": 0.25}, 3)
    assert caplog.text.count("stopped answering") == 1 and len(lines(tmp_path / HISTORY)) == 3


def test_a_run_that_opens_but_cannot_be_written_to_does_not_swallow_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "log_params", full)
        with caplog.at_level(logging.WARNING), run("unwritable", PARAMS, TAGS, {"a": 1}, tmp_path / HISTORY) as record:
            record({"loss": 1.0}, 1)
    assert "recorded on disk only" in caplog.text
    with run("next", PARAMS, TAGS, {"a": 1}) as record:
        record({"loss": 0.5}, 1)
    assert {stored.info.run_name: stored.info.status for stored in runs()} == {
        "unwritable": "FAILED",
        "next": "FINISHED",
    }


def test_after_a_failed_call_the_next_trial_reaches_mlflow_and_the_study_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise ConnectionError("the server is gone")

    with run("study", PARAMS, TAGS, {}) as study:
        with run("trial 0", PARAMS, TAGS, {}, parent=study.run_id) as record, monkeypatch.context() as patch:
            patch.setattr(store, "log_metrics", gone)
            record({"loss": 1.0}, 1)
        with run("trial 1", PARAMS, TAGS, {}, tmp_path / "trial-1" / HISTORY, parent=study.run_id) as record:
            record({"loss": 0.5}, 1)
    stored = {one.info.run_name: one for one in runs()}
    assert stored["study"].info.status == stored["trial 1"].info.status == "FINISHED"
    assert stored["trial 1"].data.metrics == {"loss": 0.5}
    assert stored["trial 1"].data.tags["mlflow.parentRunId"] == stored["study"].info.run_id
    assert len(lines(tmp_path / "trial-1" / HISTORY)) == 1


@pytest.fixture
def dribbling() -> Iterator[str]:
    """A server that answers a byte at a time and never ends."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while not ended.is_set():
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=dribble, args=(connection,), daemon=True).start()

        def dribble(connection: socket.socket) -> None:
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while not ended.wait(0.1):
                    connection.sendall(b" ")

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        ended.set()


def test_a_server_that_answers_byte_by_byte_is_given_up_and_holds_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, dribbling: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dribbling)
    monkeypatch.setattr(store, "CALL_SECONDS", 1.0)
    with caplog.at_level(logging.WARNING), run("slow", PARAMS, TAGS, {}, tmp_path / HISTORY) as record:
        record({"loss": 1.0}, 1)
    assert caplog.text.count("no answer within 1 s") == 1 and len(lines(tmp_path / HISTORY)) == 1
    assert not (tmp_path / ".mlflow.lock").exists()
    with pytest.raises(UserError, match="cannot be reached or read") as caught:
        tracking.experiment_id("tests")
    assert "\n" not in str(caught.value)


class Failing(BaseHTTPRequestHandler):
    """Answers 500 to everything."""

    def do_GET(self) -> None:
        self.send_error(500)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_server_that_answers_500_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        with caplog.at_level(logging.WARNING), run("failing", PARAMS, TAGS, {}, tmp_path / HISTORY) as record:
            record({"loss": 1.0}, 1)
        server.shutdown()
    assert caplog.text.count("recorded on disk only") == 1 and len(lines(tmp_path / HISTORY)) == 1


def test_a_locked_database_is_one_line_of_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tracking.experiment_id("tests")
    monkeypatch.setattr(store, "LOCAL_SECONDS", 3.0)
    with sqlite3.connect(tmp_path / "mlflow.db") as other:
        other.execute("begin exclusive")
        with run("locked", PARAMS, TAGS, {}, tmp_path / HISTORY) as record:
            record({"loss": 1.0}, 1)
    said = capfd.readouterr().err
    assert "Traceback" not in said and len(lines(tmp_path / HISTORY)) == 1


def test_runs_whose_process_was_killed_are_closed_when_any_run_starts_and_living_ones_are_not(tmp_path: Path) -> None:
    program = (
        "import os\nfrom everycause import tracking\n"
        "params = tracking.TrackingParams(experiment='tests', log_models=False, system_metrics_seconds=0.0)\n"
        "with tracking.run('killed', params, {'stage': 'retrain'}, {}):\n    os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=False)
    with run("living", PARAMS, {"stage": "tune"}, {}), run("another", PARAMS, TAGS, {}):
        states = {one.info.run_name: one.info.status for one in runs()}
    assert states == {"killed": "KILLED", "living": "RUNNING", "another": "RUNNING"}


def test_the_file_of_a_new_store_is_made_under_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def client(uri: str) -> object:
        lock = FileLock(tmp_path / ".mlflow.lock", is_singleton=False)
        try:
            lock.acquire(timeout=0)
            lock.release()
        except Timeout:
            held.append(uri)
        return object()

    monkeypatch.setattr(mlflow, "MlflowClient", client)
    for uri in (f"sqlite:///{tmp_path / 'new.db'}", "http://127.0.0.1:9", "postgresql://me@127.0.0.1/studies"):
        store.open_client(uri, tmp_path)
    assert held == [f"sqlite:///{tmp_path / 'new.db'}"]


def test_a_database_behind_a_network_is_waited_for_no_longer_than_a_server() -> None:
    assert store.limit("sqlite:///mlflow.db") == store.LOCAL_SECONDS
    for uri in ("http://host", "https://host", "databricks", "postgresql://host/name", "mysql://host/name"):
        assert store.limit(uri) == store.CALL_SECONDS


def test_a_database_that_can_only_be_read_is_one_line_of_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    tracking.experiment_id("tests")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///file:{tmp_path / 'mlflow.db'}?mode=ro&uri=true")
    with caplog.at_level(logging.WARNING), run("read-only", PARAMS, TAGS, {}, tmp_path / HISTORY) as record:
        record({"loss": 1.0}, 1)
    assert "Traceback" not in capfd.readouterr().err and len(lines(tmp_path / HISTORY)) == 1
    assert len(caplog.records) == 1 and "\n" not in caplog.records[0].getMessage()


def test_names_that_mlflow_refuses_are_changed_for_it_alone(tmp_path: Path) -> None:
    measures = {"test/accuracy/photos (new)": 0.5, "test/a+b": 0.25, "../x": 1.0}
    with run("names", PARAMS, TAGS, {}, tmp_path / HISTORY) as record:
        record(measures, 1)
    assert runs()[0].data.metrics == {"test/accuracy/photos _new_": 0.5, "test/a_b": 0.25, "_/x": 1.0}
    assert lines(tmp_path / HISTORY) == [{"step": 1, **measures}]


def test_what_matters_stands_before_system_metrics_in_the_alphabet_where_comparisons_open(tmp_path: Path) -> None:
    measures = {"test/accuracy/test": 0.75, "test/completeness": 0.5, "test/scene_gap": 0.1}
    with run("evaluated", PARAMS, TAGS, {}, tmp_path / HISTORY) as record:
        record(measures, 0)
    stored = runs()[0].data.metrics
    assert stored == {**measures, "results/test": 0.75, "results/completeness": 0.5}
    assert min([*stored, "system/cpu_utilization_percentage"]).startswith("results/")
    assert {f"metrics.`{name}`" for name in stored if name.startswith("results/")} <= set(address.COLUMNS)
    assert lines(tmp_path / HISTORY) == [{"step": 0, **measures}]


def test_many_parameters_are_logged_and_system_metrics_belong_to_the_run(tmp_path: Path) -> None:
    params = PARAMS.model_copy(update={"system_metrics_seconds": 0.1})
    with run("many", params, TAGS, {f"p{number}": number for number in range(250)}):
        for _ in range(3000):
            time.sleep(0.1)
            if any(name.startswith("system/") for name in runs()[0].data.metrics):
                break
    (stored,) = runs()
    assert len(stored.data.params) == 250 and "system/cpu_utilization_percentage" in stored.data.metrics


def test_the_page_of_runs_opens_on_the_store_of_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = address.runs_page("tests", 5001)
    assert shown.startswith("http://127.0.0.1:5001/#/experiments/1/runs?") and "viewStateShareKey=results" in shown
    view = json.loads(
        mlflow.MlflowClient(tracking.tracking_uri()).get_experiment("1").tags["mlflow.sharedViewState.results"]
    )
    assert view["selectedColumns"][:3] == ["tags.`stage`", "tags.`row`", "tags.`seed`"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    with pytest.raises(UserError, match="shown by that workspace"):
        address.runs_page("tests", 5001)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = '451aebb31d03'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}?older")
    with pytest.raises(UserError, match="cannot be reached or read") as caught:
        address.runs_page("tests", 5001)
    assert "\n" not in str(caught.value)


def test_a_terminated_process_leaves_no_running_run(tmp_path: Path) -> None:
    program = (
        "import time\nfrom pathlib import Path\nfrom everycause import tracking\n"
        "params = tracking.TrackingParams(experiment='tests', log_models=False, system_metrics_seconds=0.0)\n"
        "with tracking.run('terminated', params, {}, {}) as record:\n    Path('started').touch()\n    time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    for _ in range(6000):
        if (tmp_path / "started").exists():
            break
        time.sleep(0.1)
    assert (tmp_path / "started").exists()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=600)
    assert process.returncode != 0 and runs()[0].info.status == "FAILED"


def test_nested_parameters_get_dotted_names() -> None:
    assert flattened({"a": {"b": {"c": 1}, "d": [1, 2]}, "e": 2}) == {"a.b.c": 1, "a.d": [1, 2], "e": 2}


def test_a_machine_without_mlflow_records_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # what makes `import mlflow` fail
    with run("alone", PARAMS, TAGS, {}, tmp_path / HISTORY) as record:
        record({"loss": 1.0}, 1)
    assert lines(tmp_path / HISTORY) == [{"step": 1, "loss": 1.0}]
    assert "is not to be had" in caplog.text and "Traceback" not in caplog.text


def test_metrics_that_are_named_by_folders_are_taken_and_never_become_one(tmp_path: Path) -> None:
    names = [
        "a/b c",
        "a/[x]",
        "a/c+d",
        "a/c*d",
        "a/c_d",
        "a/" + "y" * 300,
        "a/" + "y" * 299 + "z",
        "../.",
        "a/$",
        "日本",
    ]
    taken = store.metric_names(names)
    assert len(set(taken)) == len(names) and taken[:2] == ["a/b c", "a/_x_"] and taken[4] == "a/c_d"
    with run("one", PARAMS, TAGS, {}, tmp_path / HISTORY) as record:
        record({name: float(number) for number, name in enumerate(names)}, 0)
    (stored,) = runs()
    assert stored.info.status == "FINISHED"
    assert stored.data.metrics == {name: float(number) for number, name in enumerate(taken)}
    assert set(lines(tmp_path / HISTORY)[0]) == {"step", *names}
