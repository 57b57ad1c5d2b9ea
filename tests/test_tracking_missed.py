"""What MLflow missed is sent later: with a real server that is killed and started again, and with one that fails."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
import torch

from everycause import tracking
from everycause import tracking_store as store
from everycause.artifacts import HISTORY, atomic_folder
from everycause.errors import UserError
from everycause.tracking import TrackingParams, run, send_missed
from stages import sync_tracking
from stages.recording import recorded
from tests.conftest import ROOT

PARAMS = TrackingParams(experiment="tests", log_models=False, system_metrics_seconds=0.0)
TAGS = {"stage": "retrain", "row": "masks", "seed": "0"}
SERVER = """
import sys
from mlflow.server import app
from mlflow.server.handlers import initialize_backend_stores
initialize_backend_stores("sqlite:///" + sys.argv[2], default_artifact_root=sys.argv[3])
app.run("127.0.0.1", int(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> None:
    monkeypatch.setattr(tracking, "ROOT", tmp_path)
    for name in ("mlflow.db", "server.db"):
        shutil.copy(empty_store, tmp_path / name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def notes(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / tracking.MISSED).glob("*"))


def runs() -> dict[str, mlflow.entities.Run]:
    mlflow.set_tracking_uri(tracking.tracking_uri())
    found = mlflow.search_runs(experiment_names=["tests"], output_format="list")
    assert len({one.info.run_name for one in found}) == len(found), "a run was sent twice"
    return {one.info.run_name: one for one in found}


def curve(one: mlflow.entities.Run, name: str) -> list[tuple[int, float]]:
    points = mlflow.MlflowClient(tracking.tracking_uri()).get_metric_history(one.info.run_id, name)
    return [(point.step, point.value) for point in points]


def down(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on MLflow fails at everything."""

    def gone(*_: object) -> None:
        raise ConnectionError("the server is gone")

    for name in ("open_client", "log_metrics", "set_tags"):
        monkeypatch.setattr(store, name, gone)
    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", gone)
    monkeypatch.setattr(mlflow.MlflowClient, "set_terminated", gone)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], "subprocess.Popen[bytes]"]]:
    """Starts MLflow's own server on one store, as often as it is asked for."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    started: list[subprocess.Popen[bytes]] = []

    def start() -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", SERVER, str(port), str(tmp_path / "server.db"), str(tmp_path / "files")]
        with (tmp_path / "server.log").open("a") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                return started[-1]
            except (urllib.error.URLError, OSError):
                assert started[-1].poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.1)
        raise AssertionError("the server does not answer")

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_what_a_killed_server_missed_is_sent_when_it_is_back(
    tmp_path: Path, server: Callable[[], "subprocess.Popen[bytes]"], capsys: pytest.CaptureFixture[str]
) -> None:
    process = server()
    with atomic_folder(tmp_path / "artifact") as folder, run("cut", PARAMS, TAGS, {"a": 1}, folder / HISTORY) as record:
        record({"loss": 1.0}, 1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        record({"loss": 0.5}, 2)
        record({"loss": 0.25}, 3)
        record.artifacts(folder)
    with run("missed", PARAMS, TAGS, {"a": 2}) as record:
        record({"loss": 2.0}, 1)
    with pytest.raises(UserError, match="cannot be reached or read"):
        sync_tracking.main()
    assert len(notes(tmp_path)) == 2

    server()
    sync_tracking.main()
    assert capsys.readouterr().out == f"2 runs were sent to {tracking.tracking_uri()}\n" and notes(tmp_path) == []
    cut, whole = runs()["cut"], runs()["missed"]
    history = [json.loads(line) for line in (tmp_path / "artifact" / HISTORY).read_text().splitlines()]
    assert curve(cut, "loss") == [(line["step"], line["loss"]) for line in history] == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert curve(whole, "loss") == [(1, 2.0)] and whole.data.params == {"a": "2"}
    for one in (cut, whole):
        assert one.info.status == "FINISHED" and one.info.end_time and TAGS.items() <= one.data.tags.items()
    files = mlflow.MlflowClient(tracking.tracking_uri()).list_artifacts(cut.info.run_id)
    assert [file.path for file in files] == [HISTORY]
    sync_tracking.main()
    assert capsys.readouterr().out.startswith("0 runs were sent")


def test_trials_that_were_missed_belong_to_their_study_with_their_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = {"stage": "tune", "study": "joint"}
    with monkeypatch.context() as patch:
        down(patch)
        with run("study", PARAMS, about, {}) as study:
            with run("trial", PARAMS, about | {"trial": "0"}, {}, parent=study.run_id) as record:
                record.status = "KILLED"
                record.tag({"state": "pruned"})
            with pytest.raises(RuntimeError), run("broken", PARAMS, about | {"trial": "1"}, {}, parent=study.run_id):
                raise RuntimeError
    assert send_missed() == (3, 0)
    found = runs()
    assert {name: one.info.status for name, one in found.items()} == {
        "study": "FINISHED",
        "trial": "KILLED",
        "broken": "FAILED",
    }
    assert found["trial"].data.tags["state"] == "pruned"
    for name in ("trial", "broken"):
        assert found[name].data.tags["mlflow.parentRunId"] == found["study"].info.run_id


def test_a_run_that_still_runs_is_not_sent_and_one_that_was_killed_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import os\nfrom everycause import tracking\n"
        "params = tracking.TrackingParams(experiment='tests', log_models=False, system_metrics_seconds=0.0)\n"
        "with tracking.run('killed', params, {}, {}) as record:\n"
        "    record({'loss': 1.0}, 1)\n    os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(tmp_path)}
    environment["MLFLOW_TRACKING_URI"] = "nonsense://nowhere"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=False)
    with monkeypatch.context() as patch:
        down(patch)
        running = run("running", PARAMS, TAGS, {})
        running.__enter__()
        (killed, _) = notes(tmp_path)
        killed.write_text(killed.read_text() + '["measures", [1, 2, {"lo')  # the last line of a killed process
    assert send_missed() == (1, 1)
    assert {name: (one.info.status, one.data.metrics) for name, one in runs().items()} == {
        "killed": ("KILLED", {"loss": 1.0})
    }
    running.__exit__(None, None, None)
    assert send_missed() == (1, 0) and set(runs()) == {"killed", "running"}


def test_a_run_that_cannot_be_sent_whole_is_sent_again_and_stored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        with monkeypatch.context() as patch:
            down(patch)
            with run(name, PARAMS, TAGS, {}) as record:
                record({"loss": float("nan"), "accuracy": 0.5}, 1)
    real = store.set_tags

    def refuses(client: object, run_id: str, tags: dict[str, str]) -> None:
        raise ConnectionError("again\nand again")

    with monkeypatch.context() as patch:
        patch.setattr(store, "set_tags", refuses)
        with pytest.raises(UserError, match="did not take 2 of 2 runs, first 'one'") as caught:
            send_missed()
    assert "\n" not in str(caught.value) and len(notes(tmp_path)) == 2 and real is store.set_tags
    assert send_missed() == (2, 0)
    assert curve(runs()["one"], "accuracy") == curve(runs()["two"], "accuracy") == [(1, 0.5)]


def test_files_that_a_later_run_has_replaced_are_not_attached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "artifact"
    with monkeypatch.context() as patch:
        down(patch)
        for name, loss in (("earlier", 2.0), ("later", 1.0)):
            with atomic_folder(out) as folder, run(name, PARAMS, TAGS, {}, folder / HISTORY) as record:
                record({"loss": loss}, 1)
                record.artifacts(folder)
    assert send_missed() == (2, 0)
    client = mlflow.MlflowClient(tracking.tracking_uri())
    attached = {name: [file.path for file in client.list_artifacts(one.info.run_id)] for name, one in runs().items()}
    assert attached == {"earlier": [], "later": [HISTORY]}


@pytest.mark.parametrize("text", ["", "{}\n", "[1, 2]\n", '["about", {"began": 1}]\n', "\x00\n", '["about", {}]\nx\n'])
def test_a_damaged_note_is_one_sentence_with_its_name(tmp_path: Path, text: str) -> None:
    (tmp_path / tracking.MISSED).mkdir(parents=True)
    file = tmp_path / tracking.MISSED / "1-x.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match="is damaged") as caught:
        send_missed()
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_where_nothing_can_be_noted_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / tracking.MISSED).parent.write_text("a file where the folder should be")
    down(monkeypatch)
    with run("one", PARAMS, TAGS, {}, tmp_path / HISTORY) as record:
        record({"loss": 1.0}, 1)
    assert len((tmp_path / HISTORY).read_text().splitlines()) == 1 and "cannot be noted" in caplog.text


KILLED = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
import torch
from everycause.artifacts import part
from everycause.tracking import TrackingParams
from stages.recording import recorded
params = SimpleNamespace(tracking=TrackingParams(experiment="tests", log_models=False, system_metrics_seconds=0.0))
def begun(name):
    return recorded(f"retrain/{name}", params, Path(name), 0, torch.device("cpu"), "data", "one key")
with begun("same") as (folder, record), begun("other") as (other, another):
    for step in (1, 2):
        record({"loss": 1 / step}, step)
        another({"loss": 1 / step}, step)
    for place in (folder, other):
        with part(place / "shard") as file:
            file.write_text("finished")
    os._exit(9)
"""


def killed(tmp_path: Path, address: str | None = None) -> None:
    """A process that dies while it writes the artifacts `same` and `other`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(tmp_path)}
    environment |= {"MLFLOW_TRACKING_URI": address} if address else {}
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 9


