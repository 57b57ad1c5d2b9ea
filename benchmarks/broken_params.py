"""Break params.yaml in many random ways: the first stage must answer each in one sentence, or it must really run.

`python -m benchmarks.broken_params` makes 2,000 broken files from a seed and checks each as `dvc repro` does. What
is accepted then goes through every stage of dvc.yaml on toy data (`--run` of them), until it ends or its time is up.
"""

import argparse
import collections
import contextlib
import copy
import importlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
import yaml

from everycause.errors import UserError
from stages import check_inputs

ROOT = Path(__file__).parents[1]
NUMBERS: list[Any] = [
    float("nan"), float("inf"), -float("inf"), -1, 0, 1, 2, 37, 5000, 10**12, 10**400, 2**32, 2**32 - 1, 0.5, 1e-300,
    1e300, -0.5, "1e-4", "six", "", None, [], {}, True, [1, 1], [[1]],
]  # fmt: skip
TEXTS: list[Any] = [
    "", " ", "nonsense", "a\nb", "\0", "a" * 5000, "../..", "/", "a/" * 200, "$(touch F)", "α", "\ud800", 3, 0.5, None,
    [], ["base"], {}, False,
]  # fmt: skip
LISTS: list[Any] = [
    [], None, "base", 3, ["nonsense"], [None], [[]], [0, 0], ["base", "base"], ["all", "all"], [1e300], [-1], [{}],
    ["continued", "continued"], list(range(2000)), {},
]  # fmt: skip
SECTIONS: list[Any] = [None, [], "text", 3, {}, {"surprise": 1}, {1: 2}]
LONGEST = 1000
"""Characters of a sentence."""
GIB = 2**30


class Broken(NamedTuple):
    """One broken file."""

    what: str
    """What was changed."""
    text: bytes


def toy() -> dict[str, Any]:
    """Params that take every stage through in seconds."""
    raw = yaml.safe_load((ROOT / "profiles" / "smoke.yaml").read_text())
    raw["tracking"]["system_metrics_seconds"] = 0.0
    raw["run"] |= {"device": "cpu", "threads": 1}
    raw |= {"rows": ["continued", "masks_rounds", "joint"], "evaluated": ["base", "continued", "joint"]}
    raw["data"]["codebirds"] |= {"train": 96, "validation": 32, "test": 32}
    raw["training"]["epochs"] = raw["filters"]["heads"]["epochs"] = raw["retraining"]["epochs"] = 2
    raw["filters"]["confidence_threshold"] = raw["masks"]["confidence"] = 0.0
    raw["masks"]["images"] = raw["rounds"]["images"] = raw["faithfulness"]["images"] = 8
    raw["evaluation"] |= {"corruptions": ["fog"], "severities": [1]}
    return raw


def broken(count: int, seed: int) -> Iterator[Broken]:
    """That many broken files; the same ones for the same seed."""
    chance = random.Random(seed)
    for _ in range(count):
        raw = toy()
        if chance.random() < 0.12:
            yield as_text(raw, chance)
            continue
        paths = [(), *containers(raw)]
        path = chance.choice(paths)
        level = raw
        for key in path:
            level = level[key]
        key = chance.choice(list(level))
        name = ".".join([*path, key])
        draw = chance.random()
        if draw < 0.06:
            del level[key]
            yield written(f"without {name}", raw)
        elif draw < 0.12:
            level[key + chance.choice("sx ")] = level.pop(key)
            yield written(f"misspelt {name}", raw)
        else:
            old = level[key]
            known = {dict: SECTIONS, list: LISTS, str: TEXTS, bool: [*TEXTS, 1, "yes"]}
            level[key] = copy.deepcopy(chance.choice(known.get(type(old), NUMBERS)))
            yield written(f"{name}: {short(level[key])}", raw)


