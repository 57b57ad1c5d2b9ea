"""Which images of a split are searched: those predicted correctly and with confidence, evenly over the classes.

Memory does not grow with the number of classes.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from everycause import ranks
from everycause.data.split import Split, batches, parts
from everycause.errors import UserError
from everycause.inference import batch_size, logits_of_images
from everycause.models import Classifier
from everycause.shapes import Int64


class ImageSelection(NamedTuple):
    """The images of a split that are searched, and why others are not."""

    index: Int64[Tensor, "chosen"]
    """In the split, in order."""
    counts: Int64[Tensor, "3"]
    """Images looked at, predicted wrongly, predicted rightly but without confidence."""


def select_images(classifier: Classifier, split: Split, confidence: float, images: int) -> ImageSelection:
    """The images that are predicted correctly with more than `confidence`, at most `images`, evenly over the classes.

    Several processes divide the images among them, in the batches of one.

    Raises:
        UserError: there are none.
    """

    def judged(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        (batch,) = batches(split, len(rows), rows)
        probability, prediction = logits_of_images(classifier, batch.images).softmax(dim=1).max(dim=1)
        correct = prediction == batch.labels
        return correct, correct & (probability > confidence)

    found = ranks.mapped(judged, parts(len(split), 8 * batch_size(classifier)))
    right, eligible = (torch.cat(columns) for columns in zip(*found, strict=True))
    counts = torch.tensor([len(right), int((~right).sum()), int((right & ~eligible).sum())])
    index = evenly_over_classes(eligible.nonzero()[:, 0], split.labels, images)
    if len(index) == 0:
        remedy = "train longer or lower masks.confidence" if bool(right.any()) else "train longer"
        raise UserError(f"no image of '{split.name}' is predicted correctly with p(y) > {confidence}: {remedy}")
    return ImageSelection(index, counts)


def evenly_over_classes(
    index: Int64[Tensor, "eligible"], labels: Int64[Tensor, "images"], count: int
) -> Int64[Tensor, "chosen"]:
    """At most `count` of some images, in index order.

    The first image of every class is taken, then the second of every class, and so on.
    """
    return index[rank_in_class(labels[index]).argsort(stable=True)[:count]].sort().values


def rank_in_class(labels: Int64[Tensor, "images"]) -> Int64[Tensor, "images"]:
    """How many images of its own class stand before each image."""
    by_class, sizes = labels.argsort(stable=True), torch.bincount(labels)
    rank = torch.empty_like(labels)
    rank[by_class] = torch.arange(len(labels)) - (sizes.cumsum(dim=0) - sizes)[labels[by_class]]
    return rank
