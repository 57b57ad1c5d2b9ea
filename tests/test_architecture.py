"""Who may import whom, and how large things may grow."""

import ast
import tomllib
from pathlib import Path

import pytest

from everycause.params import SECTIONS
from tests.imports import ROOT, closure, imported, path_of

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "everycause").rglob("*.py")
    if path.name != "__init__.py"
)
STAGES = sorted(path.stem for path in (ROOT / "stages").glob("*.py") if path.name != "__init__.py")
LAYERS = (
    "everycause.data",
    "everycause.models",
    "everycause.explanation",
    "everycause.training",
    "everycause.evaluation",
    "everycause.reporting",
)
MAY_SEE_SHIFTS = ("everycause.evaluation.", "everycause.reporting.")
FORBIDDEN_WORDS = {"utils", "helpers", "common", "misc", "manager", "handler", "processor", "v2"}
TIMMS = "get_classifier"
"""A name that timm calls: a network of ours must answer to it."""


def source(module: str) -> str:
    path = path_of(module)
    assert path is not None
    return path.read_text()


def words(name: str) -> set[str]:
    return set(name.replace(".", "_").split("_"))


def libraries(module: str) -> set[str]:
    nodes = list(ast.walk(ast.parse(source(module))))
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {
        name.split(".")[0]
        for name in named | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    }


@pytest.mark.parametrize("module", MODULES)
def test_only_evaluation_and_reporting_touch_shifted_splits(module: str) -> None:
    if not module.startswith(MAY_SEE_SHIFTS):
        assert "everycause.data.shifts" not in imported(module) - {module}


def test_training_explanation_and_sweeps_cannot_reach_a_shifted_split() -> None:
    for stage in (
        "train_base",
        "accumulate_filters",
        "generate_masks",
        "retrain",
        "retrain_rounds",
        "measure_faithfulness",
        "tune",
    ):
        assert "everycause.data.shifts" not in closure(f"stages.{stage}"), stage


def test_only_the_sweep_and_the_rounds_reach_the_erasures_of_validation_images() -> None:
    users = {
        module
        for module in [*MODULES, *(f"stages.{stage}" for stage in STAGES)]
        if "everycause.data.codebirds" in closure(module)
    }
    assert users == {
        "everycause.data.codebirds", "everycause.tuning.trial", "everycause.evaluation.faithfulness", "everycause.tuning.trial", "stages.tune", "stages.retrain_rounds",
    }  # fmt: skip


def test_the_test_split_is_opened_by_shifts_alone() -> None:
    for module in [*MODULES, *(f"stages.{stage}" for stage in STAGES)]:
        if module not in (
            "everycause.data.shifts",
            "everycause.data.images",
            "codebirds.factors",
            "everycause.data.sources",
        ):
            for node in ast.walk(ast.parse(source(module))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
                    "open_split",
                    "folder_split",
                    "cub_split",
                    "imagenet_split",
                    "waterbirds_split",
                ):
                    assert "test" not in [
                        argument.value for argument in node.args if isinstance(argument, ast.Constant)
                    ], module


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_from_later_to_earlier_layers(module: str) -> None:
    level = next((number for number, layer in enumerate(LAYERS) if module.startswith(layer)), None)
    if level is not None:
        for other in imported(module):
            for number, layer in enumerate(LAYERS):
                if other.startswith(layer) and other != layer:
                    assert number <= level, f"{module} imports {other}"


@pytest.mark.parametrize(
    ("library", "door"), [("mlflow", "everycause.tracking"), ("optuna", "everycause.tuning"), ("dvc", None)]
)
def test_each_tool_has_one_door(library: str, door: str | None) -> None:
    users = {module for module in MODULES if library in libraries(module)}
    assert bool(users) == bool(door) and all(user == door or user.startswith(f"{door}.") for user in users)


@pytest.mark.parametrize("layer", LAYERS[:5])
def test_the_mathematics_knows_no_tracker_and_no_tuner(layer: str) -> None:
    for module in MODULES:
        if module.startswith(layer):
            assert not any(
                other.startswith(("everycause.tracking", "everycause.tuning", "everycause.tuning.trial"))
                for other in closure(module)
            ), module


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_stay_small(module: str) -> None:
    text = source(module)
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1
            assert lines <= 40, f"{module}.{node.name} has {lines} lines"
            assert not words(node.name) & FORBIDDEN_WORDS and (
                not node.name.startswith("get_") or node.name == TIMMS
            ), node.name
    assert not words(module) & FORBIDDEN_WORDS


def test_the_package_stays_within_its_budget() -> None:
    assert sum(len(source(module).splitlines()) for module in MODULES) <= 9500


@pytest.mark.parametrize("stage", STAGES)
def test_stages_are_thin(stage: str) -> None:
    assert len(source(f"stages.{stage}").splitlines()) <= 76


@pytest.mark.parametrize("module", MODULES)
def test_the_package_prints_nothing_and_parses_no_arguments(module: str) -> None:
    calls = {getattr(node.func, "id", "") for node in ast.walk(ast.parse(source(module))) if isinstance(node, ast.Call)}
    assert "print" not in calls and not {"argparse", "tyro", "click"} & libraries(module)


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_has_a_docstring(module: str) -> None:
    tree = ast.parse(source(module))
    assert ast.get_docstring(tree), module
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{module}.{node.name}"


def test_every_section_has_an_owner_whose_fields_are_explained() -> None:
    for owner in SECTIONS.values():
        module, name = owner.split(":")
        (node,) = (
            node for node in ast.parse(source(module)).body if isinstance(node, ast.ClassDef) and node.name == name
        )
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and ast.unparse(field.annotation) not in (
                "CodebirdsParams",
                "FolderParams",
                "CubParams",
                "ImageNetParams",
                "WaterbirdsParams",
                "HeadParams",
                "OptimizerParams",
                "AugmentationParams",
            ):
                assert isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant), (
                    f"{owner}.{ast.unparse(field.target)} is not explained"
                )


def test_packages_re_export_nothing() -> None:
    for path in (ROOT / "everycause").rglob("__init__.py"):
        tree = ast.parse(path.read_text())
        assert len(tree.body) == 1 and ast.get_docstring(tree), path


def test_ruff_and_pytest_are_configured_in_one_place() -> None:
    assert {"ruff", "pytest"} <= set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"])
    assert not any((ROOT / name).exists() for name in ("setup.cfg", "ruff.toml", "pytest.ini"))
    assert Path(ROOT / "requirements.txt").is_file()
