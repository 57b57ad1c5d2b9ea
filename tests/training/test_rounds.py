from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from everycause.artifacts import DAMAGED, PARTS
from everycause.data.sources import DataParams, open_split
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.explanation.masks import MaskParams, Masks, searched
from everycause.models import Classifier
from everycause.training import rounds as module
from everycause.training.counterfactuals import Upstream
from everycause.training.fit import Epoch
from everycause.training.rounds import CHECKPOINT, PART, ROUND, RoundsParams, has_ended, size_at_flip
from everycause.training.rows import retrain
from tests.explanation.searching import PARAMS, always_right, undecided
from tests.training.invented import PARAMS as TRAINING
from tests.training.invented import invented_bank, invented_masks, known, recipe

FIT = TRAINING.model_copy(
    update={"epochs": 4, "batch_size": 16, "optimizer": TRAINING.optimizer.model_copy(update={"learning_rate": 1e-5})}
)
ROUNDS = RoundsParams(rounds=3, images=12, growth=0.0)
LARGEST = 3
"""Steps of the searches that are made up."""


def still(train: Split) -> Classifier:
    """An untrained model that the few steps of these tests change little."""
    classifier = undecided(train)
    for part in classifier.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 0.0
    return classifier


@pytest.fixture
def upstream(train: Split, data_params: DataParams) -> Upstream:
    base = still(train)
    split = always_right(train, base, 48)
    masks = Masks.joined(list(searched(base, split, torch.arange(24), PARAMS)))
    return Upstream(
        base=base,
        model="model",
        train=split,
        validation=known(open_split(data_params, "validation", 1)),
        open_masks=lambda: masks,
        open_filters=invented_bank,
        watch_filters=False,
    )


def anew(upstream: Upstream, train: Split) -> Upstream:
    """The same upstream with an untrained base, as another process would open it."""
    return replace(upstream, base=still(train))


def of_sizes(masks: Masks, sizes: list[int]) -> Masks:
    """Masks of the first images with sets of these sizes; 0: the image never flips and has the largest set."""
    rows = masks.rows(torch.arange(len(sizes)))
    order = torch.full((len(sizes), LARGEST), -1)
    for row, size in enumerate(sizes):
        order[row, : size or LARGEST] = torch.arange(size or LARGEST)
    return replace(rows, order=order, flipped=torch.tensor([size > 0 for size in sizes]))


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch, train: Split) -> list[list[int]]:
    """The sizes that the searches of the rounds find, a list for each search. The rule that ends them is real."""
    sizes: list[list[int]] = []

    def found(_classifier: Classifier, _split: Split, _index: torch.Tensor, _params: object) -> Iterator[Masks]:
        yield of_sizes(invented_masks(train), sizes.pop(0))

    monkeypatch.setattr(module, "searched", found)
    return sizes


def searched_rounds(
    upstream: Upstream, data: DataParams, params: RoundsParams = ROUNDS
) -> tuple[list[bool], list[Epoch]]:
    """Which rounds had a search, and all epochs."""
    had: list[bool] = []

    def observe(number: int, _classifier: Classifier, masks: Masks | None) -> dict[str, float]:
        had.append(masks is not None) if number else None
        return {}

    retraining = retrain("masks_rounds", upstream, recipe(data), FIT, params, 0)
    return had, [epoch for epoch in retraining.epochs(observe=observe) if epoch.measures]


def test_every_round_adds_masks_of_the_model_as_it_is_and_the_epochs_are_shared_out(
    upstream: Upstream, data_params: DataParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "has_ended", lambda _found, _growth: False)
    seen: list[tuple[int, Masks | None, int]] = []
    epochs: list[Epoch] = []

    def observe(number: int, _classifier: Classifier, masks: Masks | None) -> dict[str, float]:
        seen.append((number, masks, len(epochs)))
        return {"round/round": float(number)}

    retraining = retrain("masks_rounds", upstream, recipe(data_params), FIT, ROUNDS, 0)
    for epoch in retraining.epochs(observe=observe):
        if "round/round" not in epoch.measures:
            epochs.append(epoch)
    assert [(number, done) for number, _, done in seen] == [(0, 0), (1, 1), (2, 3), (3, 4)]
    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4] and "train/augment" in epochs[0].measures
    first, second = seen[1][1], seen[2][1]
    assert first is upstream.masks and second is not None
    assert not torch.equal(second.before, first.before[: len(second.before)])


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([[3, 3], [3, 3]], [True, True, True]),  # as many regions as the base: with a growth of 0 that is no end
        ([[1, 1]], [True, True, False]),  # fewer than the base
        ([[3, 0], [2, 2]], [True, True, True]),  # the third search ends the fourth round alone
        ([[0, 0]], [True, False, False]),  # no prediction flips any more: nothing joins the pool
    ],
)
def test_the_searches_end_after_the_first_that_finds_smaller_sets(
    upstream: Upstream, data_params: DataParams, searches: list, found: list[list[int]], expected: list[bool]
) -> None:
    searches.extend(found)
    base = of_sizes(upstream.masks, [3, 3, 2, 3])
    had, epochs = searched_rounds(replace(upstream, open_masks=lambda: base), data_params)
    assert had == expected and len(epochs) == FIT.epochs and searches == []


