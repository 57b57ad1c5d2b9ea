from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from everycause.params import flattened
from everycause.tuning.space import (
    ENQUEUED,
    Plan,
    Range,
    TuningParams,
    Values,
    extremes,
    nested,
    present_values,
    rounded,
    starts,
    suggested,
    used,
)
from everycause.tuning.trial import check_row, with_values
from everycause.tuning.upstream import TrialParams
from tests.conftest import ROOT


@pytest.fixture
def params(raw: dict) -> dict[str, Any]:
    return {name: raw[name] for name in TrialParams.model_fields}


def plan_of(parameters: dict[str, Range | Values], *, grid: bool = False) -> Plan:
    return Plan("toy", "joint", ["validation accuracy"], 4, [0], "tpe", "none", 0, parameters, grid)


WIDE = Range(low=0.0, high=1.0, log=False)


@pytest.mark.parametrize(
    "file", [ROOT / "params.yaml", *sorted((ROOT / "profiles").glob("*.yaml"))], ids=lambda file: file.name
)
def test_the_sweep_and_every_grid_of_every_profile_can_be_run(file: Path) -> None:
    raw = yaml.safe_load(file.read_text())
    tuning = TuningParams(**raw["tuning"])
    whole = {name: raw[name] for name in TrialParams.model_fields}
    for plan in (tuning.plan(), *(tuning.plan(name) for name in tuning.ablations)):
        present = present_values(whole, plan)
        check_row(plan.row, list(plan.parameters))
        for path, value in extremes(plan, present):
            with_values(TrialParams(**whole), {path: value})
        assert present in starts(plan, present)


