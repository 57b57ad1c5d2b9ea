"""A sweep without any training, for tests of real processes.

Usage: `python -m tests.tuning.toy STORAGE FOLDER TRIALS [--workers N] [--worker K]`. Every trial that is measured to
its end leaves a line in FOLDER/measured; where FOLDER/hang exists, a trial writes FOLDER/hanging and waits for its end.
"""

import argparse
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from everycause.tuning.loop import RunningTrial, optimize, requeue
from everycause.tuning.space import Plan, Range, Values, starts
from everycause.tuning.storages import open_storage
from everycause.tuning.study import open_study
from everycause.tuning.workers import run_workers

PRESENT = {"a.x": 0.5, "a.kind": "round"}
PARAMETERS = {"a.x": Range(low=0.0, high=1.0, log=False, published=0.25), "a.kind": Values(values=["round", "square"])}


def plan_of(trials: int) -> Plan:
    return Plan("toy", "joint", ["validation accuracy"], trials, [0], "tpe", "none", 0, PARAMETERS, grid=False)


def value_of(values: dict) -> float:
    return 1 - abs(values["a.x"] - 0.7) - 0.1 * (values["a.kind"] == "square")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("storage")
    parser.add_argument("folder", type=Path)
    parser.add_argument("trials", type=int)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--worker", type=int)
    parser.add_argument("--seconds", type=float, default=0.05)
    parser.add_argument("--together", type=int, default=1, help="workers that must each have a trial before any ends")
    parser.add_argument("--host")
    parser.add_argument("--heartbeat", type=int, default=20)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell would have it ignored
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # as everycause.tracking does
    folder, plan = arguments.folder, plan_of(arguments.trials)
    if arguments.host:
        socket.gethostname = lambda: arguments.host  # of another machine

    def closed(run: str) -> None:
        with (folder / "closed").open("a") as file:
            file.write(run + "\n")

    def measures(running: RunningTrial) -> dict[str, float]:
        running.has_run(f"run-{running.number}")
        if (folder / "hang").exists():
            (folder / "hang").unlink(missing_ok=True)
            (folder / "hanging").write_text(f"{os.getpid()} {running.number}")
            time.sleep(600)
        (folder / f"worker-{os.getpid()}").touch()
        while len(list(folder.glob("worker-*"))) < arguments.together:
            time.sleep(0.05)
        time.sleep(arguments.seconds)
        with (folder / "measured").open("a") as file:
            file.write(json.dumps([running.number, running.values]) + "\n")
        return {"validation accuracy": value_of(running.values)}

    storage = open_storage(
        arguments.storage, lambda study, trial: requeue(study, plan, trial, closed), heartbeat=arguments.heartbeat
    )
    study = open_study(storage, plan, {"data": "d"}, starts(plan, PRESENT), folder / "lock")
    if arguments.worker is None and arguments.workers > 1:
        command = [
            "-m",
            "tests.tuning.toy",
            arguments.storage,
            str(folder),
            str(arguments.trials),
            "--seconds",
            str(arguments.seconds),
            "--together",
            str(arguments.together),
        ]
        run_workers(study, plan, command, arguments.workers, 2, [], closed)
    else:
        optimize(study, plan, PRESENT, measures, 1, closed, arguments.worker)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
