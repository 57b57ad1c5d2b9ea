"""A stage that several processes share, as dvc.yaml calls it: what it writes, and how it ends when one of them dies."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml

from everycause import ranks
from everycause.artifacts import PARTS
from everycause.data.split import Split
from everycause.errors import UserError
from stages import generate_masks, launching
from stages.entry import run
from tests.conftest import ROOT
from tests.explanation.searching import undecided

BASE, LIMIT = Path("base"), 300


def params(**masks: object) -> dict:
    raw = yaml.safe_load((ROOT / "profiles" / "smoke.yaml").read_text())
    raw["run"] |= {"threads": 1, "processes": 2}
    raw["tracking"]["system_metrics_seconds"] = 0.0
    raw["masks"] |= {"confidence": 0.0, "regions": 16, "batch_size": 8} | masks
    return raw


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Split, empty_store: Path) -> Path:
    """A folder with params and a base."""
    classifier = undecided(train)
    classifier.class_names = train.class_names
    (tmp_path / BASE).mkdir()
    classifier.save(tmp_path / BASE)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def started(out: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "stages.generate_masks", "--seed", "0", "--base", str(BASE), "--out", out]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_stage_of_two_processes_writes_the_bytes_of_one(toy: Path) -> None:
    (toy / "params.yaml").write_text(yaml.safe_dump(params(images=30)))
    stage = started("divided")
    output, errors = stage.communicate(timeout=LIMIT)
    assert (stage.returncode, output, errors) == (0, "", "")
    generate_masks.main(seed=0, base=BASE, out=toy / "alone")
    assert files(toy / "divided") == files(toy / "alone")
    assert not list(toy.glob("*.partial"))


def test_a_killed_process_ends_the_stage_with_one_sentence_and_its_shards_stay(toy: Path) -> None:
    (toy / "params.yaml").write_text(yaml.safe_dump(params(images=120, shard=8, search="exhaustive")))
    stage = started("cut")
    parts = toy / "cut.partial" / PARTS
    deadline = time.monotonic() + LIMIT
    while not (parts.is_file() and parts.read_text()) and stage.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (second,) = [one for one in psutil.Process(stage.pid).children() if one.environ().get("RANK") == "1"]
    second.send_signal(signal.SIGKILL)
    _, errors = stage.communicate(timeout=LIMIT)
    assert stage.returncode == 1
    assert errors == (
        "error: process 2 of 2 has ended (SIGKILL, perhaps for want of memory), and the others were stopped: run it "
        "again, finished parts are kept\n"
    )
    kept = parts.read_text().splitlines()
    assert kept and not (toy / "cut").exists()
    before = (toy / "cut.partial" / "masks-00000.safetensors").stat().st_mtime_ns
    generate_masks.main(seed=0, base=BASE, out=toy / "cut")
    assert (toy / "cut" / "masks-00000.safetensors").stat().st_mtime_ns == before
    generate_masks.main(seed=0, base=BASE, out=toy / "whole")
    assert files(toy / "cut") == files(toy / "whole") and len(files(toy / "whole")) > len(kept)


def failure(code: int, sentence: str = "") -> SimpleNamespace:
    data = {"message": {"message": sentence}} if sentence else {"message": "<NONE>"}
    return SimpleNamespace(exitcode=code, error_file_data=data)


@pytest.mark.parametrize(
    ("failures", "sentence"),
    [
        ({0: failure(1, "there is no base")}, "there is no base"),
        ({0: failure(1, ranks.LOST), 1: failure(1, "the disk is full")}, "the disk is full"),
        ({0: failure(1, ranks.LOST), 1: failure(-9)}, "process 2 of 2 has ended (SIGKILL, perhaps"),
        ({1: failure(1)}, "process 2 of 2 has ended (exit code 1, what is above says why)"),
    ],
)
def test_the_sentence_tells_what_came_first(failures: dict, sentence: str) -> None:
    assert launching.cause(failures, 2).startswith(sentence)


def test_a_process_leaves_its_sentence_to_the_one_that_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "error.json"
    monkeypatch.setenv(launching.ERROR_FILE, str(file))
    with pytest.raises(SystemExit, match="error: by torchrun"):
        launching.leave("by torchrun")
    monkeypatch.setenv(launching.OURS, "1")
    with pytest.raises(SystemExit) as ended:
        launching.leave("the disk is full")
    assert ended.value.code == 1
    assert launching.said(SimpleNamespace(error_file_data=json.loads(file.read_text()))) == "the disk is full"


def test_processes_start_only_where_params_ask_for_them_and_none_run_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stage"])
    assert launching.processes_to_start() == 1  # there is no params.yaml: the stage says so
    Path("params.yaml").write_text(yaml.safe_dump(params()))
    assert launching.processes_to_start() == 2
    monkeypatch.setattr(sys, "argv", ["stage", "--help"])
    assert launching.processes_to_start() == 1
    monkeypatch.setattr(sys, "argv", ["stage"])
    raw = params()
    raw["run"]["processes"] = 0
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError, match="'run.processes' is 0"):
        launching.processes_to_start()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launching.processes_to_start() == 1


def test_a_stage_that_cannot_be_divided_refuses_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(SystemExit, match="error: this stage runs in one process: start it without torchrun"):
        run(lambda: None)


def test_one_process_imports_nothing_of_torchrun() -> None:
    code = (
        "import sys, stages.entry, stages.launching\n"
        "print('torch.distributed.elastic.multiprocessing.errors' in sys.modules"
        " or 'torch.distributed.launcher' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n" and os.environ.get(launching.OURS) is None
