import copy
import dataclasses

import pytest
import torch
import yaml

from everycause.data.sources import DataParams, open_split
from everycause.data.split import Split
from everycause.models import Classifier
from everycause.training.fit import (
    PLAIN,
    BaseParams,
    Training,
    fit,
    fit_base,
    optimizer,
    trainable_parameters,
    training_mode,
)
from everycause.training.loss import LossParams
from everycause.training.rows import ROWS, goal_of
from tests.conftest import ROOT, make_classifier
from tests.training.invented import PARAMS, WEIGHTS, invented_bank, invented_masks, invented_upstream, recipe


@pytest.fixture
def small(train: Split) -> Split:
    return train.subset(torch.arange(96).numpy()).kept_in_memory(100)


@pytest.fixture
def validation(data_params: DataParams) -> Split:
    return open_split(data_params, "validation", 1)


def smoke_data() -> DataParams:
    return DataParams(**yaml.safe_load((ROOT / "profiles" / "smoke.yaml").read_text())["data"])


def trained(
    small: Split, validation: Split, row: str | None, seed: int = 0, weights: LossParams = WEIGHTS
) -> tuple[Classifier, list]:
    classifier = make_classifier()
    goal = PLAIN
    if row is not None:
        goal = goal_of(ROWS[row], invented_upstream(small), recipe(smoke_data(), weights), seed)
    return classifier, list(fit(classifier, small, validation, PARAMS, seed, goal))


