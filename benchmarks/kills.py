"""Kills at random moments: does `dvc repro`, started again, end in the bytes of a run that nobody disturbed?

    python -m benchmarks.kills --kills 30

A tiny pipeline with every stage runs in a temporary copy of the repository, in passes. In a pass `dvc repro` is killed
(SIGKILL) and started again, until it is done; then every file of artifacts/ and reports/ is compared. Each kill comes
at a random moment of a random stage, one that is running or still to come: a moment drawn from the whole run would
mostly hit the first stages, with which every start begins. A kill hits `dvc` with the stage that it runs, or `dvc`
alone, or the stage alone. Where `dvc` alone is hit its stage lives on, and `dvc repro` says so and is started again
when that stage has ended. Unfinished states are written as often as they are worth their time, so that kills meet them.

A kill counts as recovered if nothing failed by itself afterwards and its pass ended in the same bytes. MLflow's store
is asked how many runs went on and how many were left open. It prints one line `name: value` per figure. It needs dvc,
and about a minute per kill on one core.
"""

import argparse
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import yaml

from everycause.unfinished import SECONDS

ROOT = Path(__file__).parents[1]
VICTIMS = ("everything", "dvc", "stage")
"""What a kill hits: `dvc` with its stage, `dvc` alone, or the stage alone."""
STILL_WRITING = "another process is still writing"
"""What a stage says while an earlier one, whose `dvc` was killed, lives on."""
LASTING = ("dvc.yaml", ".dvcignore", "params.yaml", "codebirds", "everycause", "stages")
"""What a pass does not begin anew with; everything else is removed."""
POLL_SECONDS = 0.1
HANGING_SECONDS = 1200
"""A run that takes longer than this is a failure."""


class Run(NamedTuple):
    """One `dvc repro`."""

    killed: str
    """What was hit, with the stage that ran; empty if the run ended by itself."""
    status: int
    output: str


def tiny() -> dict:
    """Params of a pipeline in which every stage has something to do: the smoke profile, smaller, with more shards."""
    raw = yaml.safe_load((ROOT / "profiles" / "smoke.yaml").read_text())
    raw["run"]["threads"], raw["tracking"]["system_metrics_seconds"] = 1, 0.0
    raw["rows"], raw["evaluated"] = ["joint", "masks_rounds"], ["base"]
    raw["data"]["codebirds"] |= {"train": 192, "validation": 32, "test": 32}
    raw["training"]["epochs"], raw["filters"]["compared"] = 4, []
    raw["masks"] |= {"images": 48, "shard": 8, "confidence": 0.0}
    raw["rounds"]["images"] = 16
    raw["faithfulness"] |= {"rows": ["base"], "selectors": ["random", "counterfactual"], "images": 2}
    raw["evaluation"] |= {"corruptions": ["jpeg_compression"], "severities": [3]}
    return raw


def copy_into(folder: Path) -> None:
    """A copy of the repository without git, artifacts and caches, with tiny params."""
    for name in LASTING:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder / name)
    (folder / "params.yaml").write_text(yaml.safe_dump(tiny(), sort_keys=False))


def begin_anew(folder: Path) -> None:
    """Remove everything that a pass made."""
    for path in folder.iterdir():
        if path.is_dir() and path.name not in LASTING:
            shutil.rmtree(path)
        elif path.name not in LASTING:
            path.unlink()
    (folder / "reports").mkdir()
    (folder / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
    (folder / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")


def written(folder: Path) -> dict[str, bytes]:
    """Every file of artifacts/ and reports/, locks left out."""
    places = [path for part in ("artifacts", "reports") for path in sorted((folder / part).rglob("*"))]
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in places if path.suffix != ".lock" and path.is_file()
    }


def runs_in(folder: Path) -> Counter[str]:
    """How many runs MLflow's store holds of each status, and how many `went on` after a kill."""
    asked = "select status, count(*) from runs group by status"
    went_on = "select count(*) from tags where key = 'state' and value = 'went on'"
    with closing(sqlite3.connect(folder / "mlflow.db")) as store:
        return Counter({**dict(store.execute(asked).fetchall()), "went on": store.execute(went_on).fetchone()[0]})


def stages_in(folder: Path) -> dict[psutil.Process, str]:
    """The processes of stages that run in this folder, and the name of each one's stage."""
    found = {}
    for process in psutil.process_iter():
        try:
            names = [word.removeprefix("stages.") for word in process.cmdline() if word.startswith("stages.")]
            if names and Path(process.cwd()) == folder:
                found[process] = names[0]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


class Kill(NamedTuple):
    """When a run is killed, and what is hit."""

    stage: str
    """The stage during which it comes."""
    seconds: float
    """How long after this stage was first seen."""
    victim: str
    """One of VICTIMS."""


def repro(folder: Path, kill: Kill | None, durations: dict[str, float] | None = None) -> Run:
    """Run `dvc repro`, and kill it or its stage as `kill` says, unless it has ended.

    Args:
        folder: The copy of the repository.
        kill: The kill; None for a run that nobody disturbs.
        durations: Gets the seconds that each stage was seen, in the order in which they ran.
    """
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "1"}
    environment |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        SECONDS: "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    killed, due, end = "", None, time.monotonic() + HANGING_SECONDS
    with tempfile.TemporaryFile("w+") as output:
        command = [sys.executable, "-m", "dvc", "repro"]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
        while process.poll() is None and not killed:
            running, now = stages_in(folder), time.monotonic()
            if durations is not None:
                for name in running.values():
                    durations[name] = durations.get(name, 0.0) + POLL_SECONDS
            if kill is not None and due is None and kill.stage in running.values():
                due = now + kill.seconds
            if now > end or (due is not None and now >= due and running):
                victim = "everything" if kill is None or now > end else kill.victim
                killed = f"{'hang' if now > end else victim} {next(iter(running.values()), 'dvc')}"
                for one in [*(running if victim != "dvc" else []), *([process] if victim != "stage" else [])]:
                    with suppress(psutil.NoSuchProcess):
                        one.kill()
            time.sleep(POLL_SECONDS)
        process.wait()
        output.seek(0)
        return Run(killed, process.returncode, output.read())


