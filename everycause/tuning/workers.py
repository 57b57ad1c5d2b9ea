"""Several worker processes on one study: started, watched, replaced when killed, stopped together."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from everycause.errors import UserError
from everycause.tuning.loop import POLL_SECONDS, Closed, bar_of, close_abandoned, more, show
from everycause.tuning.space import Plan

if TYPE_CHECKING:
    import optuna

MOST_REPLACEMENTS = 3
"""Replacements for each worker; more deaths than that are no accident."""


def visible_devices(count: int) -> list[str]:
    """Names of the GPUs that this process may use: those that the user or a queue listed, or all.

    Args:
        count: GPUs that torch sees. CUDA stops reading a list at the first name that it does not know.
    """
    listed = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (listed or [str(number) for number in range(count)])[:count]


def run_workers(
    study: "optuna.Study", plan: Plan, command: list[str], count: int, threads: int, devices: list[str], closed: Closed
) -> None:
    """Run a command `count` times at once, with `--worker NUMBER`, until the study has all its trials.

    Args:
        study: The study that the workers share.
        plan: What is searched.
        command: Arguments for Python.
        count: Workers.
        threads: CPU threads that they share out among themselves.
        devices: Names of the GPUs, as CUDA_VISIBLE_DEVICES takes them; worker k sees the k-th alone, in turn.
        closed: Called for the MLflow run of every trial whose worker was found dead.

    Raises:
        UserError: a worker ended with an error of its own (it has said which), or workers are killed again and again.
    """

    def started(number: int) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": str(max(1, threads // count))}
        if len(devices) > 1:
            environment["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
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
                    f"worker {number} ended with exit code {code}; what it said stands above, "
                    "and its trial is queued again"
                )
            if code < 0:
                replacements -= 1
            if replacements < 0:
                raise UserError(
                    f"workers were killed {MOST_REPLACEMENTS * count + 1} times (the last by signal {-code}): "
                    f"is there memory for {count} of them?"
                )
        if not team and not needed():
            return
        for number in range(count):
            if number not in team and needed():
                team[number] = started(number)
        time.sleep(POLL_SECONDS)
