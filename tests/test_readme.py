"""What README.md and the pages of docs/ say exists, exists; README's Python runs; its table is the generated one."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from everycause.params import validated
from stages.readme import BEGIN, END
from tests.imports import ROOT

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))
MOST_WORDS = 1200


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The commands of a page's shell blocks, lines that end in a backslash joined."""
    lines = [line for block in blocks(page.read_text(), "sh") for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


COMMANDS = {" ".join(command): command for page in PAGES for command in commands(page)}


def test_the_readme_is_short_and_has_the_two_commands() -> None:
    assert len(README.split()) <= MOST_WORDS
    assert ["make", "repro"] in commands(ROOT / "README.md") and ["make", "test"] in commands(ROOT / "README.md")


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_can_be_run(command: list[str]) -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    while "=" in command[0] and not command[0].startswith("-"):  # variables of the environment before the command
        command = command[1:]
    match command:
        case ["make", "ablation", name, *_]:
            grids = yaml.safe_load((ROOT / "params.yaml").read_text())["tuning"]["ablations"]
            assert name.removeprefix("name=") in grids
        case ["make", target, *settings]:
            names = [setting.split("=")[0] for setting in settings]
            assert target in TARGETS
            assert all(re.search(rf"^{name} \?= ", MAKEFILE, flags=re.MULTILINE) for name in names)
        case ["dvc", "repro", *names]:
            assert {name.split("@")[0] for name in names if not name.startswith("-")} <= set(stages)
        case ["dvc", "exp", "run", *options]:
            raw = yaml.safe_load((ROOT / "params.yaml").read_text())
            for flag, change in zip(options[::2], options[1::2], strict=True):
                path, value = change.split("=", 1)
                *parents, last = path.split(".")
                level = raw
                for key in parents:
                    level = level[key]
                assert flag == "-S" and last in level
                level[last] = yaml.safe_load(value)
            validated(raw, "README.md")
        case ["cp", source, "params.yaml", *rest]:
            assert (ROOT / source).is_file() and (not rest or rest[0] == "&&")
        case ["python", "-m", module, *_]:
            path = ROOT.joinpath(*module.split("."))
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
        case ["git" | "cd" | "pip" | "source" | "sbatch" | "createdb", *_]:
            pass
        case ["dvc", "exp" | "metrics" | "plots" | "params" | "dag" | "status" | "stage", *_]:
            pass
        case _:
            pytest.fail(f"a command of a kind that this test does not know: {command}")


@pytest.mark.parametrize("number", range(len(blocks(README, "python"))))
def test_the_python_of_the_readme_runs(number: int, tmp_path: Path) -> None:
    code = blocks(README, "python")[number]
    prepared = (
        "from skimage import data\nfrom PIL import Image\nImage.fromarray(data.astronaut()).save('photo.jpg')\n" + code
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", prepared], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_picture_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http", "#", "mailto:")):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name}: {target}"


def test_the_table_is_the_generated_one() -> None:
    shown = README.split(BEGIN)[1].split(END)[0].strip()
    assert shown == (ROOT / "reports" / "study" / "readme_table.md").read_text().strip()