def wait_for_stages(folder: Path) -> None:
    """Wait until stages whose `dvc` was killed have ended."""
    end = time.monotonic() + HANGING_SECONDS
    while stages_in(folder) and time.monotonic() < end:
        time.sleep(0.5)


def figures(kills: int, seed: int) -> Iterator[tuple[str, float]]:
    """Kill until as many kills are done; how many there were of each kind, and how many were recovered."""
    chance, counts, runs, recovered, passes = random.Random(seed), Counter[str](), Counter[str](), 0, 0
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        folder = Path(name).resolve()
        copy_into(folder)
        begin_anew(folder)
        start, durations = time.monotonic(), dict[str, float]()
        whole = repro(folder, None, durations)
        seconds, expected = time.monotonic() - start, written(folder)
        if whole.status or len(expected) < 20:
            sys.exit(f"error: the undisturbed run failed:\n{whole.output}")
        yield "kills.undisturbed_seconds", seconds
        while counts.total() < kills:
            passes += 1
            hit, sound = one_pass(folder, kills - counts.total(), durations, chance)
            same = sound and written(folder) == expected
            counts.update(hit)
            runs.update(runs_in(folder))
            recovered += len(hit) if same else 0
            sys.stderr.write(f"pass {passes}: {', '.join(hit)}: {'the same bytes' if same else 'NOT RECOVERED'}\n")
            if sound and not same:
                found = written(folder)
                differing = [path for path in {*found, *expected} if found.get(path) != expected.get(path)]
                sys.stderr.write(f"differing: {', '.join(sorted(differing))}\n")
    yield "kills.passes", passes
    for victim in VICTIMS:
        yield f"kills.of_{victim}", sum(count for key, count in counts.items() if key.startswith(f"{victim} "))
    for stage in sorted({key.split()[1] for key in counts}):
        yield f"kills.during_{stage}", sum(count for key, count in counts.items() if key.endswith(f" {stage}"))
    yield "kills.runs_that_went_on", runs["went on"]
    yield "kills.runs_closed_as_killed", runs["KILLED"]
    yield "kills.runs_left_open", runs["RUNNING"]
    yield "kills.all", counts.total()
    yield "kills.recovered", recovered


def one_pass(folder: Path, most: int, durations: dict[str, float], chance: random.Random) -> tuple[list[str], bool]:
    """Kill and start again until the pipeline is done.

    Args:
        folder: The copy of the repository.
        most: The most kills.
        durations: How long each stage runs undisturbed, in the order in which they run.
        chance: What draws stages, moments and victims.

    Returns:
        What was hit during which stage, and whether nothing failed by itself.
    """
    begin_anew(folder)
    hit: list[str] = []
    to_come = list(durations)
    while True:
        kill = None
        if len(hit) < most and to_come:
            stage = chance.choice(to_come)
            kill = Kill(stage, chance.uniform(0, durations[stage]), chance.choice(VICTIMS))
        done = repro(folder, kill)
        if done.killed:
            hit.append(done.killed)
            stage = done.killed.split()[1]
            to_come = to_come[to_come.index(stage) :] if stage in to_come else to_come
            sys.stderr.write(f"  killed {done.killed}\n")
        elif done.status == 0:
            return hit, True
        elif STILL_WRITING in done.output:
            wait_for_stages(folder)
            continue
        else:
            sys.stderr.write(done.output)
            wait_for_stages(folder)
            return hit, False
        if done.killed.startswith("hang"):
            return hit, False


def main() -> None:
    """Kill, start again, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    for name, value in figures(chosen.kills, chosen.seed):
        sys.stdout.write(f"{name}: {value:.4g}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
