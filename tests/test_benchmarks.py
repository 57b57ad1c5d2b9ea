"""The script for GPUs runs whole on a CPU at tiny sizes, and every benchmark can be imported."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import bench_memory, broken_params, families
from everycause.errors import UserError
from tests.imports import ROOT, libraries

NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__")


def test_the_device_script_measures_everything_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "device.json"
    command = [sys.executable, "-m", "benchmarks.device", "--device", "cpu", "--small", "--out", str(out)]
    # threads that wait must not spin beside another test: the script then takes ten times as long
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
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


def test_the_peak_memory_of_a_process_is_its_own_and_a_failed_one_is_reported(tmp_path: Path) -> None:
    small, large = (bench_memory.peak(["-c", f"held = b'x' * ({mib} << 20)"], tmp_path) for mib in (1, 201))
    assert large - small == pytest.approx(200, abs=20)
    with pytest.raises(RuntimeError, match="no such thing"):
        bench_memory.peak(["-c", "raise ValueError('no such thing')"], tmp_path)


@pytest.mark.parametrize(
    ("name", "are"),
    [
        ("pit_ti_224", "units of the pooled vector"),  # class tokens alone
        ("crossvit_tiny_240", "units of the pooled vector"),  # two branches
        ("efficientvim_m1", "units of the pooled vector"),  # one tensor for each stage
        ("levit_128s", "mean patch token"),
        ("efficientformer_l1", "mean patch token"),
        ("test_mambaout", "averaged over 5 × 5 places"),  # channels last
    ],
)
def test_families_of_every_kind_train_and_have_filters_with_a_linear_head(name: str, are: str) -> None:
    assert are in families.tried(name)


def test_a_family_that_fails_fails_the_benchmark(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def tried(name: str) -> str:
        if name == "good":
            return "channels"
        raise UserError("too small") if name == "refused" else IndexError("out of range")

    monkeypatch.setattr(families, "tried", tried)
    monkeypatch.setattr(sys, "argv", ["families"])
    for names, code in ((["good", "refused"], 0), (["good", "bad"], 1)):
        monkeypatch.setattr(families, "families", lambda _only, names=names: iter(zip(names, names, strict=True)))
        assert families.main() == code
    assert "bad (bad): FAILED: IndexError: out of range" in capsys.readouterr().out


def test_the_families_are_those_of_timm_and_their_networks_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families.timm, "list_modules", lambda: ["resnet", "pit", "hub"])
    assert list(families.families()) == [("resnet", "test_resnet"), ("pit", "pit_ti_224")]


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
