"""The MLflow UI and optuna-dashboard as a person sees them: in Debian's chromium, headless, where it is installed."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from everycause import tracking
from everycause.tracking import TrackingParams
from tests.conftest import missing
from tests.tuning.test_study import finished
from tests.tuning.toy import plan_of

PARAMS = TrackingParams(experiment="everycause-tuning", log_models=False, system_metrics_seconds=0.0)


@pytest.fixture
def chromium() -> str:
    found = shutil.which("chromium")
    if found is None:
        missing("Debian's package chromium")
    return str(found)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(command: list[str], port: int, folder: Path) -> Iterator[None]:
    """A server that answers on a port of this machine."""
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (
        (folder / "server.log").open("w") as log,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        ) as server,
    ):
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2)
                    break
                except (urllib.error.URLError, OSError):
                    assert server.poll() is None, (folder / "server.log").read_text()
                    time.sleep(0.25)
            yield
        finally:
            os.killpg(server.pid, 15)


def page(chromium: str, address: str, folder: Path, picture: str) -> str:
    """What a page holds once its scripts have run; a screenshot is left in the folder or in EVERYCAUSE_SCREENSHOTS."""
    shots = Path(os.environ.get("EVERYCAUSE_SCREENSHOTS", folder))
    common = [
        chromium,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1700,1000",
        "--virtual-time-budget=25000",
        f"--user-data-dir={folder / 'profile'}",
    ]
    subprocess.run([*common, f"--screenshot={shots / picture}", address], capture_output=True, timeout=120, check=True)
    assert (shots / picture).stat().st_size > 20_000
    return subprocess.run(
        [*common, "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True
    ).stdout


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[str]]:
    """A store with a study and its trials, one of them pruned: the experiment, and the ids of the runs."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setattr(tracking, "ROOT", tmp_path)
    runs = []
    with tracking.run("joint · study", PARAMS, {"stage": "tune", "study": "joint"}, {}) as parent:
        runs.append(str(parent.run_id))
        for number in range(3):
            values = {"loss.lambda_mc": 0.001 * (number + 1), "background.source": ("bank", "own", "mean")[number]}
            tags = {"stage": "tune", "study": "joint", "trial": str(number)}
            with tracking.run(f"trial-{number} · joint", PARAMS, tags, values, parent=parent.run_id) as record:
                for epoch in range(1, 4):
                    record({"train/loss": 1 / (epoch + number), "validation/accuracy": 0.5 + 0.1 * epoch}, epoch)
                record({"best/validation_completeness": 0.31 + 0.1 * number}, 3)
                record.status = "KILLED" if number == 2 else "FINISHED"
                record.tag({"state": "pruned" if number == 2 else "complete"})
                runs.append(str(record.run_id))
    return tracking.experiment_id("everycause-tuning"), runs


def test_the_trials_of_a_study_stand_in_the_runs_table_and_can_be_compared(
    chromium: str, tmp_path: Path, recorded: tuple[str, list[str]]
) -> None:
    experiment, runs = recorded
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--backend-store-uri",
        f"sqlite:///{tmp_path / 'mlflow.db'}",
    ]
    with served(command, port, tmp_path):
        base = f"http://127.0.0.1:{port}/#"
        table = page(
            chromium, f"{base}/experiments/{experiment}/runs?workflowType=machine_learning", tmp_path, "runs.png"
        )
        assert "joint · study" in table and "4</strong> matching runs" in table
        study = page(chromium, f"{base}/experiments/{experiment}/runs/{runs[0]}", tmp_path, "study.png")
        assert all(f"trial-{number} · joint" in study for number in range(3))
        listed = "%2C".join(f"%22{run}%22" for run in runs[1:])
        compared = page(
            chromium,
            f"{base}/compare-runs?runs=%5B{listed}%5D&experiments=%5B%22{experiment}%22%5D",
            tmp_path,
            "compared.png",
        )
    for number in range(3):
        assert f"trial-{number} · joint" in compared
    assert (
        "loss.lambda_mc" in compared
        and "background.source" in compared
        and re.search(r"validation_completeness", compared)
    )


def test_optuna_dashboard_shows_the_study_of_the_journal(chromium: str, tmp_path: Path) -> None:
    finished(tmp_path, plan_of(5))
    port = free_port()
    program = str(Path(sys.executable).with_name("optuna-dashboard"))
    command = [program, "--host", "127.0.0.1", "--port", str(port), str(tmp_path / "journal.log")]
    with served(command, port, tmp_path):
        listed = page(chromium, f"http://127.0.0.1:{port}/dashboard/", tmp_path, "dashboard_studies.png")
        shown = page(chromium, f"http://127.0.0.1:{port}/dashboard/studies/0", tmp_path, "dashboard_study.png")
    assert "toy" in listed and "toy" in shown and "History" in shown
