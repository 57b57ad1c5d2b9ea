from pathlib import Path

import pytest
import torch

from everycause.data.sources import DataParams, open_split
from everycause.data.split import Split
from everycause.explanation.masks import Masks, searched
from everycause.training import rounds as module
from everycause.training.fit import Training
from everycause.training.rounds import Progress, RoundsParams, keep, rounds, size_at_flip, take_up
from everycause.training.rows import Upstream
from tests.explanation.searching import PARAMS, always_right, undecided
from tests.training.invented import PARAMS as TRAINING
from tests.training.invented import invented_masks, recipe

FIT = TRAINING.model_copy(
    update={"epochs": 4, "batch_size": 16, "optimizer": TRAINING.optimizer.model_copy(update={"learning_rate": 1e-5})}
)
ROUNDS = RoundsParams(rounds=3, images=12, growth=0.0)


@pytest.fixture
def upstream(train: Split) -> Upstream:
    base = undecided(train)
    split = always_right(train, base, 48)
    return Upstream(base, None, Masks.joined(list(searched(base, split, torch.arange(24), PARAMS))), split)


@pytest.fixture
def validation(data_params: DataParams) -> Split:
    return open_split(data_params, "validation", 1)


@pytest.fixture(autouse=True)
def _always_growing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flips that take ever more regions, so that every round searches."""
    sizes = iter(range(1000))
    monkeypatch.setattr(module, "size_at_flip", lambda masks: float(masks.index.sum() * 0 + next(sizes) // 2))


def begun(train: Split, validation: Split) -> Training:
    classifier = undecided(train)
    for module_ in classifier.modules():
        if isinstance(module_, torch.nn.BatchNorm2d):
            module_.momentum = 0.0  # the statistics stay, so that the few steps of this test change little
    return Training(classifier, train, validation, FIT, 0, "masks_rounds")


def weights(training: Training) -> list[torch.Tensor]:
    return list(training.classifier.state_dict().values())


def test_every_round_adds_masks_of_the_model_as_it_is_and_the_epochs_are_shared_out(
    upstream: Upstream, validation: Split, data_params: DataParams
) -> None:
    training = begun(upstream.train, validation)
    done = list(rounds(training, upstream, recipe(data_params), ROUNDS, []))
    assert [len(one.epochs) for one in done] == [1, 2, 1] and [
        epoch.number for one in done for epoch in one.epochs
    ] == [1, 2, 3, 4]
    assert torch.equal(done[0].masks.index, upstream.masks.index[upstream.masks.flipped])
    assert done[1].masks is not None and not torch.equal(
        done[1].masks.before, done[0].masks.before[: len(done[1].masks.before)]
    )
    plain = begun(upstream.train, validation)
    assert training.rate.last_epoch == FIT.epochs * plain.per_epoch


def test_a_killed_training_goes_on_to_the_same_weights(
    upstream: Upstream, validation: Split, data_params: DataParams, tmp_path: Path
) -> None:
    whole = begun(upstream.train, validation)
    list(rounds(whole, upstream, recipe(data_params), ROUNDS, []))
    killed, kept = begun(upstream.train, validation), Progress([], [])
    for one in rounds(killed, upstream, recipe(data_params), ROUNDS, []):
        kept = Progress(
            [*kept.masks, one.masks], [*kept.measures, *((epoch.measures, epoch.number) for epoch in one.epochs)]
        )
        keep(tmp_path, killed, kept, "model", "data")
        if one.number == 2:
            break
    resumed = begun(upstream.train, validation)
    again = take_up(tmp_path, resumed)
    assert again.measures == kept.measures and len(again.masks) == 2
    assert [one.number for one in rounds(resumed, upstream, recipe(data_params), ROUNDS, again.masks)] == [3]
    assert all(torch.equal(*pair) for pair in zip(weights(whole), weights(resumed), strict=True))
    assert take_up(tmp_path / "nowhere", begun(upstream.train, validation)) == Progress([], [])


def test_the_searches_end_when_a_flip_takes_no_more_regions(
    upstream: Upstream, validation: Split, data_params: DataParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "size_at_flip", lambda _masks: 2.0)
    done = list(
        rounds(
            begun(upstream.train, validation),
            upstream,
            recipe(data_params),
            RoundsParams(rounds=3, images=12, growth=0.1),
            [],
        )
    )
    assert [one.masks is not None for one in done] == [True, True, False] and sum(
        len(one.epochs) for one in done
    ) == FIT.epochs


def test_one_round_is_training_on_the_masks_of_the_base(
    upstream: Upstream, validation: Split, data_params: DataParams
) -> None:
    (only,) = rounds(
        begun(upstream.train, validation),
        upstream,
        recipe(data_params),
        RoundsParams(rounds=1, images=5, growth=0.0),
        [],
    )
    assert len(only.epochs) == FIT.epochs and "train/augment" in only.epochs[0].measures


def test_images_that_never_flip_count_with_one_more_than_the_largest_set(train: Split) -> None:
    masks = invented_masks(train)
    expected = [
        int((row >= 0).sum()) if flips else 4 for row, flips in zip(masks.order, masks.flipped.tolist(), strict=True)
    ]
    assert size_at_flip(masks) == pytest.approx(sum(expected) / 40)
