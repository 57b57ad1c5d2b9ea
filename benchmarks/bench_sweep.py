"""Sweeps with the default params: what a trial takes, what Optuna and MLflow add to it, what a second worker gains.

This benchmark alone imports MLflow and Optuna: they are what it measures.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import torch
import yaml

from everycause.params import validated
from everycause.training.fit import Epoch
from everycause.tuning import trial as sweep_module
from everycause.tuning.loop import optimize
from everycause.tuning.space import starts
from everycause.tuning.storages import open_storage
from everycause.tuning.study import open_study, watched_steps
from everycause.tuning.trial import Sweep, Trial, prepared, trial

ROOT = Path(__file__).parents[1]
EMPTY_TRIALS = 12
SHORT = 2
"""Epochs of the trials that workers share out."""


def prepared_sweep(raw: dict, artifacts: Path) -> Sweep:
    """The default sweep on the artifacts at hand; what is missing is made here."""
    params = validated(raw, "params.yaml")
    torch.set_num_threads(raw["run"]["threads"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return prepared(params, params.tuning.plan(), artifacts, Path("upstream"), raw["run"]["threads"], device)


def empty_trial_seconds(sweep: Sweep, epochs: list[Epoch], measured: dict[str, float]) -> float:
    """A trial without its training and judging: what the study and the record of as many epochs cost."""
    plan = sweep.plan._replace(study="empty", trials=EMPTY_TRIALS)
    sweep = replace(sweep, plan=plan)
    study = open_study(
        open_storage("empty.log", lambda *_: None), plan, sweep.subject, starts(plan, sweep.present), Path("lock")
    )

    def instant(*_: object) -> Trial:
        return Trial(None, {}, iter(epochs))  # type: ignore[arg-type]

    times = [time.perf_counter()]
    with (
        patch.object(sweep_module, "trial", instant),
        patch.object(type(sweep.judge), "measures", lambda *_: measured),
        patch.object(type(sweep.judge), "quick_value", lambda *_: 0.5),
    ):

        def clocked(asked: object) -> dict[str, float] | None:
            found = sweep.measures(asked, None)  # type: ignore[arg-type]
            times.append(time.perf_counter())
            return found

        optimize(study, plan, sweep.present, clocked, sweep.steps, lambda _: None)
    return statistics.median(after - before for before, after in pairwise(times[2:]))


def trials_per_second(raw: dict, artifacts: Path, workers: int, trials: int) -> float:
    """The pace of real worker processes once each has finished its first trial."""
    folder = Path(f"workers-{workers}")
    folder.mkdir()
    raw = {**raw, "run": {**raw["run"], "threads": workers}, "retraining": {**raw["retraining"], "epochs": SHORT}}
    raw["tuning"] = {**raw["tuning"], "trials": trials, "pruner": "none", "sampler": "random"}
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder.resolve() / 'mlflow.db'}",
    }
    command = [
        sys.executable,
        "-m",
        "stages.tune",
        "--artifacts",
        str(artifacts),
        "--out",
        "out",
        "--workers",
        str(workers),
    ]
    subprocess.run(command, cwd=folder, env=environment, check=True, stderr=subprocess.DEVNULL)
    import optuna

    study = optuna.load_study(
        study_name=raw["tuning"]["study"], storage=open_storage(str(folder / "tuning" / "journal.log"), lambda *_: None)
    )
    ends: dict[int, list[datetime]] = defaultdict(list)
    for one in study.trials:
        if one.datetime_complete is not None and "worker" in one.user_attrs:
            ends[one.user_attrs["worker"]["pid"]].append(one.datetime_complete)
    assert len(ends) == workers and min(map(len, ends.values())) > 1
    return sum((len(times) - 1) / (max(times) - min(times)).total_seconds() for times in ends.values())


def measures() -> Iterator[tuple[str, float]]:
    """Seconds of a whole trial, the share of Optuna and MLflow, the speed of two workers with one thread each."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    artifacts = ROOT / "artifacts"
    if not (artifacts / "models" / "base" / "seed-0").is_dir():
        raw["seeds"] = [max(raw["seeds"]) + 1]  # no artifacts are asked for: base and masks are made here
    with (
        tempfile.TemporaryDirectory() as folder,
        chdir(folder),
        patch.dict(os.environ, {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}),
    ):
        sweep = prepared_sweep(raw, artifacts)
        sweep.judge.measures(
            sweep_module.load(sweep.cache.base(sweep.params, 0))
        )  # erasures are rendered once for a whole sweep
        start = time.perf_counter()
        started = trial(sweep.cache, sweep.plan.row, sweep.params, sweep.data, sweep.threads, 0)
        epochs = []
        for epoch in started.epochs:
            epochs.append(epoch)
            if epoch.number in watched_steps(sweep.plan, sweep.steps):
                reached = epoch.measures["validation/accuracy"]
                sweep.judge.quick_value(started.classifier, sweep.plan.objectives[0], reached)
        measured = sweep.judge.measures(started.classifier)
        whole = time.perf_counter() - start
        yield "sweep.trial_seconds", whole
        empty = empty_trial_seconds(sweep, epochs, measured)
        yield "sweep.empty_trial_seconds", empty
        yield "sweep.overhead", empty / whole
        alone = trials_per_second(raw, artifacts, 1, 4)
        yield "sweep.two_worker_speedup", trials_per_second(raw, artifacts, 2, 8) / alone