@pytest.mark.parametrize("row", ROWS)
def test_two_fits_from_one_seed_are_equal_to_the_last_bit(small: Split, validation: Split, row: str) -> None:
    (first, epochs), (second, again) = (trained(small, validation, row) for _ in range(2))
    assert all(
        torch.equal(*pair) for pair in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert epochs == again and [epoch.number for epoch in epochs] == [1, 2]
    other, _ = trained(small, validation, row, seed=1)
    assert not all(
        torch.equal(*pair) for pair in zip(first.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_continued_is_plain_training_and_filters_of_weight_zero_too(small: Split, validation: Split) -> None:
    plain, _ = trained(small, validation, None)
    zero = LossParams(lambda_augment=0.0, lambda_mc=0.0, lambda_nonmc=0.0, surrogate="sigmoid_threshold")
    for row, weights in (("continued", WEIGHTS), ("filters", zero)):
        other, _ = trained(small, validation, row, weights=weights)
        assert all(
            torch.equal(*pair) for pair in zip(plain.state_dict().values(), other.state_dict().values(), strict=True)
        ), row


@pytest.mark.parametrize(
    ("row", "terms"), [("continued", set()), ("filters", set()), ("masks", {"augment"}), ("joint", {"augment"})]
)
def test_every_term_of_a_row_is_recorded_by_name(small: Split, validation: Split, row: str, terms: set[str]) -> None:
    _, epochs = trained(small, validation, row)
    expected = {"loss", "cross_entropy", "mc", "nonmc", "active", *terms}  # the filter terms are watched in every row
    assert set(epochs[0].measures) == {f"train/{name}" for name in expected} | {"validation/accuracy"}


def test_only_flipped_images_have_a_counterfactual_and_other_selectors_take_as_many_regions(
    small: Split, data_params: DataParams
) -> None:
    upstream = invented_upstream(small)
    goals = {row: goal_of(ROWS[row], upstream, recipe(data_params), 0) for row in ROWS}
    own = goals["masks"].counterfactuals.pool.sets
    assert set(own) == set(upstream.masks.index[upstream.masks.flipped].tolist())
    for row in ("masks_random", "masks_grad_cam", "masks_factual"):
        other = goals[row].counterfactuals.pool.sets
        assert set(other) == set(own) and all(int(own[i].sum()) == int(other[i].sum()) for i in own)
        assert any(not torch.equal(own[i], other[i]) for i in own)
    assert goals["masks_scene"].counterfactuals.scene and not goals["masks"].counterfactuals.scene
    assert goals["continued"].counterfactuals is None


def test_filters_are_the_classs_own_or_a_control_of_the_same_size(small: Split, data_params: DataParams) -> None:
    goals = {row: goal_of(ROWS[row], invented_upstream(small), recipe(data_params), 0) for row in ROWS}
    own = invented_bank().histogram > 0
    assert torch.equal(goals["filters"].filters, own) and torch.equal(goals["joint"].filters, own)
    random, other = goals["filters_random"].filters, goals["filters_permuted"].filters
    assert torch.equal(random.sum(dim=1), own.sum(dim=1)) and not torch.equal(random, own)
    assert sorted(other.tolist()) == sorted(own.tolist()) and not any(
        torch.equal(*pair) for pair in zip(other, own, strict=True)
    )
    for row, goal in goals.items():
        assert (goal.weights.lambda_mc > 0) == (row in ("filters", "filters_random", "filters_permuted", "joint")), row


def test_a_training_that_is_taken_up_ends_as_if_it_had_not_stopped(
    small: Split, validation: Split, data_params: DataParams
) -> None:
    goal = goal_of(ROWS["masks"], invented_upstream(small), recipe(data_params), 0)

    def begun() -> Training:
        return Training(make_classifier(), small, validation, PARAMS, 0, "masks")

    whole = begun()
    epochs = [*whole.epochs(goal, 1), *whole.epochs(goal, 1)]
    stopped = begun()
    list(stopped.epochs(goal, 1))
    resumed = begun()
    resumed.take_up(copy.deepcopy(stopped.state()))
    assert list(resumed.epochs(goal, 1)) == epochs[1:]
    assert all(
        torch.equal(*pair)
        for pair in zip(whole.classifier.state_dict().values(), resumed.classifier.state_dict().values(), strict=True)
    )


def test_a_loss_that_is_not_finite_names_row_epoch_and_batch(small: Split, validation: Split) -> None:
    classifier = make_classifier()
    with torch.no_grad():
        classifier.network.get_classifier().bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="row joint: the loss is nan at epoch 1, batch 1"):
        list(fit(classifier, small, validation, PARAMS, 0, row="joint"))


def test_a_row_of_masks_without_a_single_flip_is_refused(small: Split, data_params: DataParams) -> None:
    masks = dataclasses.replace(invented_masks(small), flipped=torch.zeros(40, dtype=torch.bool))
    with pytest.raises(ValueError, match="none of the 40 searched images changes its prediction"):
        goal_of(ROWS["masks"], dataclasses.replace(invented_upstream(small), masks=masks), recipe(data_params), 0)


def test_the_oracle_needs_data_whose_parts_are_known(small: Split, data_params: DataParams) -> None:
    photos = data_params.model_copy(update={"source": "folder"})
    with pytest.raises(ValueError, match="leave it out of rows"):
        goal_of(ROWS["oracle_parts"], invented_upstream(small), recipe(photos), 0)


def test_training_learns_something(small: Split, validation: Split) -> None:
    _, epochs = trained(small, validation, None)
    assert epochs[-1].measures["train/loss"] < epochs[0].measures["train/loss"]


def test_biases_and_normalization_are_not_decayed() -> None:
    decayed, free = optimizer(make_classifier().parameters(), PARAMS.optimizer).param_groups
    assert decayed["weight_decay"] == 0.05 and free["weight_decay"] == 0.0
    assert all(value.ndim > 1 for value in decayed["params"]) and all(value.ndim == 1 for value in free["params"])


def weights_of(classifier: Classifier) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in classifier.network.state_dict().items()}


@pytest.mark.parametrize(("names", "moving"), [(["head"], ("fc.",)), (["layer4", "head"], ("layer4.", "fc."))])
def test_only_what_is_trainable_moves_its_statistics_too_and_nothing_stays_frozen(
    small: Split, validation: Split, names: list[str], moving: tuple[str, ...]
) -> None:
    classifier = make_classifier()
    before = weights_of(classifier)
    list(fit(classifier, small, validation, PARAMS.model_copy(update={"trainable": names}), 0))
    for name, value in weights_of(classifier).items():
        assert torch.equal(value, before[name]) != name.startswith(moving), name
    assert all(value.requires_grad for value in classifier.parameters()) and not classifier.training


def test_what_learns_is_restored_after_an_exception() -> None:
    classifier = make_classifier()
    with pytest.raises(RuntimeError), training_mode(classifier, ["head"]):
        assert [name for name, value in classifier.network.named_parameters() if value.requires_grad] == [
            "fc.weight",
            "fc.bias",
        ]
        raise RuntimeError
    assert all(value.requires_grad for value in classifier.parameters()) and not any(
        module.training for module in classifier.modules()
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [(["layer9"], "neither 'all' nor 'head' nor a module of test_resnet"), (["maxpool"], "holds no weights")],
)
def test_trainable_names_that_mean_nothing_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainable_parameters(make_classifier(), names)


@pytest.mark.parametrize(("keep", "expected"), [("last", 3), ("best", 1)])
def test_the_result_is_the_last_epoch_or_the_first_of_the_best(
    small: Split, validation: Split, monkeypatch: pytest.MonkeyPatch, keep: str, expected: int
) -> None:
    accuracies = iter([0.2, 0.5, 0.5, 0.4])
    monkeypatch.setattr("everycause.training.fit.accuracy", lambda _logits, _labels: next(accuracies))
    states, classifier = [], make_classifier()
    for _ in fit(classifier, small, validation, PARAMS.model_copy(update={"epochs": 4, "keep": keep}), 0):
        states.append(weights_of(classifier))
    assert all(torch.equal(value, states[expected][name]) for name, value in weights_of(classifier).items())
    assert not torch.equal(states[1]["fc.weight"], states[3]["fc.weight"])


def test_the_base_trains_its_head_first_and_counts_all_epochs(small: Split, validation: Split) -> None:
    params = BaseParams(**PARAMS.model_dump(), head_epochs=2, head_learning_rate=0.01)
    classifier, seen = make_classifier(), []
    trunk = classifier.network.conv1[0].weight.clone()
    for epoch in fit_base(classifier, small, validation, params, 0):
        seen.append((epoch.number, torch.equal(classifier.network.conv1[0].weight, trunk)))
    assert seen == [(1, True), (2, True), (3, False), (4, False)]


def test_a_constant_schedule_of_sgd_keeps_its_rate(small: Split, validation: Split) -> None:
    params = PARAMS.model_copy(
        update={"optimizer": PARAMS.optimizer.model_copy(update={"name": "sgd", "schedule": "constant"})}
    )
    training = Training(make_classifier(), small, validation, params, 0, "base")
    list(training.epochs(PLAIN, 1))
    assert isinstance(training.optimizer, torch.optim.SGD) and {
        group["lr"] for group in training.optimizer.param_groups
    } == {1e-3}
