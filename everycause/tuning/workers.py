"""Several processes on one study: started, watched, replaced when killed, stopped together."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from everycause.errors import UserError
from everycause.tuning.loop import Closed, bar_of, close_abandoned, more, show
from everycause.tuning.space import Plan

if TYPE_CHECKING:
    import optuna

MOST_REPLACEMENTS = 3
"""For each worker; more deaths than that are no accident."""
POLL_SECONDS = 0.5


def run_workers(
    study: "optuna.Study", plan: Plan, command: list[str], count: int, threads: int, devices: int, closed: Closed
) -> None:
    """Run a command `count` times at once, with `--worker NUMBER`, until the study has all its trials.

    Args:
        study: The study that the workers share.
        plan: What is searched.
        command: Arguments for Python.
        count: Workers.
        threads: CPU threads that they share out among themselves.
        devices: GPUs of this machine; worker k sees the (k mod devices)-th alone.
        closed: Called for the MLflow run of every trial whose worker was found dead.

    Raises:
        UserError: a worker ended with an error of its own (it has said which), or workers are killed again and again.
    """

    def started(number: int) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": str(max(1, threads // count))}
        if devices > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(number % devices)
        return subprocess.Popen([sys.executable, *command, "--worker", str(number)], env=environment)

    team = {number: started(number) for number in range(count)}
    try:
        with bar_of(study, plan) as bar:
            _watch(team, started, lambda: more(study, plan, closed), lambda: show(bar, study, plan))
    finally:
        for process in team.values():
            process.terminate()  # a worker that is told to stop gives its trial back
        for process in team.values():
            process.wait()
        close_abandoned(study, plan, closed)


def _watch(
    team: "dict[int, subprocess.Popen[bytes]]",
    started: "Callable[[int], subprocess.Popen[bytes]]",
    needed: Callable[[], bool],
    tick: Callable[[], None],
) -> None:
    """Wait for all workers; one that was killed is replaced while there is work."""
    replacements = MOST_REPLACEMENTS * len(team)
    count = len(team)
    while True:
        tick()
        for number, process in list(team.items()):
            code = process.poll()
            if code is None:
                continue
            del team[number]
            if code > 0:
                raise UserError(
                    f"worker {number} ended with exit code {code}; what it said stands above, and its trial is queued again"
                )
            if code < 0:
                replacements -= 1
            if replacements < 0:
                raise UserError(
                    f"workers were killed {MOST_REPLACEMENTS * count + 1} times (the last by signal {-code}): is there memory for {count} of them?"
                )
        if not team and not needed():
            return
        for number in range(count):
            if number not in team and needed():
                team[number] = started(number)
        time.sleep(POLL_SECONDS)
