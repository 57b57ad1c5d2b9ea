"""What the tests of the search share: an untrained model that is always right, and the search as the paper says it."""

from dataclasses import replace

import torch

from everycause.data.images import normalized
from everycause.data.split import Split
from everycause.explanation.masks import MaskParams
from everycause.explanation.objectives import log_odds
from everycause.explanation.ranking import FidoParams
from everycause.explanation.regions import MaskedImages, grid
from everycause.explanation.search import SearchInputs
from everycause.inference import logits_of
from everycause.models import Classifier
from tests.conftest import make_classifier

PARAMS = MaskParams(
    selector="counterfactual",
    objective="deletion",
    search="fast",
    partition="grid",
    regions=16,
    baseline="mean",
    confidence=0.0,
    max_regions=4,
    images=20,
    shard=100,
    batch_size=32,
    precision="float32",
    compiled=False,
    fido=FidoParams(infill="baseline", steps=5, samples=2, learning_rate=0.05, sparsity=1e-3),
)


def undecided(train: Split, seed: int = 0) -> Classifier:
    """Untrained, with logits centered on the data, so that its predictions vary and flip."""
    made = make_classifier(seed)
    with torch.no_grad():
        made.network.get_classifier().bias.sub_(
            logits_of(made, replace(train, class_names=made.class_names)).mean(dim=0)
        )
    return made


def always_right(split: Split, classifier: Classifier, count: int = 24) -> Split:
    """A split on which the classifier is always right, so that there is something to search."""
    small = replace(split.subset(torch.arange(count).numpy()), class_names=classifier.class_names)
    return replace(small, labels=logits_of(classifier, small).argmax(dim=1))


def task_of(classifier: Classifier, split: Split, cells: int = 4, count: int = 12) -> SearchInputs:
    """The first images of a split as a task on a grid."""
    images = normalized(split.read(torch.arange(count).numpy()), classifier.statistics, torch.device("cpu"))
    with torch.inference_mode():
        logits = classifier(images).clone()
    labels = logits.argmax(dim=1)
    runner_up = logits.scatter(1, labels[:, None], -torch.inf).argmax(dim=1)
    return SearchInputs(
        MaskedImages(images, grid(split.image_size, cells)[None], cells**2, True),
        labels,
        runner_up,
        log_odds(logits, labels),
    )


def slow_search(
    classifier: Classifier, image: torch.Tensor, label: int, partition: torch.Tensor, steps: int
) -> tuple[list[int], bool, int]:
    """Exhaustive greedy deletion for one image, one candidate at a time, as the paper says it."""
    chosen: list[int] = []
    forwards = 0
    for _ in range(steps):
        scores = {}
        for region in range(int(partition.max()) + 1):
            if region not in chosen:
                probabilities = classifier(without(image, partition, [*chosen, region])[None])[0].softmax(dim=0)
                scores[region] = (float(probabilities[label]), int(probabilities.argmax()))
                forwards += 1
        chosen.append(min(scores, key=lambda region: (scores[region][0], region)))
        if scores[chosen[-1]][1] != label:
            return chosen, True, forwards
    return chosen, False, forwards


def without(image: torch.Tensor, partition: torch.Tensor, regions: list[int]) -> torch.Tensor:
    """An image with some regions set to the mean color, composed one after the other."""
    masked_images = image.clone()
    for removed in regions:
        masked_images[:, partition == removed] = 0
    return masked_images
