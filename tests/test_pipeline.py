"""dvc.yaml declares what the code needs: cache structure is code structure."""

import ast

import pytest
import yaml

from everycause.params import SECTIONS, Matrix
from tests.imports import ROOT, dependencies

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
UNDECLARED = {"tracking"}
"""Sections that a stage may read without rerunning when they change."""


def sections_read(stage: str) -> set[str]:
    """The names that a stage passes to params.read."""
    calls = [
        node
        for node in ast.walk(ast.parse((ROOT / "stages" / f"{stage}.py").read_text()))
        if isinstance(node, ast.Call)
    ]
    (read,) = (call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "read")
    return {argument.value for argument in read.args if isinstance(argument, ast.Constant)}


@pytest.mark.parametrize("stage", STAGES)
def test_declared_dependencies_are_the_import_closure(stage: str) -> None:
    declared = [dependency for dependency in STAGES[stage]["deps"] if dependency.endswith(".py")]
    assert declared == dependencies(stage)
    assert "${data.root}" in STAGES[stage]["deps"]


@pytest.mark.parametrize("stage", STAGES)
def test_declared_params_are_the_sections_that_the_stage_reads(stage: str) -> None:
    assert set(STAGES[stage]["params"]) == sections_read(stage) - UNDECLARED
    assert sections_read(stage) <= set(SECTIONS) | set(Matrix.model_fields)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_a_sentence_a_script_and_cached_outputs(stage: str) -> None:
    content = STAGES[stage]
    assert content["desc"].endswith(".") and content["desc"][0].isupper()
    assert list(content) == [key for key in ("desc", "matrix", "cmd", "deps", "params", "outs") if key in content]
    assert f"python -m stages.{stage} " in content["cmd"]
    cached = [out for out in content["outs"] if isinstance(out, str)]
    assert bool(cached) != (stage == "report")


def test_stages_stand_in_reading_order_and_no_two_write_the_same_place() -> None:
    assert list(STAGES) == [
        "train_base",
        "accumulate_filters",
        "generate_masks",
        "retrain",
        "retrain_rounds",
        "measure_faithfulness",
        "evaluate_ood",
        "detect_misclassifications",
        "report",
    ]
    outs = [out if isinstance(out, str) else next(iter(out)) for content in STAGES.values() for out in content["outs"]]
    assert len(set(outs)) == len(outs)
