from pathlib import Path
from typing import Any

import pytest
import yaml

from everycause.errors import UserError
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
        ("evaluated", ["base", "masks_random"], "neither 'base' nor one of rows"),
        ("evaluated", ["joint"], "'base' is missing"),
        ("data.codebirds.order", 3, "at most"),
        ("data.codebirds.dimension", 9, "dimension"),
        ("data.source", "photos", "'data.source' is 'photos'"),
        ("evaluation.corruptions", ["rain"], "'rain' is not a corruption"),
        ("evaluation.severities", [7], "severity 7"),
        ("seeds", [], "'seeds'"),
        ("seeds", [0, 1, 0], "seeds: 0 is named twice"),
        ("seeds", [-1], "a seed lies between 0 and"),
        ("rows", ["joint", "joint"], "rows: 'joint' is named twice"),
        ("evaluated", ["base", "base"], "evaluated: 'base' is named twice"),
        ("faithfulness.rows", ["oracle_parts"], "faithfulness.rows: 'oracle_parts' is neither 'base' nor one of rows"),
        ("faithfulness.rows", [], "faithfulness.rows is empty: name 'base'"),
        ("masks.batch_size", 10**6, "'masks.batch_size' is 1000000: input should be less than or equal to"),
        ("filters.heads.epochs", 10**9, "'filters.heads.epochs' is 1000000000: input should be less than or equal to"),
        ("filters.heads.learning_rate", 1e9, "'filters.heads.learning_rate' is 1000000000.0"),
        ("loss.lambda_mc", 10**12, "'loss.lambda_mc' is 1000000000000, and every number"),
        ("rounds.growth", 10**400, "'rounds.growth' is too large, and every number"),
        ("tuning.seed", 2**32, "'tuning.seed' is 4294967296: input should be less than or equal to 4294967295"),
        ("evaluation.severities", [1, 3, 1], "evaluation.severities: 1 is named twice"),
        ("faithfulness.selectors", ["random", "random"], "faithfulness.selectors: 'random' is named twice"),
        ("filters.compared", ["singular", "singular"], "filters.compared: 'singular' is named twice"),
        ("training.trainable", ["head", "head"], "training.trainable: 'head' is named twice"),
        ("tuning.seeds", [1, 1], "tuning.seeds: 1 is named twice"),
        ("tuning.seeds", [2**32], "must lie between 0 and 4294967295"),
        ("tuning.study", "../x", "'tuning.study' is '../x'"),
        ("tuning.ablations", {"/": {}}, "tuning.ablations"),
        ("tracking.system_metrics_seconds", 1e-300, "0 (off) or at least 0.1"),
        ("seeds", list(range(2000)), "'seeds' lists 2000 values, and at most 1000 are sensible"),
        ("data.root", "a\0b", "printable"),
        ("tracking.experiment", "two\nlines", "write one line of at most 250 printable characters"),
        ("model.name", "a" * 5000, "write one line of at most 250 printable characters"),
        ("masks", {1: 2}, "masks"),
        ("tuning.parameters", {"loss.lambda_mc": {"low": 0.5, "log": True}}, "lambda_mc.high' is missing"),
        (
            "tuning.parameters",
            {"loss.lambda_mc": {"values": [1.0]}},
            "'tuning.parameters.loss.lambda_mc.values' is [1.0]",
        ),
        ("tracking.system_metrics_seconds", float("inf"), "'tracking.system_metrics_seconds' is inf, and every number"),
        ("training.optimizer.learning_rate", float("nan"), "'training.optimizer.learning_rate' is nan"),
        ("training.augmentation.shift", 10**12, "'training.augmentation.shift' is 1000000000000"),
        ("data.codebirds.train", 10**12, "'data.codebirds.train' is 1000000000000"),
        ("tuning.parameters", {"masks.regions": {"low": 2.0, "high": 1.0, "log": False}}, "must be below"),
    ],
)
def test_a_wrong_value_is_one_sentence_with_its_dotted_path(raw: dict, path: str, value: Any, message: str) -> None:
    if path == "data.codebirds.order":
        raw["data"]["codebirds"]["length"] = 5
    with pytest.raises(UserError) as caught:
        validated(changed(raw, path, value), "params.yaml")
    assert message in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("path", "value"), [("exchange.removed", [0.3, 0.3]), ("exchange.radius", [0.1, 0.1]), ("prior.channels", [32, 32])]
)
def test_ranges_and_sizes_of_layers_may_name_a_number_twice(raw: dict, path: str, value: list) -> None:
    section, key = path.split(".")
    assert getattr(getattr(validated(changed(raw, path, value), "params.yaml"), section), key) == value


@pytest.mark.parametrize("path", ["seeds", "masks", "masks.regions", "data.codebirds.seed"])
def test_a_missing_key_is_named(raw: dict, path: str) -> None:
    with pytest.raises(ValueError, match=f"the key '{path}' is missing"):
        validated(changed(raw, path, remove=True), "params.yaml")


def test_sections_are_frozen(raw: dict) -> None:
    with pytest.raises(ValueError, match="frozen"):
        validated(raw, "params.yaml").masks.regions = 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("a: [", "not valid YAML"),
        ("", "holds no keys"),
        ("run:\n  device: cpu\n  device: cuda\n", "the key 'device' is given twice"),
        ("seeds: [0]\nseeds: [1]\n", "the key 'seeds' is given twice"),
        ("run: &run {threads: *run}\n", "a section that contains itself"),
        ("seeds: 2020-13-45\n", "not valid YAML"),
        ("seeds: !!timestamp six\n", "not valid YAML"),
        ("seeds: !!bool six\n", "not valid YAML"),
        ("seeds: " + "9" * 5000 + "\n", "not valid YAML"),
        ("seeds: " + "[" * 3000 + "]" * 3000 + "\n", "not valid YAML"),
    ],
)
def test_a_missing_or_broken_file_is_one_sentence(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "params.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read("run", path=path)
    assert str(caught.value).isprintable()


def test_a_file_may_have_the_line_ends_of_windows(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_bytes(text.replace("\n", "\r\n").encode())
    assert read("masks", path=tmp_path / "params.yaml") == read("masks", path=ROOT / "params.yaml")
