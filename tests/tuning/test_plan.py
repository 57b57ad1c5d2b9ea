from typing import Any

import pytest

from everycause.params import validated


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("objectives", ["accuracy/sketch"], "'accuracy/sketch' is not among the measures of validation images"),
        ("objectives", ["test completeness"], "shifted or not, cannot be tuned on"),
        ("objectives", ["validation accuracy", "validation accuracy"], "named twice"),
        ("objectives", [], "at least 1 item"),
        ("sampler", "cmaes", "'tuning.sampler' is 'cmaes'"),
        ("pruner", "early", "'tuning.pruner' is 'early'"),
        ("seeds", [0, 0], "0 is named twice"),
        ("trials", 0, "'tuning.trials' is 0"),
        ("parameters", {"a.b": {"low": 1.0, "high": 1.0, "log": False}}, "must be below"),
        ("parameters", {"a.b": {"low": 0.0, "high": 1.0, "log": True}}, "must begin above 0"),
        (
            "parameters",
            {"a.b": {"low": 0.0, "high": 1.0, "log": False, "published": 2.0}},
            "excludes the published value 2.0",
        ),
        ("parameters", {"a.b": {"values": [1.0, 1.0]}}, "1.0 is named twice"),
        ("parameters", {"a.b": {"values": ["x", "y"], "published": "z"}}, "lack the published value z"),
    ],
)
def test_a_wrong_plan_is_one_sentence_before_any_work(raw: dict, key: str, value: Any, message: str) -> None:
    raw["tuning"][key] = value
    with pytest.raises(ValueError) as caught:
        validated(raw, "params.yaml")
    assert message in str(caught.value) and "\n" not in str(caught.value) and "tuning" in str(caught.value)


def test_a_study_of_two_objectives_cannot_be_pruned(raw: dict) -> None:
    raw["tuning"] |= {"objectives": ["validation accuracy", "validation completeness"], "pruner": "median"}
    with pytest.raises(ValueError, match="cannot prune a study of two objectives: set pruner to none, not median"):
        validated(raw, "params.yaml")
    raw["tuning"]["pruner"] = "none"
    assert validated(raw, "params.yaml").tuning.plan().objectives == ["validation accuracy", "validation completeness"]


def test_an_ablation_that_is_not_there_is_refused(raw: dict) -> None:
    with pytest.raises(ValueError, match=r"tuning.ablations has no 'three' \(known: sparsity, lambdas\)"):
        validated(raw, "params.yaml").tuning.plan("three")
