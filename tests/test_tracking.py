import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
import torch

from everycause import tracking
from everycause.params import flattened
from everycause.tracking import HISTORY, TrackingParams, identity, run
from tests.conftest import ROOT, make_classifier

PARAMS = TrackingParams(experiment="tests", log_models=True, system_metrics_seconds=0.0)
TAGS = {"stage": "test"}


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "ROOT", tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


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
            patch.setattr(mlflow, "log_metrics", dead)
            record({"loss": 0.5}, 2)
            record({"loss": 0.25}, 3)
    mlflow.end_run()
    assert caplog.text.count("stopped answering") == 1 and len(lines(tmp_path / HISTORY)) == 3


def test_a_run_that_opens_but_cannot_be_written_to_does_not_swallow_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow, "log_params", full)
        with caplog.at_level(logging.WARNING), run("unwritable", PARAMS, TAGS, {"a": 1}, tmp_path / HISTORY) as record:
            record({"loss": 1.0}, 1)
    assert "recorded on disk only" in caplog.text and mlflow.active_run() is None
    with run("next", PARAMS, TAGS, {"a": 1}) as record:
        record({"loss": 0.5}, 1)
    assert {stored.info.run_name: stored.info.status for stored in runs()} == {
        "unwritable": "FAILED",
        "next": "FINISHED",
    }


def test_a_terminated_process_leaves_no_running_run(tmp_path: Path) -> None:
    program = (
        "import time\nfrom pathlib import Path\nfrom everycause import tracking\n"
        "params = tracking.TrackingParams(experiment='tests', log_models=False, system_metrics_seconds=0.0)\n"
        "with tracking.run('terminated', params, {}, {}) as record:\n    Path('started').touch()\n    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    for _ in range(600):
        if (tmp_path / "started").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0 and runs()[0].info.status == "FAILED"


def test_nested_parameters_get_dotted_names() -> None:
    assert flattened({"a": {"b": {"c": 1}, "d": [1, 2]}, "e": 2}) == {"a.b.c": 1, "a.d": [1, 2], "e": 2}
