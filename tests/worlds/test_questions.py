"""The three experiments at tiny size, and what their measures mean."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from everycause.data.sources import DataParams, open_split
from everycause.params import validated
from everycause.tuning.upstream import TrialParams, UpstreamCache
from everycause.worlds.page import question_figures
from everycause.worlds.questions import (
    COLUMNS,
    Answers,
    Bench,
    bench,
    classes,
    completeness,
    fidelity,
    half,
    overfitting,
    recalls,
)


@pytest.fixture
def on(raw: dict, tmp_path: Path) -> Bench:
    raw["training"]["epochs"] = raw["retraining"]["epochs"] = 1
    raw["data"]["codebirds"] |= {"train": 64, "validation": 32}
    raw["filters"]["confidence_threshold"] = 0.0
    params = validated(raw, "params")
    data: DataParams = params.data
    fixed = TrialParams(**{name: getattr(params, name) for name in TrialParams.model_fields})
    train, validation = (open_split(data, name, 1) for name in ("train", "validation"))
    cache = UpstreamCache(tmp_path / "none", tmp_path / "kept", fixed, train, validation, torch.device("cpu"))
    return bench(cache, data, fixed, 1)


def test_every_question_is_answered_for_its_settings_and_rows(on: Bench) -> None:
    few = bench(on.cache, on.data, on.params, 1, images=32)
    assert len(few.cache.train) == 32 and few.params.training.epochs == 2  # as many steps
    found = [*fidelity(on, [1, 2], 0), *overfitting(few, 0), *overfitting(on, 0), *classes(on, 0)]
    table = pd.DataFrame(found, columns=pd.Index(COLUMNS))
    assert not table.duplicated(COLUMNS[:-1]).any() and table.value.map(math.isfinite).all()
    by_question = {question: here for question, here in table.groupby("question")}
    assert set(by_question["fidelity"].setting) == {"1", "2"}
    assert set(by_question["overfitting"].setting) == {"32", "64"}
    assert set(by_question["overfitting"].row) == {"base", "continued", "filters", "filters_held_out"}
    assert set(by_question["classes"].row) == {"continued", "filters", "filters_some_classes"}
    assert set(question_figures(table)) == {"fidelity", "overfitting", "classes"}


def test_halves_are_disjoint_and_share_every_class_alike() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2])
    one, other = half(labels, 3, held_out=False), half(labels, 3, held_out=True)
    assert sorted([*one.tolist(), *other.tolist()]) == list(range(12))
    assert torch.bincount(labels[one]).tolist() == torch.bincount(labels[other]).tolist() == [2, 2, 2]


def test_a_classifier_that_is_always_right_where_it_can_be_is_complete(on: Bench) -> None:
    code = on.erasures.code
    labels = torch.arange(code.num_classes).repeat(2)
    right = {}
    for size in range(code.length + 1):
        for parts in code.subsets(size):
            lucky = (
                labels // code.order + labels % code.order
            ) % code.order == 0  # one in `order`, alike in each class
            right[parts] = (
                torch.ones(len(labels), dtype=torch.bool) if len(parts) <= code.length - code.dimension else lucky
            )
    answers = Answers(labels, right)
    assert recalls(answers, on).tolist() == [1.0] * code.num_classes
    assert completeness(answers, on) == pytest.approx(1.0, abs=0.05)
