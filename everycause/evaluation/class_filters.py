"""What the report shows of a filter bank: how classes share filters, and where the filters of a class look."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from codebirds.codes import Code
from everycause.data.images import normalized
from everycause.data.split import Split
from everycause.explanation.filters import FilterBank, random_like
from everycause.models import Classifier
from everycause.networks import evaluating
from everycause.shapes import Bool, Float, Int64

PICTURES = "pictures.safetensors"
CLASSES, IMAGES, TOP = 3, 2, 4
"""Classes whose filters are shown on images, images of each, filters of each."""


def overlap(filters: Bool[Tensor, "classes filters"]) -> Float[np.ndarray, "classes classes"]:
    """The Jaccard overlap of the filters of two classes: shared ones over all of both, in [0, 1]."""
    sets = filters.double()
    both, sizes = sets @ sets.T, sets.sum(dim=1)
    return (both / (sizes[:, None] + sizes - both).clamp_min(1)).numpy()


def overlap_by_shared_parts(shared: Float[np.ndarray, "classes classes"], code: Code) -> dict[int, float]:
    """The mean overlap of pairs of classes by the number of parts that their codewords have in common."""
    upper = np.triu_indices(len(shared), 1)
    common = (code.words[:, None] == code.words[None]).sum(axis=2)[upper]
    return {int(count): float(shared[upper][common == count].mean()) for count in np.unique(common)}


def overlap_measures(filters: Bool[Tensor, "classes filters"], code: Code) -> dict[str, float]:
    """The mean overlap by parts in common, and that of random filters: do classes share filters as they share parts?"""
    measured = overlap_by_shared_parts(overlap(filters), code)
    chance = overlap_by_shared_parts(overlap(random_like(filters, 0)), code)
    result = {f"overlap/{count}": value for count, value in measured.items()}
    return result | {"overlap/random": float(np.mean(list(chance.values())))}


def top_filters(bank: FilterBank, label: int, count: int) -> Int64[Tensor, "filters"]:
    """The filters that most images of a class need; ties go to the larger activation."""
    order = bank.magnitude[label].argsort(descending=True, stable=True)
    return order[bank.histogram[label][order].argsort(descending=True, stable=True)][:count]


@torch.no_grad()
def layer_maps(classifier: Classifier, images: Tensor) -> Float[Tensor, "images filters rows columns"]:
    """The output of the explained layer as maps, on the CPU."""
    with evaluating(classifier):
        shown = normalized(images, classifier.statistics, classifier.device)
        return classifier.as_maps(classifier.layer_output(shown).output).cpu()


def filters_on_images(
    classifier: Classifier, bank: FilterBank, split: Split, labels: list[int], frequency_threshold: float
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Images of some classes with maps of their filters, as tensors, and the titles of the columns.

    Returns:
        `images`, and `maps` of the explained layer for each image: first the class activation map of all global filters
        of the class, then the class's top filters one by one. A description with the `titles` of each image's columns.
    """
    weight, filters = classifier.head()[0].cpu(), bank.global_filters(frequency_threshold)
    pictures, maps, titles = [], [], []
    for label in labels:
        own, best = (split.labels == label).nonzero()[:IMAGES, 0], top_filters(bank, label, TOP)
        images = split.read(own.numpy())
        found = layer_maps(classifier, images)
        together = torch.einsum("ikhw,k->ihw", found, weight[label] * filters[label]).relu()
        pictures.append(images)
        maps.append(torch.cat([together[:, None], found[:, best]], dim=1))
        named = [f"{number}: {bank.shares[label, number]:.0%}" for number in best.tolist()]
        titles += [[split.class_names[label], "its filters", *named]] * len(images)
    return {"images": torch.cat(pictures), "maps": torch.cat(maps)}, {"titles": titles}


def filter_pictures(
    classifier: Classifier, bank: FilterBank, split: Split, frequency_threshold: float
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that figures of a filter bank are drawn from, as tensors and a description.

    Returns:
        `shares` (the share of a class's images that need a filter), `overlap` of classes, and where filters have places
        in the image `images` and `maps` as filters_on_images gives them.
    """
    tensors = {
        "shares": bank.shares,
        "overlap": torch.from_numpy(overlap(bank.global_filters(frequency_threshold))),
    }
    if not classifier.places():
        return tensors, {"titles": []}
    labels = list(range(min(CLASSES, split.num_classes)))
    images, description = filters_on_images(classifier, bank, split, labels, frequency_threshold)
    return tensors | images, description