def test_the_growth_that_is_asked_for_counts(upstream: Upstream, data_params: DataParams, searches: list) -> None:
    base = of_sizes(upstream.masks, [2, 2, 2, 2])
    upstream = replace(upstream, open_masks=lambda: base)
    for growth, expected in ((0.2, [True, True, True]), (0.3, [True, True, False])):
        searches[:] = [[3, 2, 3, 2], [2, 2]]
        had, _ = searched_rounds(upstream, data_params, RoundsParams(rounds=3, images=12, growth=growth))
        assert had == expected


def test_images_of_the_base_that_never_flip_count_as_those_of_later_rounds_do(
    upstream: Upstream, data_params: DataParams, searches: list
) -> None:
    """With half of its images never flipping the base needs (1 + 4) / 2 = 2.5 regions, not 1: 2 are fewer."""
    searches.append([2, 2])
    base = of_sizes(upstream.masks, [1, 0, 1, 0])
    had, _ = searched_rounds(replace(upstream, open_masks=lambda: base), data_params)
    assert had == [True, True, False]


def test_the_rule_compares_the_last_two_searches(train: Split) -> None:
    masks = invented_masks(train)
    one, two, three = (of_sizes(masks, [size] * 2) for size in (1, 2, 3))
    assert not has_ended([one], 0.0) and not has_ended([one, two, three], 0.4) and has_ended([one, two, three], 0.6)
    assert has_ended([three, two], 0.0) and not has_ended([two, two], 0.0) and has_ended([one, two, None], 0.0)


def test_images_that_never_flip_count_with_one_more_than_the_largest_set(train: Split) -> None:
    masks = invented_masks(train)
    expected = [
        int((row >= 0).sum()) if flips else LARGEST + 1
        for row, flips in zip(masks.order, masks.flipped.tolist(), strict=True)
    ]
    assert size_at_flip(masks) == pytest.approx(sum(expected) / 40)


def killed_after(upstream: Upstream, data: DataParams, folder: Path, last: int) -> None:
    """A run that is killed when it has finished some rounds."""

    def observe(number: int, _classifier: Classifier, _masks: Masks | None) -> dict[str, float]:
        if number > last:
            raise KeyboardInterrupt
        return {"round/round": float(number)}

    with pytest.raises(KeyboardInterrupt):
        list(retrain("masks_rounds", upstream, recipe(data), FIT, ROUNDS, 0).epochs(folder, observe))


def observed(number: int, _classifier: Classifier, _masks: Masks | None) -> dict[str, float]:
    return {"round/round": float(number)}


def weights(upstream: Upstream) -> list[torch.Tensor]:
    return list(upstream.base.state_dict().values())


@pytest.mark.parametrize("last", [1, 2])
def test_a_killed_run_goes_on_after_its_last_round_to_the_same_weights_and_records(
    upstream: Upstream,
    train: Split,
    data_params: DataParams,
    tmp_path: Path,
    last: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "has_ended", lambda _found, _growth: False)
    whole = anew(upstream, train)
    epochs = list(retrain("masks_rounds", whole, recipe(data_params), FIT, ROUNDS, 0).epochs(observe=observed))
    killed_after(anew(upstream, train), data_params, tmp_path, last)
    places: list[object] = []
    load = torch.load
    monkeypatch.setattr(
        torch, "load", lambda path, **options: (places.append(options["map_location"]), load(path, **options))[1]
    )
    resumed, trained = anew(upstream, train), []
    retraining = retrain("masks_rounds", resumed, recipe(data_params), FIT, ROUNDS, 0)
    real = module.Training.epochs
    monkeypatch.setattr(
        module.Training, "epochs", lambda self, goal, count: (trained.append(count), real(self, goal, count))[1]
    )
    assert list(retraining.epochs(tmp_path, observed)) == epochs
    assert trained == [1, 2, 1][last:] and places == [torch.device("cpu")]
    assert all(torch.equal(*pair) for pair in zip(weights(whole), weights(resumed), strict=True))
    searches = {PART.format(number, 0, 0) for number in (2, 3)}
    left = {path.name for path in tmp_path.iterdir()} - {PARTS, *searches}
    assert left == {CHECKPOINT, *(ROUND.format(number) for number in (1, 2, 3))}


