"""Every stage that takes long is killed, starts again, goes on, and ends in the bytes of one that nobody disturbed."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.kills import tiny
from everycause import unfinished as module
from everycause.artifacts import UNFINISHED
from everycause.unfinished import Unfinished
from stages import (
    accumulate_filters,
    detect_misclassifications,
    evaluate_ood,
    measure_faithfulness,
    retrain,
    train_base,
)
from tests.conftest import ROOT
from tests.test_stages import files, run_pipeline

STAGES = (train_base, accumulate_filters, retrain, measure_faithfulness, evaluate_ood, detect_misclassifications)
MOST_KILLS = 3
"""Kills of one call of a stage."""


class Killed(BaseException):
    """What ends a stage in the middle."""


def raw() -> dict:
    """The pipeline of benchmarks.kills, a little shorter."""
    made = tiny()
    made["training"]["epochs"] = 2
    return made


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    try:
        return run_pipeline(folder / "pipeline", raw())
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]


def disturbed(main: Callable[..., None], chance: random.Random, kills: list[str]) -> Callable[..., None]:
    """A stage that dies when its state is written for some n-th time, is started again, and so on."""

    def run(**options: object) -> None:
        for attempt in range(MOST_KILLS + 1):
            left = [chance.randint(1, 4)] if attempt < MOST_KILLS else [-1]
            save = Unfinished.save

            def dies(
                self: Unfinished, state: dict, own: bool = False, save: Callable = save, left: list[int] = left
            ) -> None:
                save(self, state, own)
                left[0] -= 1
                if left[0] == 0:
                    raise Killed

            Unfinished.save = dies
            try:
                main(**options)
                return
            except Killed:
                kills.append(main.__module__)
            finally:
                Unfinished.save = save

    return run


def test_stages_killed_at_random_moments_end_in_the_same_bytes(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance, kills = random.Random(0), list[str]()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv(module.SECONDS, "0")
    monkeypatch.setattr(module, "DEAREST", 0)
    for stage in STAGES:
        monkeypatch.setattr(stage, "main", disturbed(stage.main, chance, kills))
    folder = run_pipeline(tmp_path / "pipeline", raw())
    assert set(kills) == {stage.__name__ for stage in STAGES} and len(kills) >= 12
    expected, found = files(undisturbed), files(folder)
    assert set(found) == set(expected)
    assert [path for path in expected if found[path] != expected[path]] == []
    assert not list(folder.rglob(f"{UNFINISHED}*"))


def test_a_training_that_is_killed_by_the_system_goes_on(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    (tmp_path / "params.yaml").write_text((undisturbed / "params.yaml").read_text())
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", module.SECONDS: "0"}
    command = [sys.executable, "-m", "stages.train_base", "--seed", "0", "--out", "out"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    state = tmp_path / "out.partial" / f"{UNFINISHED}training.pt"
    while not state.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert state.exists() and process.returncode == -signal.SIGKILL, said.decode()
    monkeypatch.chdir(tmp_path)
    loaded: list[bool] = []
    load = Unfinished.load
    monkeypatch.setattr(
        Unfinished,
        "load",
        lambda self, device: (lambda state: (loaded.append(state is not None), state)[1])(load(self, device)),
    )
    train_base.main(seed=0, out=Path("out"))
    base = undisturbed / "artifacts" / "models" / "base" / "seed-0"
    assert loaded == [True]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        path.name: path.read_bytes() for path in base.iterdir()
    }
