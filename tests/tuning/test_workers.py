"""Real processes on real storages: what happens when they share a study, stop, and are killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import psutil
import pytest

from everycause.processes import is_dead, this_process
from everycause.tuning.storages import open_storage
from everycause.tuning.study import given_up
from everycause.tuning.workers import visible_devices
from tests.conftest import ROOT
from tests.tuning.toy import PRESENT, value_of

PATIENCE = 600
"""Seconds after which a process hangs, however busy the machine is."""


def toy(address: str, folder: Path, trials: int, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.tuning.toy", address, str(folder), str(trials), *more]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def done(process: "subprocess.Popen[str]", code: int = 0) -> str:
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == code, said
    return said


def study_of(address: str) -> optuna.Study:
    return optuna.load_study(study_name="toy", storage=open_storage(address, lambda *_: None))


def waits(file: Path) -> str:
    for _ in range(20 * PATIENCE):
        if file.is_file() and (text := file.read_text()):
            return text
        time.sleep(0.05)
    raise AssertionError(f"{file} did not appear")


def check(address: str, folder: Path, trials: int) -> list[optuna.trial.FrozenTrial]:
    """Nothing runs, nothing waits, as many are complete as were asked for, each measured once; the complete ones."""
    everything = study_of(address).trials
    states = Counter(trial.state.name for trial in everything)
    assert states["RUNNING"] == states["WAITING"] == 0 and states["COMPLETE"] == trials, states
    complete = [trial for trial in everything if trial.state.name == "COMPLETE"]
    measured = [json.loads(line) for line in (folder / "measured").read_text().splitlines()]
    assert sorted(number for number, _ in measured) == [trial.number for trial in complete]
    assert [value_of(values) for _, values in sorted(measured, key=lambda one: one[0])] == pytest.approx(
        [trial.value for trial in complete]
    )
    return complete


def test_two_workers_share_a_study_that_goes_on_with_more_trials(address: str, tmp_path: Path) -> None:
    done(toy(address, tmp_path, 6, "--workers", "2", "--together", "2"))
    first = check(address, tmp_path, 6)
    assert [first[0].params, first[1].params] == [PRESENT, PRESENT | {"a.x": 0.25}]
    assert len({trial.user_attrs["worker"]["pid"] for trial in first}) == 2
    assert len({str(trial.params) for trial in first}) == 6
    done(toy(address, tmp_path, 9, "--workers", "2"))
    again = check(address, tmp_path, 9)
    assert [trial.params for trial in again[:6]] == [trial.params for trial in first]
    done(toy(address, tmp_path, 9))
    assert len(check(address, tmp_path, 9)) == 9


def test_a_worker_killed_in_a_trial_is_replaced_and_its_trial_run_again(address: str, tmp_path: Path) -> None:
    (tmp_path / "hang").touch()
    sweep = toy(address, tmp_path, 6, "--workers", "2")
    pid, number = map(int, waits(tmp_path / "hanging").split())
    os.kill(pid, signal.SIGKILL)
    done(sweep)
    check(address, tmp_path, 6)
    killed = study_of(address).trials[number]
    (again,) = (trial for trial in study_of(address).trials if trial.user_attrs.get("retries") == number)
    assert killed.state.name == "FAIL" and again.state.name == "COMPLETE" and again.params == killed.params
    assert (tmp_path / "closed").read_text() == f"run-{number}\n"


def test_a_killed_sweep_is_taken_up_by_the_next_one(address: str, tmp_path: Path) -> None:
    (tmp_path / "hang").touch()
    sweep = toy(address, tmp_path, 4)
    _, number = map(int, waits(tmp_path / "hanging").split())
    sweep.kill()
    sweep.communicate()
    assert study_of(address).trials[number].state.name == "RUNNING"
    done(toy(address, tmp_path, 4))
    assert PRESENT in [trial.params for trial in check(address, tmp_path, 4)]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_is_told_to_stop_leaves_nothing_behind(tmp_path: Path, stop: signal.Signals) -> None:
    address = str(tmp_path / "journal.log")
    (tmp_path / "hang").touch()
    sweep = toy(address, tmp_path, 3, "--workers", "2", "--seconds", "0.3")
    pid, number = map(int, waits(tmp_path / "hanging").split())
    sweep.send_signal(stop)
    sweep.communicate(timeout=PATIENCE)
    for _ in range(20 * PATIENCE):
        if not psutil.pid_exists(pid):
            break
        time.sleep(0.05)
    assert not psutil.pid_exists(pid)
    done(toy(address, tmp_path, 3))
    check(address, tmp_path, 3)
    assert [trial.user_attrs["retries"] for trial in study_of(address).trials if "retries" in trial.user_attrs].count(
        number
    ) == 1


@pytest.mark.parametrize("address", ["sqlite", "postgresql"], indirect=True)
def test_a_trial_of_another_machine_that_died_is_found_by_its_heartbeat(address: str, tmp_path: Path) -> None:
    (tmp_path / "hang").touch()
    sweep = toy(address, tmp_path, 2, "--host", "elsewhere", "--heartbeat", "1")
    pid, number = map(int, waits(tmp_path / "hanging").split())
    os.kill(pid, signal.SIGKILL)
    sweep.communicate()
    time.sleep(4.5)
    done(toy(address, tmp_path, 2, "--heartbeat", "1"))
    check(address, tmp_path, 2)
    assert study_of(address).trials[number].state.name == "FAIL"


def test_workers_killed_at_random_moments_lose_nothing_and_run_nothing_twice(tmp_path: Path) -> None:
    address, draw = str(tmp_path / "journal.log"), random.Random(0)
    sweep = toy(address, tmp_path, 30, "--workers", "3", "--seconds", "0.2")
    waits(tmp_path / "measured")
    for _ in range(4):
        time.sleep(draw.uniform(0.2, 0.9))
        workers = [
            child
            for child in psutil.Process(sweep.pid).children(recursive=True)
            if child.status() != psutil.STATUS_ZOMBIE
        ]
        if workers:
            draw.choice(workers).kill()
    done(sweep)
    everything = study_of(address).trials
    counts = Counter(trial.state.name for trial in everything)
    ended = counts["COMPLETE"] + sum(given_up(trial) for trial in everything)  # values that were killed three times
    assert ended == 30 and counts["RUNNING"] == counts["WAITING"] == 0, counts
    retried = [trial.user_attrs["retries"] for trial in everything if "retries" in trial.user_attrs]
    assert len(retried) == len(set(retried))


def test_values_that_end_every_worker_are_given_up_in_words(tmp_path: Path) -> None:
    address = str(tmp_path / "journal.log")
    for _ in range(3):  # the present values, again and again
        (tmp_path / "hang").touch()
        (tmp_path / "hanging").unlink(missing_ok=True)
        sweep = toy(address, tmp_path, 1)
        waits(tmp_path / "hanging")
        sweep.kill()
        sweep.communicate()
    done(toy(address, tmp_path, 2))  # they are given up, and others are tried
    assert [trial.state.name for trial in study_of(address).trials if trial.params == PRESENT] == ["FAIL"] * 3
    tried = [json.loads(line)[1] for line in (tmp_path / "measured").read_text().splitlines()]
    assert len(tried) == 1 and tried[0] != PRESENT


def test_a_worker_with_an_error_of_its_own_stops_the_sweep_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "measured").mkdir()
    said = done(toy(str(tmp_path / "journal.log"), tmp_path, 4, "--workers", "2"), code=1)
    assert "ended with exit code 1" in said and said.rstrip().splitlines()[-1].startswith("error: worker")


@pytest.mark.parametrize(
    ("listed", "count", "devices"),
    [
        (None, 3, ["0", "1", "2"]),
        ("4,5", 2, ["4", "5"]),
        ("GPU-a, GPU-b", 2, ["GPU-a", "GPU-b"]),
        ("4,5,nonsense", 2, ["4", "5"]),
        ("", 0, []),
    ],
)
def test_workers_share_the_gpus_that_the_user_listed(
    monkeypatch: pytest.MonkeyPatch, listed: str | None, count: int, devices: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert visible_devices(count) == devices


def test_a_process_is_dead_only_where_it_can_be_known() -> None:
    me = this_process()
    assert not is_dead(me)
    with subprocess.Popen([sys.executable, "-c", "pass"]) as ended:
        ended.wait()
    gone = me | {"pid": ended.pid, "started": me["started"] + 100}
    assert is_dead(gone) and is_dead(me | {"started": me["started"] - 100})  # the id is another process's now
    for elsewhere in ({"host": "other"}, {"machine": "other"}, {"namespace": "pid:[1]"}):
        assert not is_dead(gone | elsewhere)


@pytest.mark.parametrize(("namespace", "dead"), [("pid:[4026531836]", True), ("", True), ("pid:[4026599999]", False)])
def test_a_reboot_ends_every_process_but_those_of_a_container_of_the_same_name(
    monkeypatch: pytest.MonkeyPatch, namespace: str, dead: bool
) -> None:
    here = {"host": "a", "machine": "m", "boot": "second", "namespace": namespace}
    monkeypatch.setattr("everycause.processes._here", lambda: here)
    assert is_dead({**here, "boot": "first", "pid": os.getpid(), "started": 0.0}) == dead
