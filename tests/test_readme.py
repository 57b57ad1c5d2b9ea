"""What README.md says exists, exists."""

import re
import shlex

import pytest
import yaml

from everycause.params import validated
from stages.readme import BEGIN, END
from tests.imports import ROOT

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = [shlex.split(line, comments=True) for block in BLOCKS for line in block.splitlines() if line.strip()]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, flags=re.MULTILINE))


def test_there_are_commands() -> None:
    assert ["make", "repro"] in COMMANDS and ["make", "test"] in COMMANDS


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_can_be_run(command: list[str]) -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    match command:
        case ["make", "ablation", name]:
            grids = yaml.safe_load((ROOT / "params.yaml").read_text())["tuning"]["ablations"]
            assert name.removeprefix("name=") in grids
        case ["make", target, *settings]:
            assert target in TARGETS and all(
                re.search(rf"^{one.split('=')[0]} \?= ", MAKEFILE, flags=re.MULTILINE) for one in settings
            )
        case ["dvc", "repro", *names]:
            assert set(names) <= set(stages)
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
        case ["dvc", "exp", "show"]:
            pass
        case ["cp", source, "params.yaml"]:
            assert (ROOT / source).is_file()
        case _:
            pytest.fail(f"a command of a kind that this test does not know: {command}")


def test_the_tree_names_every_file_of_the_package_once() -> None:
    tree = TEXT.split("## The tree")[1]
    for path in (ROOT / "everycause").rglob("*.py"):
        if path.name != "__init__.py":
            assert len(re.findall(rf"\b{re.escape(path.name)} ", tree)) == 1, path
    for name in re.findall(r"[├└]── ([a-z_]+\.py)", tree):
        assert list((ROOT / "everycause").rglob(name)), name


def test_every_link_and_picture_is_there() -> None:
    for target in re.findall(r"\]\(([^)h][^)]*)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_the_table_is_the_generated_one() -> None:
    shown = TEXT.split(BEGIN)[1].split(END)[0].strip()
    assert shown == (ROOT / "reports" / "results" / "table.md").read_text().strip()
