from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from everycause.explanation.filters import FilterBank, LinearHead, accumulate, quality
from everycause.explanation.heads import PENALTY, HeadParams, Heads, heads_loss, train_heads
from everycause.model import Readout

CLASSES, FILTERS, IMAGES = 3, 8, 60
PARAMS = HeadParams(sparsity=2.0, learning_rate=0.05, epochs=5, batch_size=16)
NAMES = ("a", "b", "c")


@pytest.fixture
def head() -> LinearHead:
    """Each class reads two filters of its own."""
    weight = torch.full((CLASSES, FILTERS), -0.2)
    for label in range(CLASSES):
        weight[label, 2 * label : 2 * label + 2] = 2.0
    return LinearHead(weight, torch.zeros(CLASSES))


@pytest.fixture
def seen(head: LinearHead) -> tuple[Readout, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(IMAGES) % CLASSES
    activations = torch.rand(IMAGES, FILTERS, generator=generator) * 0.3
    for row, label in enumerate(labels.tolist()):
        activations[row, 2 * label : 2 * label + 2] += 1.5
    return Readout(activations @ head.weight.T + head.bias, activations), labels


def slow_loss(heads: Heads, activations: torch.Tensor, head: LinearHead, sparsity: float) -> torch.Tensor:
    """The loss of every head as the paper writes it, one class at a time."""
    total = torch.zeros(())
    for label in range(CLASSES):
        gate = torch.sigmoid(activations @ heads.weight[label].T + heads.bias[label])
        mask = torch.where(gate > 0.5, gate, torch.zeros(()))
        logits = (activations * mask) @ head.weight.T + head.bias
        loss = cross_entropy(logits, torch.full((len(activations),), label))
        total = total + loss + sparsity * PENALTY * mask.abs().sum() - PENALTY * logits[:, label].sum()
    return total


def random_heads(seed: int = 0) -> Heads:
    generator = torch.Generator().manual_seed(seed)
    return Heads(torch.randn(CLASSES, FILTERS, FILTERS, generator=generator), torch.randn(CLASSES, FILTERS, generator=generator))


def test_the_batched_loss_is_the_sum_of_the_papers_losses(head: LinearHead, seen: tuple[Readout, torch.Tensor]) -> None:
    heads, activations = random_heads(), seen[0].activations[:16]
    assert torch.allclose(heads_loss(heads, activations, head.weight, head.bias, 2.0), slow_loss(heads, activations, head, 2.0), rtol=1e-5)


def test_heads_do_not_see_each_other(head: LinearHead, seen: tuple[Readout, torch.Tensor]) -> None:
    heads = random_heads()
    other = Heads(heads.weight.clone(), heads.bias.clone())
    other.weight[1:] += 1
    gradients = []
    for some in (heads, other):
        weight = some.weight.requires_grad_()
        heads_loss(Heads(weight, some.bias), seen[0].activations, head.weight, head.bias, 2.0).backward()
        gradients.append(weight.grad[0])
    assert torch.equal(*gradients)


def test_the_mask_at_use_is_where_the_gate_exceeds_one_half(seen: tuple[Readout, torch.Tensor]) -> None:
    heads, (readout, labels) = random_heads(), seen
    gates = heads.gates(readout.activations)[labels, torch.arange(IMAGES)]
    sure = (gates - 0.5).abs() > 1e-6
    assert torch.equal(heads.minimum_correct(readout.activations, labels)[sure], (gates > 0.5)[sure])


def test_trained_heads_keep_the_prediction_with_few_filters(head: LinearHead, seen: tuple[Readout, torch.Tensor]) -> None:
    readout, labels = seen
    heads = train_heads(readout.activations, head.weight, head.bias, PARAMS.model_copy(update={"epochs": 60}), 0)
    measures = quality(heads, head, readout, labels, 0.5, 0)
    assert measures["mc_keep_rate"] > 0.95 and measures["filters_per_image"] < FILTERS
    assert measures["mc_disable_flip_rate"] > measures["random_disable_flip_rate"]
    again = train_heads(readout.activations, head.weight, head.bias, PARAMS.model_copy(update={"epochs": 60}), 0)
    assert torch.equal(heads.weight, again.weight)


def slow_accumulate(heads: Heads, head: LinearHead, readout: Readout, labels: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
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


def test_the_bank_is_that_of_the_slow_reference(head: LinearHead, seen: tuple[Readout, torch.Tensor]) -> None:
    readout, labels = seen
    heads = train_heads(readout.activations, head.weight, head.bias, PARAMS, 0)
    bank = accumulate(heads, head, readout, labels, NAMES, 0.9, "model")
    histogram, magnitude, support = slow_accumulate(heads, head, readout, labels, 0.9)
    assert torch.equal(bank.histogram.float(), histogram) and torch.allclose(bank.magnitude, magnitude, atol=1e-4) and bank.support.tolist() == support


def test_permuting_the_classes_permutes_the_rows(head: LinearHead, seen: tuple[Readout, torch.Tensor]) -> None:
    (readout, labels), order = seen, torch.tensor([2, 0, 1])
    heads = train_heads(readout.activations, head.weight, head.bias, PARAMS, 0)
    bank = accumulate(heads, head, readout, labels, NAMES, 0.5, "model")
    moved = accumulate(
        Heads(heads.weight[order], heads.bias[order]), LinearHead(head.weight[order], head.bias[order]),
        Readout(readout.logits[:, order], readout.activations), order.argsort()[labels], NAMES, 0.5, "model",
    )  # fmt: skip
    assert torch.equal(moved.histogram, bank.histogram[order]) and torch.equal(moved.support, bank.support[order])


def test_thresholds_are_views_and_a_higher_one_keeps_a_subset(tmp_path: Path) -> None:
    bank = FilterBank(torch.tensor([[10, 1, 0], [4, 2, 4]]), torch.rand(2, 3), torch.tensor([10, 4]), random_heads(), "model")
    assert bank.global_filters(0.0).tolist() == [[True, True, False], [True, True, True]]
    assert bank.global_filters(0.15).tolist() == [[True, False, False], [True, True, True]]
    assert bank.global_filters(0.5).tolist() == [[True, False, False], [True, False, True]]
    bank.save(tmp_path)
    loaded = FilterBank.load(tmp_path, "model")
    assert torch.equal(loaded.histogram, bank.histogram) and torch.equal(loaded.heads.weight, bank.heads.weight)
    with pytest.raises(ValueError, match="made for another model"):
        FilterBank.load(tmp_path, "other")


def test_a_class_without_confident_images_is_named(head: LinearHead, seen: tuple[Readout, torch.Tensor]) -> None:
    readout, labels = seen
    unsure = Readout(torch.where(labels[:, None] == 1, readout.logits * 0.01, readout.logits), readout.activations)
    with pytest.raises(ValueError, match="the class 'b' has no training image .* p ≥ 0.9"):
        accumulate(train_heads(readout.activations, head.weight, head.bias, PARAMS, 0), head, unsure, labels, NAMES, 0.9, "model")


def test_a_diverging_head_is_one_sentence(head: LinearHead, seen: tuple[Readout, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="lower filters.heads.learning_rate"):
        train_heads(seen[0].activations * 1e20, head.weight * 1e20, head.bias, PARAMS.model_copy(update={"learning_rate": 1e30}), 0)
