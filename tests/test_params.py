from pathlib import Path
from typing import Any

import pytest
import yaml

from everycause.params import SECTIONS, Matrix, read, validated
from tests.conftest import ROOT


def changed(raw: dict, path: str, value: Any = None, *, remove: bool = False) -> dict:
    *parents, last = path.split(".")
    level = raw
    for key in parents:
        level = level[key]
    if remove:
        del level[last]
    else:
        level[last] = value
    return raw


@pytest.mark.parametrize(
    "file", [ROOT / "params.yaml", *sorted((ROOT / "profiles").glob("*.yaml"))], ids=lambda file: file.name
)
def test_every_profile_is_valid(file: Path) -> None:
    values = validated(yaml.safe_load(file.read_text()), file.name)
    assert set(yaml.safe_load(file.read_text())) == set(SECTIONS) | set(Matrix.model_fields)
    assert values.data.image_size > 0


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("masks.gird", 4, "the key 'masks.gird' is unknown"),
        ("surprise", 1, "the key 'surprise' is unknown"),
        ("masks.regions", "six", "'masks.regions' is 'six'"),
        ("masks.regions", 1, "'masks.regions' is 1: input should be greater than or equal to 4"),
        ("masks.regions", 4.5, "'masks.regions' is 4.5"),
        ("loss.lambda_mc", "1e-4", "write 1.0e-4"),
        ("loss.lambda_mc", -1.0, "'loss.lambda_mc' is -1.0"),
        ("training.optimizer.learning_rate", 0.0, "'training.optimizer.learning_rate'"),
        ("rows", ["mask"], "did you mean 'masks'"),
        ("evaluated", ["base", "masks_random"], "nor one of rows"),
        ("evaluated", ["joint"], "'base' is missing"),
        ("data.codebirds.order", 3, "at most"),
        ("data.codebirds.dimension", 9, "dimension"),
        ("data.source", "photos", "'data.source' is 'photos'"),
        ("evaluation.corruptions", ["rain"], "'rain' is not a corruption"),
        ("evaluation.severities", [7], "severity 7"),
        ("seeds", [], "'seeds'"),
        ("tuning.parameters", {"masks.regions": {"low": 2.0, "high": 1.0, "log": False}}, "must be below"),
    ],
)
def test_a_wrong_value_is_one_sentence_with_its_dotted_path(raw: dict, path: str, value: Any, message: str) -> None:
    if path == "data.codebirds.order":
        raw["data"]["codebirds"]["length"] = 5
    with pytest.raises(ValueError) as caught:
        validated(changed(raw, path, value), "params.yaml")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["seeds", "masks", "masks.regions", "data.codebirds.seed"])
def test_a_missing_key_is_named(raw: dict, path: str) -> None:
    with pytest.raises(ValueError, match=f"the key '{path}' is missing"):
        validated(changed(raw, path, remove=True), "params.yaml")


def test_sections_are_frozen(raw: dict) -> None:
    with pytest.raises(ValueError, match="frozen"):
        validated(raw, "params.yaml").masks.regions = 3


@pytest.mark.parametrize(
    ("text", "message"), [(None, "does not exist"), ("a: [", "not valid YAML"), ("", "holds no keys")]
)
def test_a_missing_or_broken_file_is_one_sentence(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "params.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read("run", path=path)
