from pathlib import Path

import pytest
import torch

from everycause.data.batches import normalized
from everycause.data.split import Split
from everycause.explanation.masks import MaskParams, Masks, evenly_over_classes, generate, search
from everycause.explanation.regions import grid, random_sets
from everycause.hooks import evaluating
from everycause.inference import logits_of
from everycause.model import Classifier
from tests.conftest import make_classifier

PARAMS = MaskParams(objective="deletion", grid=4, fill="mean", confidence=0.0, max_regions=4, images=20, batch_size=32)


@pytest.fixture
def classifier(train: Split) -> Classifier:
    """Untrained, with logits centered on the data, so that its predictions vary and flip."""
    made = make_classifier()
    with torch.no_grad():
        made.network.get_classifier().bias.sub_(logits_of(made, train).mean(dim=0))
    return made


@pytest.fixture
def relabelled(train: Split, classifier: Classifier) -> Split:
    """A split on which the untrained classifier is always right, so that there is something to search."""
    small = train.subset(torch.arange(24).numpy())
    return Split(small.name, logits_of(classifier, small).argmax(dim=1), classifier.class_names, small.image_size, small.read, small.identity)


def slow_search(classifier: Classifier, image: torch.Tensor, label: int, partition: torch.Tensor, steps: int) -> tuple[list[int], bool, int]:
    """Exhaustive greedy deletion for one image, one candidate at a time, as the paper says it."""
    chosen: list[int] = []
    forwards = 0
    for _ in range(steps):
        scores = {}
        for region in range(int(partition.max()) + 1):
            if region not in chosen:
                masked = image.clone()
                for removed in [*chosen, region]:
                    masked[:, partition == removed] = 0
                probabilities = classifier(masked[None])[0].softmax(dim=0)
                scores[region] = (float(probabilities[label]), int(probabilities.argmax()))
                forwards += 1
        chosen.append(min(scores, key=lambda region: (scores[region][0], region)))
        if scores[chosen[-1]][1] != label:
            return chosen, True, forwards
    return chosen, False, forwards


def test_the_search_finds_what_the_slow_reference_finds(classifier: Classifier, relabelled: Split) -> None:
    masks = generate(classifier, relabelled, PARAMS, "model")
    assert masks.flipped.sum() > 0
    for row, index in enumerate(masks.index[:8].tolist()):
        image = normalized(relabelled.read(torch.tensor([index]).numpy()), classifier.statistics, torch.device("cpu"))[0]
        with torch.inference_mode():
            order, flipped, forwards = slow_search(classifier, image, int(relabelled.labels[index]), masks.partition, PARAMS.largest_set)
        assert masks.order[row][masks.order[row] >= 0].tolist() == order
        assert (bool(masks.flipped[row]), int(masks.forwards[row])) == (flipped, forwards)


def test_a_stored_flip_is_a_flip_and_none_comes_earlier(classifier: Classifier, relabelled: Split) -> None:
    masks = generate(classifier, relabelled, PARAMS, "model")
    images = normalized(relabelled.read(masks.index.numpy()), classifier.statistics, torch.device("cpu"))
    labels = relabelled.labels[masks.index]
    with torch.inference_mode():
        for steps in range(1, PARAMS.largest_set + 1):
            prefix = torch.where(torch.arange(PARAMS.largest_set) < steps, masks.order, -1)
            visible = ~(prefix[:, :, None, None] == masks.partition).any(dim=1)
            prediction = classifier(images * visible[:, None]).argmax(dim=1)
            ended = masks.sizes <= steps
            assert torch.equal((prediction != labels) & (masks.sizes == steps), masks.flipped & (masks.sizes == steps))
            assert (prediction == labels)[~ended].all()
    probabilities = classifier(images * ~masks.removed[:, masks.partition][:, None]).softmax(dim=1)
    assert torch.allclose(probabilities.gather(1, labels[:, None])[:, 0], masks.after[:, 0], atol=1e-5)


@pytest.mark.parametrize("batch_size", (1, 7, 500))
def test_neither_the_batch_size_nor_the_other_images_matter(classifier: Classifier, relabelled: Split, batch_size: int) -> None:
    masks = generate(classifier, relabelled, PARAMS, "model")
    other = generate(classifier, relabelled, PARAMS.model_copy(update={"batch_size": batch_size}), "model")
    assert torch.equal(masks.order, other.order) and torch.equal(masks.flipped, other.flipped)
    alone = generate(classifier, relabelled.subset(masks.index[3:4].numpy()), PARAMS, "model")
    assert torch.equal(alone.order[0], masks.order[3]) and torch.equal(alone.after[0], masks.after[3])


