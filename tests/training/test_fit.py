import dataclasses

import pytest
import torch

from everycause.data.dataset import DataParams, open_split
from everycause.data.split import Split
from everycause.explanation.filters import FilterBank
from everycause.explanation.heads import Heads
from everycause.explanation.masks import Masks
from everycause.explanation.regions import grid
from everycause.model import Classifier
from everycause.training.counterfactual import FillParams
from everycause.training.fit import PLAIN, FitParams, fit
from everycause.training.objective import ObjectiveParams
from everycause.training.optim import OptimizerParams, optimizer
from everycause.training.rows import ROWS, goal_of
from tests.conftest import make_classifier

PARAMS = FitParams(epochs=2, batch_size=32, shift=2, optimizer=OptimizerParams(learning_rate=1e-3, weight_decay=0.05, warmup=0.2))
FILL = FillParams(source="bank", donors="any_class", donor_share=0.25, scene_share=0.5, augment_rate=1.0)
WEIGHTS = ObjectiveParams(lambda_augment=1.0, lambda_mc=1e-3, lambda_nonmc=1e-4)


@pytest.fixture
def small(train: Split) -> Split:
    return train.subset(torch.arange(96).numpy()).kept_in_memory(100)


@pytest.fixture
def validation(data_params: DataParams) -> Split:
    return open_split(data_params, "validation", 1)


def invented_masks(split: Split) -> Masks:
    count, generator = 40, torch.Generator().manual_seed(0)
    order = torch.rand(count, 16, generator=generator).argsort(dim=1)[:, :3]
    order[: count // 2, 2] = -1
    flipped = torch.arange(count) % 4 != 0
    return Masks(
        torch.arange(count), order, flipped, torch.zeros(count, dtype=torch.int64), torch.rand(count, 2), torch.rand(count, 2),
        torch.rand(count, 16, generator=generator), torch.full((count,), 10), grid(split.image_size, 4), "model",
    )  # fmt: skip


def invented_bank() -> FilterBank:
    histogram = torch.randint(0, 3, (4, 96), generator=torch.Generator().manual_seed(0))
    return FilterBank(histogram, histogram.float(), torch.full((4,), 3), Heads(torch.zeros(4, 96, 96), torch.zeros(4, 96)), "model")


def trained(small: Split, validation: Split, row: str | None, seed: int = 0, weights: ObjectiveParams = WEIGHTS) -> tuple[Classifier, list]:
    classifier = make_classifier()
    goal = PLAIN
    if row is not None:
        goal = goal_of(ROWS[row], invented_bank(), invented_masks(small), small, classifier.statistics, weights, FILL, 0.0, seed)
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


def test_only_flipped_images_have_a_counterfactual_and_random_sets_have_their_sizes(small: Split) -> None:
    masks, statistics = invented_masks(small), make_classifier().statistics
    goals = {row: goal_of(ROWS[row], invented_bank(), masks, small, statistics, WEIGHTS, FILL, 0.0, 0) for row in ROWS}
    own, random, scene = (goals[row].counterfactuals for row in ("masks", "masks_random", "masks_scene"))
    assert set(own.removed) == set(random.removed) == set(masks.index[masks.flipped].tolist())
    assert [int(own.removed[i].sum()) for i in own.removed] == [int(random.removed[i].sum()) for i in own.removed]
    assert any(not torch.equal(own.removed[i], random.removed[i]) for i in own.removed)
    assert all((scene.removed[i] | ~own.removed[i]).all() and scene.removed[i].sum() >= 8 for i in own.removed)
    assert goals["continued"].counterfactuals is None and goals["continued"].filters is None
    assert torch.equal(goals["filters"].filters, invented_bank().histogram > 0)


def test_a_loss_that_is_not_finite_names_row_epoch_and_batch(small: Split, validation: Split) -> None:
    classifier = make_classifier()
    with torch.no_grad():
        classifier.network.get_classifier().bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="row joint: the loss is nan at epoch 1, batch 1"):
        list(fit(classifier, small, validation, PARAMS, 0, row="joint"))


def test_a_row_of_masks_without_a_single_flip_is_refused(small: Split) -> None:
    masks = dataclasses.replace(invented_masks(small), flipped=torch.zeros(40, dtype=torch.bool))
    with pytest.raises(ValueError, match="none of the 40 searched images changes its prediction"):
        goal_of(ROWS["masks"], invented_bank(), masks, small, make_classifier().statistics, WEIGHTS, FILL, 0.0, 0)


def test_training_learns_something(small: Split, validation: Split) -> None:
    _, epochs = trained(small, validation, None)
    assert epochs[-1].measures["train/loss"] < epochs[0].measures["train/loss"]


def test_biases_and_normalization_are_not_decayed() -> None:
    decayed, free = optimizer(make_classifier(), PARAMS.optimizer).param_groups
    assert decayed["weight_decay"] == 0.05 and free["weight_decay"] == 0.0
    assert all(value.ndim > 1 for value in decayed["params"]) and all(value.ndim == 1 for value in free["params"])
