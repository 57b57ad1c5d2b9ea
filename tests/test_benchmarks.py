"""The script for GPUs runs whole on a CPU at tiny sizes, and every benchmark can be imported."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    if name != "bench_sweep":
        assert not {"mlflow", "optuna", "dvc"} & libraries(f"benchmarks.{name}")