def test_equal_scores_go_to_the_lowest_region(relabelled: Split) -> None:
    blind = make_classifier(classes=4)
    with torch.no_grad():
        blind.network.get_classifier().weight.zero_()
        blind.network.get_classifier().bias.copy_(torch.tensor([2.0, 1.0, 0.0, 0.0]))
    images = normalized(relabelled.read(torch.arange(3).numpy()), blind.statistics, torch.device("cpu"))
    zeros = torch.zeros(3, dtype=torch.int64)
    found = search(blind, images, zeros, zeros + 1, torch.full((3,), 0.6), grid(32, 4), PARAMS)
    assert found.order.tolist() == [[0, 1, 2, 3]] * 3 and not found.flipped.any()


def test_a_set_never_has_more_than_a_quarter_of_the_regions() -> None:
    sizes = [PARAMS.model_copy(update={"grid": cells, "max_regions": 10}).largest_set for cells in (2, 3, 4, 6, 7)]
    assert sizes == [1, 2, 4, 9, 10]


def test_the_single_effects_are_the_changes_of_probability(classifier: Classifier, relabelled: Split) -> None:
    masks = generate(classifier, relabelled, PARAMS, "model")
    image = normalized(relabelled.read(masks.index[:1].numpy()), classifier.statistics, torch.device("cpu"))
    label = relabelled.labels[masks.index[0]]
    with torch.inference_mode():
        for region in range(16):
            masked = classifier(image * (masks.partition != region)).softmax(dim=1)[0, label]
            assert masks.effect[0, region] == pytest.approx(abs(float(masks.before[0, 0] - masked)), abs=1e-5)


def test_masks_are_saved_whole_and_refused_for_another_model(tmp_path: Path, classifier: Classifier, relabelled: Split) -> None:
    masks = generate(classifier, relabelled, PARAMS, "this model")
    masks.save(tmp_path)
    loaded = Masks.load(tmp_path, "this model")
    assert all(torch.equal(value, getattr(masks, name)) for name, value in vars(loaded).items() if isinstance(value, torch.Tensor))
    assert loaded.summary() == masks.summary()
    with pytest.raises(ValueError, match="made for another model"):
        Masks.load(tmp_path, "that model")


def test_the_search_leaves_the_model_as_it_was(classifier: Classifier, relabelled: Split) -> None:
    classifier.train()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    requires = [value.requires_grad for value in classifier.parameters()]
    with evaluating(classifier):
        pass
    generate(classifier, relabelled, PARAMS.model_copy(update={"images": 2}), "model")
    assert classifier.training and [value.requires_grad for value in classifier.parameters()] == requires
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())


def test_nothing_to_search_and_too_fine_a_grid_are_one_sentence(classifier: Classifier, relabelled: Split) -> None:
    with pytest.raises(ValueError, match="lower masks.confidence"):
        generate(classifier, relabelled, PARAMS.model_copy(update={"confidence": 0.999999}), "model")
    with pytest.raises(ValueError, match="smaller than the region grid"):
        grid(8, 9)


def test_images_are_chosen_evenly_over_the_classes() -> None:
    labels = torch.tensor([0] * 6 + [1] * 2 + [2] * 4)
    everything = torch.arange(12)
    assert evenly_over_classes(everything, labels, 6).tolist() == [0, 1, 6, 7, 8, 9]
    assert evenly_over_classes(everything, labels, 9).tolist() == [0, 1, 2, 3, 6, 7, 8, 9, 10]
    assert torch.equal(evenly_over_classes(everything, labels, 50), everything)
    assert evenly_over_classes(everything[3:], labels, 3).tolist() == [3, 6, 8]


@pytest.mark.parametrize(("size", "cells"), [(32, 4), (33, 4), (64, 6), (7, 7)])
def test_a_grid_is_a_partition_into_nearly_equal_rectangles(size: int, cells: int) -> None:
    partition = grid(size, cells)
    counts = partition.flatten().bincount()
    assert len(counts) == cells**2 and counts.min() >= (size // cells) ** 2 and counts.max() <= (size // cells + 1) ** 2
    for region in range(cells**2):
        rows, columns = (partition == region).nonzero(as_tuple=True)
        assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)


def test_random_sets_have_the_given_sizes_and_cover_evenly() -> None:
    sizes = torch.arange(5).repeat(400)
    sets = random_sets(sizes, 16, 0)
    assert torch.equal(sets.sum(dim=1), sizes) and torch.equal(sets, random_sets(sizes, 16, 0))
    assert sets.float().mean(dim=0).sub(2 / 16).abs().max() < 0.03
