"""The script for GPUs runs whole on a CPU at tiny sizes, and every benchmark can be imported."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import broken_params
from tests.imports import ROOT, libraries

NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__")


def test_the_device_script_measures_everything_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "device.json"
    command = [sys.executable, "-m", "benchmarks.device", "--device", "cpu", "--small", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    stored = json.loads((ROOT / "reports" / "benchmarks" / "device.json").read_text())
    assert set(found) == set(stored)
    assert found["training.two_runs_are_bitwise_equal"] == found["search.same_sets_as_cpu"] == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_benchmarks_can_be_imported_and_those_of_the_mathematics_need_no_tracker(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")
    if name not in ("bench_sweep", "broken_params"):
        assert not {"mlflow", "optuna", "dvc"} & libraries(f"benchmarks.{name}")


def test_broken_params_are_refused_in_one_sentence_or_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(broken_params.verdicts(count=12, seed=1, run=0, seconds=60))
    assert {verdict.kind for _, verdict in found} <= {"refused", "accepted"}, found
    assert sum(verdict.kind == "refused" for _, verdict in found) > 6
    again = [one.text for one in broken_params.broken(12, 1)]
    assert [one.text for one, _ in found] == again

    def broken_check(out: Path) -> None:
        raise ValueError("no sentence")

    monkeypatch.setattr(broken_params.check_inputs, "main", broken_check)
    assert {verdict.kind for _, verdict in broken_params.verdicts(1, 1, 0, 60)} == {"fault"}
