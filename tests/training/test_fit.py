import copy
import dataclasses

import pytest
import torch
import yaml

from everycause.data.dataset import DataParams, open_split
from everycause.data.split import Split
from everycause.model import Classifier
from everycause.training.fit import PLAIN, FitParams, Training, fit
from everycause.training.objective import ObjectiveParams
from everycause.training.optim import OptimizerParams, optimizer
from everycause.training.rows import ROWS, goal_of
from tests.conftest import ROOT, make_classifier
from tests.training.invented import WEIGHTS, invented_bank, invented_masks, invented_upstream, recipe

PARAMS = FitParams(epochs=2, batch_size=32, shift=2, optimizer=OptimizerParams(learning_rate=1e-3, weight_decay=0.05, warmup=0.2))


@pytest.fixture
def small(train: Split) -> Split:
    return train.subset(torch.arange(96).numpy()).kept_in_memory(100)


@pytest.fixture
def validation(data_params: DataParams) -> Split:
    return open_split(data_params, "validation", 1)


def smoke_data() -> DataParams:
    return DataParams(**yaml.safe_load((ROOT / "profiles" / "smoke.yaml").read_text())["data"])


def trained(small: Split, validation: Split, row: str | None, seed: int = 0, weights: ObjectiveParams = WEIGHTS) -> tuple[Classifier, list]:
    classifier = make_classifier()
    goal = PLAIN
    if row is not None:
        goal = goal_of(ROWS[row], invented_upstream(small), recipe(smoke_data(), weights), seed)
    return classifier, list(fit(classifier, small, validation, PARAMS, seed, goal))


@pytest.mark.parametrize("row", ROWS)
def test_two_fits_from_one_seed_are_equal_to_the_last_bit(small: Split, validation: Split, row: str) -> None:
    (first, epochs), (second, again) = (trained(small, validation, row) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert epochs == again and [epoch.number for epoch in epochs] == [1, 2]
    other, _ = trained(small, validation, row, seed=1)
    assert not all(torch.equal(*pair) for pair in zip(first.state_dict().values(), other.state_dict().values(), strict=True))


def test_continued_is_plain_training_and_filters_of_weight_zero_too(small: Split, validation: Split) -> None:
    plain, _ = trained(small, validation, None)
    zero = ObjectiveParams(lambda_augment=0.0, lambda_mc=0.0, lambda_nonmc=0.0)
    for row, weights in (("continued", WEIGHTS), ("filters", zero)):
        other, _ = trained(small, validation, row, weights=weights)
        assert all(torch.equal(*pair) for pair in zip(plain.state_dict().values(), other.state_dict().values(), strict=True)), row


@pytest.mark.parametrize(("row", "terms"), [("continued", set()), ("filters", {"mc", "nonmc"}), ("masks", {"augment"}), ("joint", {"augment", "mc", "nonmc"})])
def test_every_term_of_a_row_is_recorded_by_name(small: Split, validation: Split, row: str, terms: set[str]) -> None:
    _, epochs = trained(small, validation, row)
    expected = {"loss", "cross_entropy", *terms}
    assert set(epochs[0].measures) == {f"train/{name}" for name in expected} | {"validation/accuracy"}


def test_only_flipped_images_have_a_counterfactual_and_other_selectors_take_as_many_regions(small: Split, data_params: DataParams) -> None:
    upstream = invented_upstream(small)
    goals = {row: goal_of(ROWS[row], upstream, recipe(data_params), 0) for row in ROWS}
    own = goals["masks"].counterfactuals.pool.sets
    assert set(own) == set(upstream.masks.index[upstream.masks.flipped].tolist())
    for row in ("masks_random", "masks_grad_cam", "masks_factual"):
        other = goals[row].counterfactuals.pool.sets
        assert set(other) == set(own) and all(int(own[i].sum()) == int(other[i].sum()) for i in own)
        assert any(not torch.equal(own[i], other[i]) for i in own)
    assert goals["masks_scene"].counterfactuals.scene and not goals["masks"].counterfactuals.scene
    assert goals["continued"].counterfactuals is None and goals["continued"].filters is None
    assert torch.equal(goals["filters"].filters, invented_bank().histogram > 0)


def test_a_training_that_is_taken_up_ends_as_if_it_had_not_stopped(small: Split, validation: Split, data_params: DataParams) -> None:
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
    assert all(torch.equal(*pair) for pair in zip(whole.classifier.state_dict().values(), resumed.classifier.state_dict().values(), strict=True))


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
    decayed, free = optimizer(make_classifier(), PARAMS.optimizer).param_groups
    assert decayed["weight_decay"] == 0.05 and free["weight_decay"] == 0.0
    assert all(value.ndim > 1 for value in decayed["params"]) and all(value.ndim == 1 for value in free["params"])
