"""dvc.yaml asks for what the stages need, and a stage runs again exactly when what it does or reads has changed."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from everycause.params import SECTIONS, Matrix
from stages import check_inputs
from tests.imports import ROOT, tree_of

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
AFTER_THE_CHECK = [stage for stage in STAGES if stage != "check_inputs"]
UNDECLARED = {"tracking"}
"""Sections that a stage may read without running again when they change."""


def sections_read(stage: str) -> set[str]:
    """The names that a stage passes to params.read."""
    calls = [node for node in ast.walk(tree_of(f"stages.{stage}")) if isinstance(node, ast.Call)]
    (read,) = (call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "read")
    return {argument.value for argument in read.args if isinstance(argument, ast.Constant)}


@pytest.mark.parametrize("stage", AFTER_THE_CHECK)
def test_every_stage_depends_on_its_inputs_and_on_artifacts_alone(stage: str) -> None:
    dependencies = STAGES[stage]["deps"]
    assert dependencies[0] == f"artifacts/inputs/{stage}.json"
    assert all(dependency.startswith("artifacts/") for dependency in dependencies)


def test_inputs_are_written_for_every_stage() -> None:
    assert {*check_inputs.TRAINING, *check_inputs.EVALUATION, "report"} == set(AFTER_THE_CHECK)


@pytest.mark.parametrize("stage", AFTER_THE_CHECK)
def test_every_artifact_that_a_command_reads_is_a_dependency(stage: str) -> None:
    words = STAGES[stage]["cmd"].split()
    outs = [out if isinstance(out, str) else next(iter(out)) for out in STAGES[stage]["outs"]]
    read = {word for word in words if word.startswith("artifacts/")} - set(outs)
    dependencies = STAGES[stage]["deps"]
    assert read <= set(dependencies) and words[words.index("--out") + 1] in outs
    if "--artifacts" not in words:
        assert set(dependencies) - {f"artifacts/inputs/{stage}.json"} <= read


@pytest.mark.parametrize("stage", AFTER_THE_CHECK)
def test_declared_params_are_the_sections_that_the_stage_reads(stage: str) -> None:
    assert set(STAGES[stage]["params"]) == sections_read(stage) - UNDECLARED
    assert sections_read(stage) <= set(SECTIONS) | set(Matrix.model_fields)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_a_sentence_a_script_and_cached_outputs(stage: str) -> None:
    content = STAGES[stage]
    assert content["desc"].endswith(".") and content["desc"][0].isupper()
    order = ("desc", "matrix", "cmd", "always_changed", "deps", "params", "outs")
    assert list(content) == [key for key in order if key in content]
    assert f"python -m stages.{stage} " in content["cmd"]
    (options,) = ({} if isinstance(out, str) else next(iter(out.values())) for out in content["outs"])
    assert options.get("cache", True)


def test_what_dvc_could_not_restore_stands_until_its_stage_replaces_it() -> None:
    options = {stage: next(iter(content["outs"])) for stage, content in STAGES.items()}
    assert options["report"]["reports/run"]["persist"] and options["check_inputs"]["artifacts/inputs"]["persist"]


def test_stages_stand_in_reading_order_and_no_two_write_the_same_place() -> None:
    assert list(STAGES) == [
        "check_inputs",
        "train_base",
        "accumulate_filters",
        "generate_masks",
        "retrain",
        "measure_faithfulness",
        "evaluate_ood",
        "detect_misclassifications",
        "report",
    ]
    outs = [out if isinstance(out, str) else next(iter(out)) for content in STAGES.values() for out in content["outs"]]
    assert len(set(outs)) == len(outs)


def test_dvc_shows_the_rows_of_the_report_and_no_other_metric(tmp_path: Path) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    rows = tmp_path / "reports" / "run" / "rows"
    rows.mkdir(parents=True)
    (rows / "masks.json").write_text('{"test": 0.75, "completeness": 0.5}')
    (rows.parent / "metrics.json").write_text('{"masks": {"accuracy/test": 0.75}}')
    command = [sys.executable, "-m", "dvc", "metrics", "show", "--json"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert json.loads(shown)[""]["data"] == {
        "reports/run/rows/masks.json": {"data": {"test": 0.75, "completeness": 0.5}}
    }


def test_another_template_of_the_page_makes_another_report(tmp_path: Path) -> None:
    template = tmp_path / "page.html.j2"
    template.write_text("another page")
    assert check_inputs.report_code(template) != check_inputs.report_code() == check_inputs.report_code()