def test_a_search_that_is_killed_goes_on_after_its_last_chunk(
    upstream: Upstream, train: Split, data_params: DataParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "has_ended", lambda _found, _growth: False)
    monkeypatch.setattr(module, "SEARCHED_TOGETHER", 5)  # three chunks of the 12 images
    fit, rounds = FIT.model_copy(update={"epochs": 2}), RoundsParams(rounds=2, images=12, growth=0.0)
    chunks: list[int] = []
    real = module.searched

    def counted(classifier: Classifier, split: Split, index: torch.Tensor, params: MaskParams) -> Iterator[Masks]:
        if len(chunks) == 2:
            raise KeyboardInterrupt
        chunks.append(len(index))
        return real(classifier, split, index, params)

    def begun(folder: Path | None) -> tuple[Upstream, list[Epoch]]:
        own = anew(upstream, train)
        return own, list(retrain("masks_rounds", own, recipe(data_params), fit, rounds, 0).epochs(folder))

    whole, epochs = begun(None)
    monkeypatch.setattr(module, "searched", counted)
    with pytest.raises(KeyboardInterrupt):
        begun(tmp_path)
    chunks[:] = [0]
    resumed, again = begun(tmp_path)
    assert chunks == [0, 2] and again == epochs
    assert all(torch.equal(*pair) for pair in zip(weights(whole), weights(resumed), strict=True))


def cut(content: bytes) -> bytes:
    return content[:100]


def one_bit_flipped(content: bytes) -> bytes:
    return content[:-200] + bytes([content[-200] ^ 1]) + content[-199:]


@pytest.mark.parametrize("damage", [cut, one_bit_flipped])
@pytest.mark.parametrize("damaged", [CHECKPOINT, ROUND.format(1)])
def test_a_damaged_checkpoint_is_reported_once_and_the_rounds_start_again(
    upstream: Upstream,
    train: Split,
    data_params: DataParams,
    tmp_path: Path,
    damaged: str,
    damage: Callable[[bytes], bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = anew(upstream, train)
    epochs = list(retrain("masks_rounds", whole, recipe(data_params), FIT, ROUNDS, 0).epochs(observe=observed))
    killed_after(anew(upstream, train), data_params, tmp_path, 1)
    whole_file = (tmp_path / damaged).read_bytes()
    (tmp_path / damaged).write_bytes(damage(whole_file))
    again = anew(upstream, train)
    assert (
        list(retrain("masks_rounds", again, recipe(data_params), FIT, ROUNDS, 0).epochs(tmp_path, observed)) == epochs
    )
    (said,) = [record.message for record in caplog.records if "the rounds start again" in record.message]
    assert damaged in said and (tmp_path / (damaged + DAMAGED)).read_bytes() == damage(whole_file)
    assert all(torch.equal(*pair) for pair in zip(weights(whole), weights(again), strict=True))


def test_pictures_of_rounds_show_the_pool_of_all_searches(upstream: Upstream, data_params: DataParams) -> None:
    retraining = retrain(
        "masks_rounds", upstream, recipe(data_params), FIT, RoundsParams(rounds=1, images=5, growth=0.0), 0
    )
    list(retraining)
    pictures = retraining.pictures()
    assert len(pictures.titles) == len(set(pictures.titles)) > 1


def test_rounds_without_a_single_flip_of_the_base_are_refused(upstream: Upstream, data_params: DataParams) -> None:
    base = of_sizes(upstream.masks, [0, 0])
    with pytest.raises(UserError, match="none of the 2 searched images changes its prediction"):
        retrain("masks_rounds", replace(upstream, open_masks=lambda: base), recipe(data_params), FIT, ROUNDS, 0)
