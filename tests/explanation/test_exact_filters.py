"""The exact sets against every subset of up to twelve filters."""

from itertools import product

import pytest
import torch
from torch import Tensor

from everycause.explanation import exact_filters as module
from everycause.explanation.exact_filters import ExactFilters, necessary, sufficient
from everycause.explanation.heads import LastLayer


def problem(filters: int, classes: int, seed: int, bias: float = 0.5) -> tuple[Tensor, Tensor, LastLayer]:
    generator = torch.Generator().manual_seed(seed)
    activations = torch.rand(30, filters, generator=generator) * (torch.rand(30, filters, generator=generator) > 0.3)
    head = LastLayer(
        torch.randn(classes, filters, generator=generator), bias * torch.randn(classes, generator=generator)
    )
    labels = head.predictions(activations)
    labels[:8] = torch.randint(classes, (8,), generator=generator)  # some that the classifier does not predict
    return activations, labels, head


def brute_force(activation: Tensor, label: int, head: LastLayer, kind: str) -> int | None:
    """The smallest size over all subsets; None where no subset does it."""
    subsets = torch.tensor(list(product([False, True], repeat=len(activation))))
    logits = (
        activation * (subsets if kind == "sufficient" else ~subsets)
    ).double() @ head.weight.double().T + head.bias.double()
    others = logits.clone()
    others[:, label] = -torch.inf
    does = logits[:, label] > others.amax(dim=1) if kind == "sufficient" else logits[:, label] < others.amax(dim=1)
    return int(subsets.sum(dim=1)[does].min()) if bool(does.any()) else None


@pytest.mark.parametrize("kind", ["sufficient", "necessary"])
@pytest.mark.parametrize(("filters", "classes", "seed"), [(1, 2, 0), (5, 3, 1), (8, 6, 2), (12, 4, 3), (12, 9, 4)])
def test_the_sets_are_as_small_as_any_subset(kind: str, filters: int, classes: int, seed: int) -> None:
    activations, labels, head = problem(filters, classes, seed)
    found = (sufficient if kind == "sufficient" else necessary)(activations, labels, head)
    for row, label in enumerate(labels.tolist()):
        size = brute_force(activations[row], label, head, kind)
        assert bool(found.exists[row]) == (size is not None) and int(found.chosen[row].sum()) == (size or 0)


@pytest.mark.parametrize("seed", range(3))
def test_the_sets_do_what_they_are_for(seed: int) -> None:
    activations, labels, head = problem(40, 10, seed)
    kept, gone = sufficient(activations, labels, head), necessary(activations, labels, head)
    assert torch.equal(
        (head.predictions(activations * kept.chosen) == labels)[kept.exists],
        torch.ones(int(kept.exists.sum()), dtype=torch.bool),
    )
    assert not (head.predictions(activations * ~gone.chosen) == labels)[gone.exists].any()
    assert kept.exists[8:].all()  # a prediction has a sufficient set: all filters


def test_integer_programming_is_asked_only_where_the_bound_is_not_met(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, real = [], module._solved
    monkeypatch.setattr(module, "_solved", lambda *arguments: asked.append(1) or real(*arguments))
    activations, labels, head = problem(20, 2, 0)
    sufficient(activations[8:], labels[8:], head)
    assert not asked  # with two classes there is one rival, and sorting its margins is exact


def test_a_class_that_wins_without_any_filter_needs_none_and_one_that_cannot_lose_has_no_set() -> None:
    head = LastLayer(torch.ones(2, 3), torch.tensor([1.0, 0.0]))
    activations, labels = torch.rand(4, 3), torch.zeros(4, dtype=torch.int64)
    assert sufficient(activations, labels, head).exists.all() and not sufficient(activations, labels, head).chosen.any()
    assert (
        not necessary(activations, labels, head).exists.any() and not necessary(activations, labels, head).chosen.any()
    )


def test_permuting_the_filters_permutes_the_sets_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    activations, labels, head = problem(12, 4, 7)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    moved = LastLayer(head.weight[:, order], head.bias)
    assert torch.equal(
        necessary(activations[:, order], labels, moved).chosen, necessary(activations, labels, head).chosen[:, order]
    )
    usual = sufficient(activations, labels, head)
    assert torch.equal(sufficient(activations[:, order], labels, moved).chosen.sum(dim=1), usual.chosen.sum(dim=1))
    monkeypatch.setattr(module, "CHUNK", 7)
    assert torch.equal(ExactFilters("sufficient", head).minimum_correct(activations, labels), usual.chosen)


def test_the_bound_is_what_the_most_demanding_rival_asks_for() -> None:
    margin = torch.tensor([[[3.0, 2.0, 1.0], [1.0, 1.0, 1.0]], [[1.0, -5.0, 1.0], [0.0, 0.0, 0.0]]]).double()
    lead = torch.tensor([[-4.5, -0.5], [0.0, 1.0]]).double()
    assert module._bound(margin, lead).tolist() == [2, 1]  # 3 + 2 > 4.5; a lead of 0 needs one, a lead of 1 none
    assert module._bound(margin, lead - 100).tolist() == [4, 4]  # out of reach: more than there are
