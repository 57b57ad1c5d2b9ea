from pathlib import Path
from typing import get_args

import pytest
import torch

from everycause.artifacts import load_tensors, save_tensors
from everycause.errors import UserError
from everycause.explanation import heads as training
from everycause.explanation.exact_filters import ExactFilters
from everycause.explanation.filter_heads import StoredHeads
from everycause.explanation.filters import (
    FILE,
    FilterBank,
    accumulate,
    filter_generator,
    filter_quality,
    incorrect_filter_quality,
    permuted,
    random_like,
)
from everycause.explanation.heads import FilterHeads, HeadParams, LastLayer, Variant, train_heads, train_incorrect_heads
from everycause.models import Readout

CLASSES, FILTERS, IMAGES = 3, 8, 60
PARAMS = HeadParams(sparsity=2.0, learning_rate=0.05, epochs=5, batch_size=16)
NAMES = ("a", "b", "c")


@pytest.fixture
def head() -> LastLayer:
    """Each class reads two filters of its own."""
    weight = torch.full((CLASSES, FILTERS), -0.2)
    for label in range(CLASSES):
        weight[label, 2 * label : 2 * label + 2] = 2.0
    return LastLayer(weight, torch.zeros(CLASSES))


@pytest.fixture
def seen(head: LastLayer) -> tuple[Readout, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(IMAGES) % CLASSES
    activations = torch.rand(IMAGES, FILTERS, generator=generator) * 0.3
    for row, label in enumerate(labels.tolist()):
        activations[row, 2 * label : 2 * label + 2] += 1.5
    return Readout(activations @ head.weight.T + head.bias, activations), labels


def random_heads(seed: int = 0) -> FilterHeads:
    generator = torch.Generator().manual_seed(seed)
    return FilterHeads(
        torch.randn(CLASSES, FILTERS, FILTERS, generator=generator), torch.randn(CLASSES, FILTERS, generator=generator)
    )


def trained(seen: tuple[Readout, torch.Tensor], head: LastLayer, epochs: int = PARAMS.epochs) -> FilterHeads:
    return train_heads(seen[0].activations, seen[1], head, PARAMS.model_copy(update={"epochs": epochs}), 0)


def test_trained_heads_keep_the_prediction_with_few_filters(
    head: LastLayer, seen: tuple[Readout, torch.Tensor]
) -> None:
    measures = filter_quality(trained(seen, head, epochs=60), head, *seen, 0.5, 0)
    assert measures["keep_rate"] > 0.95 and measures["filters_per_image"] < FILTERS
    assert measures["disable_flip_rate"] > measures["random/disable_flip_rate"]


@pytest.mark.parametrize("name", get_args(Variant) + ("exact_sufficient", "exact_necessary"))
def test_every_generator_fills_a_bank_that_survives_the_disk(
    head: LastLayer, seen: tuple[Readout, torch.Tensor], tmp_path: Path, name: str
) -> None:
    local = filter_generator(name, *seen, head, PARAMS.model_copy(update={"epochs": 60}), 0, torch.device("cpu"))
    bank = accumulate(local, head, *seen, 0.5, "model")
    bank.save(tmp_path)
    loaded = FilterBank.load(tmp_path, "model")
    sets = [one.local.minimum_correct(seen[0].activations, seen[1]) for one in (bank, loaded)]
    assert torch.equal(*sets) and torch.equal(loaded.histogram, bank.histogram)
    assert (
        isinstance(loaded.local, StoredHeads) if isinstance(local, FilterHeads) else type(loaded.local) is type(local)
    )
    kept = [label for label in seen[1].tolist() if label == 0]
    assert int(bank.support[0]) <= len(kept) and int(bank.histogram[0].max()) <= int(bank.support[0])


def test_exact_sets_reach_the_rates_that_define_them(head: LastLayer, seen: tuple[Readout, torch.Tensor]) -> None:
    assert filter_quality(ExactFilters("sufficient", head), head, *seen, 0.5, 0)["keep_rate"] == 1
    assert filter_quality(ExactFilters("necessary", head), head, *seen, 0.5, 0)["disable_flip_rate"] == 1
    assert filter_quality(ExactFilters("necessary", head), head, *seen, 1.0, 0) == {}


def test_minimum_incorrect_filters_turn_images_into_their_runner_up(
    head: LastLayer, seen: tuple[Readout, torch.Tensor]
) -> None:
    heads = train_incorrect_heads(*(seen[0].activations, seen[1]), head, PARAMS.model_copy(update={"epochs": 200}), 0)
    measures = incorrect_filter_quality(heads, head, *seen, 0.5, 0)
    assert measures["reach_rate"] > 0.5 > 2 * measures["random/reach_rate"] and measures["filters_per_image"] < FILTERS
    assert (heads.minimum_incorrect(seen[0].activations, seen[1]) >= 0).all()


def test_controls_have_the_sizes_of_the_sets_that_they_control() -> None:
    sets = torch.rand(7, 30, generator=torch.Generator().manual_seed(0)) > 0.6
    assert torch.equal(random_like(sets, 1).sum(dim=1), sets.sum(dim=1)) and not torch.equal(random_like(sets, 1), sets)
    assert torch.equal(random_like(sets, 1), random_like(sets, 1)) and not torch.equal(
        random_like(sets, 1), random_like(sets, 2)
    )
    moved = permuted(sets, 3)
    assert sorted(moved.tolist()) == sorted(sets.tolist()) and not any(
        torch.equal(*pair) for pair in zip(moved, sets, strict=True)
    )


def slow_accumulate(
    heads: FilterHeads, head: LastLayer, readout: Readout, labels: torch.Tensor, threshold: float
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    histogram, magnitude, support = torch.zeros(CLASSES, FILTERS), torch.zeros(CLASSES, FILTERS), [0] * CLASSES
    for logits, activation, label in zip(*readout, labels.tolist(), strict=True):
        probabilities = logits.softmax(dim=0)
        mask = (torch.sigmoid(heads.weight[label] @ activation + heads.bias[label]) > 0.5).float()
        kept = int((head.weight @ (activation * mask) + head.bias).argmax()) == label
        if int(probabilities.argmax()) == label and float(probabilities[label]) >= threshold and kept:
            histogram[label] += mask
            magnitude[label] += activation * mask
            support[label] += 1
    return histogram, magnitude, support


def test_the_bank_is_that_of_the_slow_reference(head: LastLayer, seen: tuple[Readout, torch.Tensor]) -> None:
    readout, labels = seen
    heads = trained(seen, head)
    bank = accumulate(heads, head, readout, labels, 0.9, "model")
    histogram, magnitude, support = slow_accumulate(heads, head, readout, labels, 0.9)
    assert (
        torch.equal(bank.histogram.float(), histogram)
        and torch.allclose(bank.magnitude, magnitude, atol=1e-4)
        and bank.support.tolist() == support
    )


def test_permuting_the_classes_permutes_the_rows(head: LastLayer, seen: tuple[Readout, torch.Tensor]) -> None:
    (readout, labels), order = seen, torch.tensor([2, 0, 1])
    heads = trained(seen, head)
    bank = accumulate(heads, head, readout, labels, 0.5, "model")
    moved = accumulate(
        FilterHeads(heads.weight[order], heads.bias[order]), LastLayer(head.weight[order], head.bias[order]),
        Readout(readout.logits[:, order], readout.activations), order.argsort()[labels], 0.5, "model",
    )  # fmt: skip
    assert torch.equal(moved.histogram, bank.histogram[order]) and torch.equal(moved.support, bank.support[order])


def test_thresholds_are_views_and_a_higher_one_keeps_a_subset(tmp_path: Path) -> None:
    heads = FilterHeads(torch.rand(2, 3, 3), torch.rand(2, 3))
    bank = FilterBank(torch.tensor([[10, 1, 0], [4, 2, 4]]), torch.rand(2, 3), torch.tensor([10, 4]), heads, "model")
    assert bank.global_filters(0.0).tolist() == [[True, True, False], [True, True, True]]
    assert bank.global_filters(0.15).tolist() == [[True, False, False], [True, True, True]]
    assert bank.global_filters(0.5).tolist() == [[True, False, False], [True, False, True]]
    bank.save(tmp_path)
    loaded = FilterBank.load(tmp_path, "model")
    assert torch.equal(loaded.histogram, bank.histogram) and torch.equal(loaded.local.one(1)[0], heads.weight[1])
    with pytest.raises(ValueError, match="made for another model"):
        FilterBank.load(tmp_path, "other")


def test_a_class_without_confident_images_has_no_filters_and_leaves_the_others_alone(
    head: LastLayer, seen: tuple[Readout, torch.Tensor]
) -> None:
    readout, labels = seen
    unsure = Readout(torch.where(labels[:, None] == 1, readout.logits * 0.01, readout.logits), readout.activations)
    heads = trained(seen, head)
    bank, whole = (accumulate(heads, head, one, labels, 0.9, "model") for one in (unsure, readout))
    assert bank.support[1] == 0 and not bank.global_filters(0.0)[1].any() and not bank.shares[1].any()
    for label in (label for label in range(len(whole.support)) if label != 1):
        assert torch.equal(bank.histogram[label], whole.histogram[label]) and bank.support[label] > 0


def test_a_diverging_head_is_one_sentence(head: LastLayer, seen: tuple[Readout, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="lower filters.heads.learning_rate"):
        train_heads(
            seen[0].activations * 1e20,
            seen[1],
            LastLayer(head.weight * 1e20, head.bias),
            PARAMS.model_copy(update={"learning_rate": 1e30}),
            0,
        )


def test_heads_of_many_classes_lie_in_files_that_counting_alone_does_not_open(
    head: LastLayer, seen: tuple[Readout, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(seen, head)
    monkeypatch.setattr(training, "MOST_BYTES", 2 * 4 * FILTERS * (FILTERS + 1))  # two heads
    local = filter_generator("all_classes", *seen, head, PARAMS, 0, torch.device("cpu"), (tmp_path, "model"))
    files = sorted(path.name for path in tmp_path.glob("heads-*"))
    assert files == ["heads-00000.safetensors", "heads-00002.safetensors"] and local.count == CLASSES
    for number in range(CLASSES):
        assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(local.one(number), whole.one(number), strict=True))
    bank = accumulate(local, head, *seen, 0.5, "model")
    bank.save(tmp_path)
    for name in files:
        (tmp_path / name).rename(tmp_path / f"away-{name}")
    loaded = FilterBank.load(tmp_path, "model")
    assert torch.equal(loaded.global_filters(0.0), bank.global_filters(0.0))
    with pytest.raises(UserError, match="heads-00000.safetensors does not exist: run the stage accumulate_filters"):
        loaded.local.minimum_correct(seen[0].activations, seen[1])


def test_heads_in_the_file_of_the_counts_are_refused_and_a_file_that_lacks_one_too(tmp_path: Path) -> None:
    counts = {"histogram": torch.ones(2, 3).long(), "magnitude": torch.ones(2, 3), "support": torch.ones(2).long()}
    save_tensors(tmp_path / FILE, counts | {"heads/weight": torch.ones(2, 3, 3)}, {"model": "m"})
    with pytest.raises(UserError, match="now lie in files of their own: run the stage accumulate_filters again"):
        FilterBank.load(tmp_path, "m")
    StoredHeads.written([FilterHeads(torch.zeros(2, 3, 3), torch.zeros(2, 3))], tmp_path, "m")
    with pytest.raises(UserError, match="lacks the head of class number 2"):
        StoredHeads(tmp_path).one(2)


@pytest.mark.parametrize("damage", ["magnitude", "support", "extra", "shape", "fewer classes"])
def test_damaged_filters_are_one_sentence(tmp_path: Path, damage: str) -> None:
    heads = FilterHeads(torch.zeros(2, 3, 3), torch.zeros(2, 3))
    bank = FilterBank(
        torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3), torch.ones(2, dtype=torch.int64), heads, "m"
    )
    bank.save(tmp_path)
    tensors, description = load_tensors(tmp_path / FILE, "accumulate_filters")
    match damage:
        case "extra":
            tensors["surprise"] = torch.ones(1)
        case "shape":
            tensors["magnitude"] = torch.ones(2, 2)
        case "fewer classes":
            tensors["support"] = tensors["support"][:1]
        case _:
            del tensors[damage]
    save_tensors(tmp_path / FILE, tensors, description)
    with pytest.raises(UserError, match="filters.safetensors is damaged .* run the stage accumulate_filters again"):
        FilterBank.load(tmp_path, "m")
