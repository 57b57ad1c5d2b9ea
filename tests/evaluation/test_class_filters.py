"""What figures of a filter bank are drawn from."""

import dataclasses

import numpy as np
import pytest
import torch

from codebirds.codes import Code
from everycause.data.split import Split
from everycause.evaluation.class_filters import (
    IMAGES,
    TOP,
    filter_pictures,
    filters_on_images,
    layer_maps,
    overlap,
    overlap_by_shared_parts,
    overlap_measures,
    top_filters,
)
from everycause.explanation.exact_filters import ExactFilters
from everycause.explanation.filters import FilterBank
from everycause.explanation.heads import LastLayer
from everycause.models import Classifier
from tests.conftest import MODEL, STATISTICS


def bank_of(histogram: list[list[int]]) -> FilterBank:
    counts = torch.tensor(histogram)
    local = ExactFilters("necessary", LastLayer(torch.zeros(1, 1), torch.zeros(1)))
    return FilterBank(counts, counts * 0.5, torch.full((len(counts),), 10), local, "model")


def test_overlap_is_shared_over_all_filters_of_two_classes() -> None:
    bank = bank_of([[9, 9, 0, 0], [9, 0, 9, 0], [0, 0, 1, 9]])
    shared = overlap(bank.global_filters(0.15))
    assert np.allclose(shared, [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]])
    assert np.allclose(overlap(bank.global_filters(0.0))[1, 2], 1 / 3)


def test_overlap_is_averaged_over_pairs_with_as_many_parts_in_common() -> None:
    code = Code(3, 2, 2)
    everywhere = overlap_by_shared_parts(np.full((4, 4), 0.25), code)
    assert set(everywhere.values()) == {0.25} and max(everywhere) < code.length
    assert overlap_measures(torch.ones(4, 5, dtype=torch.bool), code) == {"overlap/1": 1.0, "overlap/random": 1.0}


def test_top_filters_go_by_count_and_then_by_activation() -> None:
    bank = dataclasses.replace(bank_of([[3, 9, 9, 1]]), magnitude=torch.tensor([[9.0, 1.0, 2.0, 9.0]]))
    assert top_filters(bank, 0, 3).tolist() == [2, 1, 0]


@pytest.mark.parametrize(("name", "layer"), [("resnet10t", "layer4"), ("test_vit", "maps")])
def test_filters_are_shown_where_they_have_places(train: Split, name: str, layer: str) -> None:
    head = "linear" if layer == "maps" else "published"
    params = MODEL.model_copy(update={"name": name, "explained_layer": layer, "head": head})
    classifier = Classifier(params, train.class_names, 64, STATISTICS).eval()
    larger = Split(
        "train",
        train.labels,
        train.class_names,
        64,
        lambda index: train.read(index).repeat_interleave(2, 2).repeat_interleave(2, 3),
        "twice",
    )
    count = classifier.head()[0].shape[1]
    histogram = torch.randint(0, 9, (4, count), generator=torch.Generator().manual_seed(0))
    bank = dataclasses.replace(bank_of(histogram.tolist()), magnitude=histogram.float())
    tensors, description = filters_on_images(classifier, bank, larger, [0, 2], 0.15)
    assert tensors["images"].shape == (2 * IMAGES, 3, 64, 64) and tensors["maps"].shape[:2] == (2 * IMAGES, 1 + TOP)
    assert [len(titles) for titles in description["titles"]] == [2 + TOP] * 2 * IMAGES
    maps, (best, *_) = layer_maps(classifier, tensors["images"]), top_filters(bank, 2, TOP)
    assert torch.equal(tensors["maps"][IMAGES, 1], maps[IMAGES, best])
    weight, filters = classifier.head()[0], bank.global_filters(0.15)
    slow = sum(weight[2, k] * maps[IMAGES, k] for k in filters[2].nonzero()[:, 0].tolist()).clamp_min(0)
    assert torch.allclose(tensors["maps"][IMAGES, 0], slow, atol=1e-5)


def test_filters_without_places_have_counts_and_no_maps(train: Split, classifier: Classifier) -> None:
    count = classifier.head()[0].shape[1]
    bank = bank_of(torch.ones(4, count, dtype=torch.int64).tolist())
    tensors, description = filter_pictures(classifier, bank, train, 0.15)
    assert torch.equal(tensors["shares"], torch.full((4, count), 0.1)) and (tensors["overlap"] == 1).all()
    assert ("maps" in tensors) == bool(classifier.places()) == bool(description["titles"])