@pytest.mark.parametrize(
    ("path", "bounds", "message"),
    [
        (
            "loss.lambda",
            WIDE,
            "'loss.lambda' is not a parameter that a trial can change, did you mean 'loss.lambda_mc'",
        ),
        ("data.codebirds.seed", WIDE, "'data.codebirds.seed' is not a parameter"),
        ("evaluation.severities", WIDE, "is not a parameter that a trial can change"),
        ("loss", WIDE, "not a number, a switch or a name"),
        ("retraining.trainable", WIDE, "not a number, a switch or a name"),
        ("background.source", WIDE, "'bank' is not a number: give 'values'"),
        ("model.pretrained", WIDE, "False is not a number: give 'values'"),
        ("background.source", Values(values=["own", "mean"]), "lack the present value bank"),
        ("loss.lambda_augment", Range(low=2.0, high=3.0, log=False), "excludes the present value 1.0"),
        ("masks.max_regions", Range(low=0.5, high=30.0, log=False), "is a whole number, so low and high must be"),
    ],
)
def test_wrong_paths_and_bounds_are_one_sentence(params: dict, path: str, bounds: Range | Values, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        present_values(params, plan_of({path: bounds}))
    assert "\n" not in str(caught.value) and path in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "filters.confidence_threshold",
            1.5,
            "'filters.confidence_threshold' cannot be 1.5: input should be less than 1",
        ),
        ("background.source", "bnak", "'background.source' cannot be 'bnak'"),
        ("loss.lambda_mc", -1.0, "greater than or equal to 0"),
    ],
)
def test_the_ends_of_a_range_must_be_values_that_the_parameter_may_have(
    params: dict, path: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        with_values(TrialParams(**params), {path: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "path"),
    [
        ("masks", "loss.lambda_mc"),
        ("masks", "filters.confidence_threshold"),
        ("filters", "masks.regions"),
        ("filters", "background.source"),
        ("continued", "loss.lambda_augment"),
        ("joint", "filters.compared"),
        ("joint", "rounds.images"),
        ("masks_rounds", "filters.frequency_threshold"),
        ("erasing", "background.classes"),
        ("masks", "exchange.removed"),
        ("object_exchange", "masks.regions"),
        ("object_exchange", "background.source"),
        ("masked_distillation", "background.source"),
        ("masked_distillation", "loss.lambda_augment"),
        ("group_dro", "loss.lambda_augment"),
    ],
)
def test_a_parameter_that_changes_nothing_in_the_row_is_refused(row: str, path: str) -> None:
    with pytest.raises(ValueError, match=f"'{path}' changes nothing in the row '{row}'"):
        check_row(row, [path])


@pytest.mark.parametrize(
    ("row", "path"),
    [
        ("joint", "loss.lambda_mc"),
        ("masks", "masks.baseline"),
        ("erasing", "background.augment_rate"),
        ("masks_rounds", "rounds.images"),
        ("continued", "retraining.epochs"),
        ("object_exchange", "exchange.object_share"),
        ("object_exchange", "loss.lambda_augment"),
        ("masked_distillation", "masks.regions"),
        ("masked_distillation", "background.augment_rate"),
    ],
)
def test_a_parameter_that_matters_to_the_row_is_accepted(row: str, path: str) -> None:
    check_row(row, [path])


def test_an_unknown_row_is_refused() -> None:
    with pytest.raises(ValueError, match="'jiont' is not a retraining row"):
        check_row("jiont", [])


def test_published_values_follow_the_present_ones_and_are_not_repeated_where_they_are_the_same(params: dict) -> None:
    plan = plan_of(
        {
            "loss.lambda_mc": Range(low=1e-5, high=1.0, log=True, published=5e-4),
            "masks.max_regions": Range(low=1, high=20, log=False),
        }
    )
    present = present_values(params, plan)
    assert starts(plan, present) == [present, present | {"loss.lambda_mc": 5e-4}]
    named = plan_of(
        {
            "background.source": Values(values=["bank", "own"], published="own"),
            "masks.max_regions": Range(low=1, high=20, log=False, published=7.0),
        }
    )
    assert starts(named, present_values(params, named))[1] == {"background.source": "own", "masks.max_regions": 7}
    same = plan_of({"loss.lambda_mc": Range(low=1e-5, high=1.0, log=True, published=present["loss.lambda_mc"])})
    assert starts(same, present_values(params, same)) == [present_values(params, same)]


def test_a_grid_is_every_combination(params: dict) -> None:
    plan = plan_of(
        {
            "background.source": Values(values=["bank", "own"]),
            "masks.max_regions": Values(values=[params["masks"]["max_regions"], 2, 4]),
        },
        grid=True,
    )
    combinations = starts(plan, present_values(params, plan))
    assert (
        len(combinations) == 6
        and len({str(one) for one in combinations}) == 6
        and present_values(params, plan) in combinations
    )


def test_sampled_numbers_are_used_with_few_digits_within_the_range_and_told_ones_exactly() -> None:
    narrow = Range(low=0.12344, high=0.12346, log=False)
    assert rounded(0.123451234, narrow) == 0.12344
    assert rounded(0.00034893840294, Range(low=1e-4, high=2e-3, log=True)) == 0.000349
    assert rounded(7, Range(low=1, high=20, log=False)) == 7 and rounded("own", Values(values=["own", "mean"])) == "own"
    plan = plan_of(
        {
            "a.x": Range(low=0.0, high=1.0, log=False),
            "a.n": Range(low=1, high=9, log=False),
            "a.k": Values(values=[True, False]),
        }
    )
    present = {"a.x": 0.123456789, "a.n": 3, "a.k": True}
    study = optuna.create_study()
    study.enqueue_trial(present, user_attrs={ENQUEUED: present})
    assert suggested(study.ask(), plan, present) == present
    drawn = suggested(study.ask(), plan, present)
    assert (
        drawn == used(study.trials[1], plan)
        and float(f"{drawn['a.x']:.3g}") == drawn["a.x"]
        and isinstance(drawn["a.n"], int)
    )


def test_flat_and_nested_are_inverse() -> None:
    flat = {"loss.lambda_mc": 0.5, "filters.heads.sparsity": 2.0, "background.source": "own"}
    assert flattened(nested(flat)) == flat