def containers(level: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all sections, inner ones too."""
    for key, value in level.items():
        if isinstance(value, dict):
            yield (*before, key)
            yield from containers(value, (*before, key))


def written(what: str, raw: dict[str, Any]) -> Broken:
    """A file with other values."""
    return Broken(what, yaml.safe_dump(raw, allow_unicode=False).encode())


def as_text(raw: dict[str, Any], chance: random.Random) -> Broken:
    """A file whose text is broken."""
    text = yaml.safe_dump(raw)
    lines = text.splitlines(keepends=True)
    line, cut = chance.randrange(len(lines)), chance.randrange(len(text))
    kinds = {
        "a line given twice": "".join([*lines[: line + 1], lines[line], *lines[line + 1 :]]),
        "cut off": text[:cut],
        "a tab": text[:cut] + "\t" + text[cut:],
        "a bracket": text[:cut] + "[" + text[cut:],
        "a colon": text[:cut] + ": " + text[cut:],
        "line ends of Windows": text.replace("\n", "\r\n"),
        "a byte order mark": "\ufeff" + text,
        "an alias of itself": text + "more: &more {more: *more}\n",
        "an unknown tag": text.replace("seeds:", "seeds: !!python/name:os.system", 1),
        "a wrong date": text + "when: 2020-13-45\n",
        "a large number": text.replace("threads: 1", "threads: " + "9" * 5000),
        "a key that is a list": text + "? [a, b]\n: 1\n",
        "nested deeply": text + "deep: " + "[" * 3000 + "]" * 3000 + "\n",
        "another document": text + "---\n" + text,
        "no number": text.replace("threads: 1", "threads: !!int six"),
        "no boolean": text.replace("threads: 1", "threads: !!bool six"),
        "no date": text.replace("threads: 1", "threads: !!timestamp six"),
    }
    what = chance.choice([*kinds, "UTF-16", "Latin-1", "zeros"])
    coded = {"UTF-16": text.encode("utf-16"), "Latin-1": text.encode() + b"# caf\xe9\n", "zeros": bytes(100)}
    return Broken(what, coded[what] if what in coded else kinds[what].encode())


class Verdict(NamedTuple):
    """What became of one broken file."""

    kind: str
    """refused | accepted | ran | still running | refused late | fault."""
    said: str


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise TimeoutError if the block takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def checked(seconds: int = 60) -> Verdict:
    """What the first stage says of the params.yaml in the current folder."""
    try:
        with within(seconds), contextlib.redirect_stderr(io.StringIO()):
            check_inputs.main(out=Path("artifacts/inputs"))
    except UserError as error:
        said = str(error)
        left = [str(path) for path in Path().rglob("*") if path.name != "params.yaml" and ".cache" not in path.parts]
        good = said.isprintable() and len(said) <= LONGEST and not any(Path(one).is_file() for one in left)
        return Verdict("refused" if good else "fault", said)
    except (Exception, TimeoutError):
        return Verdict("fault", traceback.format_exc())
    return Verdict("accepted", "")


def stages_of(params: dict[str, Any]) -> Iterator[list[str]]:
    """The command lines of dvc.yaml after the first stage, for the seeds and rows of params."""
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        lists = {key: value.strip("${}").split(".") for key, value in stage.get("matrix", {}).items()}
        values = {key: params[path[0]] if len(path) == 1 else params[path[0]][path[1]] for key, path in lists.items()}
        for items in product(*values.values()):
            command = stage["cmd"]
            for key, item in zip(values, items, strict=True):
                command = command.replace(f"${{item.{key}}}", str(item))
            if name != "check_inputs":
                yield command.split()[2:]


def tried(seconds: int) -> Verdict:
    """What becomes of an accepted params.yaml in the stages after the first."""
    name = ""
    try:
        with within(seconds), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            for name, *arguments in stages_of(yaml.safe_load(Path("params.yaml").read_text())):
                tyro.cli(importlib.import_module(name).main, args=arguments)
    except TimeoutError:
        return Verdict("still running", name)
    except UserError as error:
        return Verdict("refused late" if str(error).isprintable() else "fault", f"{name}: {error}")
    except (Exception, SystemExit):
        return Verdict("fault", f"{name}: {traceback.format_exc()}")
    return Verdict("ran", "")


def short(value: Any) -> str:
    """A value in few characters."""
    text = repr(value)
    return text if len(text) < 60 else text[:59] + "…"


def verdicts(count: int, seed: int, run: int, seconds: int) -> Iterator[tuple[Broken, Verdict]]:
    """Every broken file with what became of it. Up to `run` of the accepted ones go through the stages."""
    seen: set[bytes] = set()
    before, folder = Path.cwd(), Path(tempfile.mkdtemp(prefix="broken-params-"))
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    try:
        for number, one in enumerate(broken(count, seed)):
            place = folder / str(number)
            place.mkdir()
            os.chdir(place)
            Path("params.yaml").write_bytes(one.text)
            verdict = checked()
            if verdict.kind == "accepted" and len(seen) < run and one.text not in seen:
                seen.add(one.text)
                verdict = tried(seconds)
            yield one, verdict
            shutil.rmtree(place)
    finally:
        os.chdir(before)
        shutil.rmtree(folder)


def main() -> None:
    """Break, check, run, and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="broken files")
    parser.add_argument("--seed", type=int, default=0, help="seed of what is broken")
    parser.add_argument("--run", type=int, default=20, help="accepted files that go through every stage")
    parser.add_argument("--seconds", type=int, default=60, help="the most time for one of these")
    parser.add_argument("--all", action="store_true", help="a line for every file, not for faults alone")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (12 * GIB, 12 * GIB))  # a mistake must not take the machine along
    torch.set_num_threads(1)
    counts: collections.Counter[str] = collections.Counter()
    for one, verdict in verdicts(arguments.count, arguments.seed, arguments.run, arguments.seconds):
        counts[verdict.kind] += 1
        if arguments.all or verdict.kind in ("fault", "refused late"):
            sys.stdout.write(f"{verdict.kind} | {one.what} | {verdict.said}\n")
            sys.stdout.flush()
    sys.stdout.write(json.dumps(dict(counts)) + "\n")
    sys.exit(1 if counts["fault"] else 0)


if __name__ == "__main__":
    main()
