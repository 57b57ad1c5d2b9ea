from itertools import islice

import numpy as np
import pytest
import torch

from everycause.data.batches import Statistics
from everycause.data.split import Split
from everycause.explanation.regions import grid
from everycause.training.counterfactual import Counterfactuals, FillParams, background_bank, training_steps
from everycause.training.rows import least_important

FILL = FillParams(source="bank", donors="any_class", donor_share=0.25, scene_share=0.5, augment_rate=1.0)
REGIONS = 16


@pytest.fixture
def made(train: Split) -> tuple[Counterfactuals, torch.Tensor]:
    """Masks for the first forty images, two regions each."""
    generator = torch.Generator().manual_seed(0)
    effect = torch.rand(40, REGIONS, generator=generator)
    sets = torch.rand(40, REGIONS, generator=generator).argsort(dim=1).argsort(dim=1) < 2
    bank = background_bank(train, torch.arange(40), effect, grid(train.image_size, 4), FILL)
    return Counterfactuals(dict(enumerate(sets)), bank.partition, bank, 1.0), effect


def test_only_removed_pixels_change_and_come_from_the_same_place_of_a_donor(train: Split, made: tuple[Counterfactuals, torch.Tensor]) -> None:
    counterfactuals, effect = made
    index = torch.arange(6)
    images, labels = train.read(index.numpy()), train.labels[index]
    composed = counterfactuals.composed(index, images, labels, torch.Generator().manual_seed(1))
    donors = train.read(np.arange(40))
    for row in range(6):
        for region in range(REGIONS):
            place = counterfactuals.partition == region
            if not counterfactuals.removed[row][region]:
                assert torch.equal(composed[row][:, place], images[row][:, place])
                continue
            sources = [donor for donor in range(40) if torch.equal(donors[donor][:, place], composed[row][:, place])]
            best = effect[:, region].argsort()[:10].tolist()
            assert set(sources) & set(best)


def test_an_empty_set_changes_nothing_and_a_full_one_everything(train: Split, made: tuple[Counterfactuals, torch.Tensor]) -> None:
    counterfactuals, _ = made
    images, labels, index = train.read(np.arange(2)), train.labels[:2], torch.arange(2)
    for filled, expected in ((torch.zeros, images), (torch.ones, torch.full_like(images, 128))):
        sets = {i: filled(REGIONS, dtype=torch.bool) for i in range(2)}
        gray = Statistics((128 / 255,) * 3, (0.2,) * 3)
        made_of_gray = Counterfactuals(sets, counterfactuals.partition, gray, 1.0)
        assert torch.equal(made_of_gray.composed(index, images, labels, torch.Generator()), expected)


def test_donors_of_another_class_are_never_of_the_own_one(train: Split) -> None:
    effect = torch.rand(40, REGIONS, generator=torch.Generator().manual_seed(0))
    searched = torch.arange(40)
    bank = background_bank(train, searched, effect, grid(32, 4), FILL.model_copy(update={"donors": "other_class"}))
    white = torch.where(bank.labels == 2, 255, 0).to(torch.uint8)[:, None, None, None].expand_as(bank.images)
    drawn = type(bank)(white.contiguous(), bank.labels, bank.ranked, bank.partition, True).draw(torch.full((64,), 2), torch.Generator().manual_seed(0))
    assert drawn.max() == 0
    with pytest.raises(ValueError, match="donors of one class only"):
        background_bank(train, torch.arange(0, 40, train.num_classes), effect[:10], grid(32, 4), FILL.model_copy(update={"donors": "other_class"}))


def test_donors_are_independent_of_the_class(train: Split, made: tuple[Counterfactuals, torch.Tensor]) -> None:
    bank = made[0].fill
    first = bank.draw(torch.zeros(50, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert torch.equal(first, bank.draw(torch.full((50,), 3), torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("rate", (1.0, 0.5))
def test_every_step_has_the_same_number_of_images_whatever_the_row(train: Split, made: tuple[Counterfactuals, torch.Tensor], rate: float) -> None:
    some = Counterfactuals(made[0].removed, made[0].partition, made[0].fill, rate)
    for counterfactuals in (None, some):
        seen = 0
        for step in islice(training_steps(train, 32, 2, counterfactuals, torch.Generator().manual_seed(0)), 30):
            assert len(step.images) + len(step.counterfactuals) == 32
            assert len(step.labels) == len(step.images) and len(step.counterfactual_labels) == len(step.counterfactuals)
            seen += len(step.counterfactuals)
        assert (seen > 0) == (counterfactuals is not None)


def test_a_counterfactual_shares_mirror_and_shift_with_its_original(train: Split) -> None:
    gray = Statistics((0.0, 0.0, 0.0), (0.2,) * 3)
    nothing = {i: torch.zeros(REGIONS, dtype=torch.bool) for i in range(len(train))}
    step = next(training_steps(train, 32, 3, Counterfactuals(nothing, grid(32, 4), gray, 1.0), torch.Generator().manual_seed(0)))
    assert torch.equal(step.images, step.counterfactuals) and torch.equal(step.labels, step.counterfactual_labels)


def test_the_stream_shows_every_image_once_per_round(train: Split) -> None:
    held = train.subset(np.arange(64))
    steps = list(islice(training_steps(held, 16, 0, None, torch.Generator().manual_seed(0)), 4))
    assert torch.equal(torch.cat([step.labels for step in steps]).bincount(), held.labels.bincount())


def test_the_least_important_regions_are_those_of_least_effect() -> None:
    effect = torch.tensor([[0.3, 0.1, 0.2, 0.0], [0.0, 0.0, 0.5, 0.4]])
    assert least_important(effect, 0.5).tolist() == [[False, True, False, True], [True, True, False, False]]