def gone_on(name: str, key: str) -> None:
    params = SimpleNamespace(tracking=PARAMS)
    with recorded(f"retrain/{name}", params, Path(name), 0, torch.device("cpu"), "data", key) as (folder, record):
        for step in (1, 2, 3):
            record({"loss": 1 / step}, step)
        (folder / "model").write_text("whole")


def test_a_killed_stage_goes_on_as_the_same_run_and_one_that_starts_anew_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(tmp_path)
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(tracking.tracking_uri())
    before = set(mlflow.search_runs(experiment_names=["tests"])["run_id"])
    gone_on("same", "one key")
    gone_on("other", "another key")
    found = mlflow.search_runs(experiment_names=["tests"], output_format="list")
    same, cut, anew = (
        [one for one in found if one.data.tags["row"] == row and (one.info.run_id in before) == old]
        for row, old in (("same", True), ("other", True), ("other", False))
    )
    assert len(found) == 3 and len(same) == len(cut) == len(anew) == 1
    for one, status, steps in ((same[0], "FINISHED", 3), (cut[0], "KILLED", 2), (anew[0], "FINISHED", 3)):
        assert one.info.status == status
        assert curve(one, "loss") == [(step, 1 / step) for step in range(1, steps + 1)]
    assert same[0].data.tags["state"] == "went on"
    files = [file.path for file in mlflow.MlflowClient().list_artifacts(same[0].info.run_id)]
    assert files == [HISTORY, "model", "shard"] and not list((tmp_path / "same").glob("unfinished*"))


def test_what_a_killed_stage_noted_for_later_is_sent_by_the_one_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(tmp_path, "nonsense://nowhere")
    assert len(notes(tmp_path)) == 2
    monkeypatch.chdir(tmp_path)
    gone_on("same", "one key")
    assert len(notes(tmp_path)) == 1, "MLflow has it now"
    (one,) = (run for run in runs().values() if run.data.tags["row"] == "same")
    assert curve(one, "loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)] and one.info.status == "FINISHED"
