"""Example pictures for reports: training images, what was replaced, and how two models see them before and after."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from everycause.artifacts import save_tensors
from everycause.data.images import Images
from everycause.data.sources import DataParams, renderer
from everycause.data.split import Split
from everycause.inference import logits_of_images
from everycause.models import Classifier
from everycause.shapes import Bool, Int64, UInt8
from everycause.training.counterfactuals import Removals
from everycause.training.steps import Counterfactuals

FILE = "pictures.safetensors"
MOST_PICTURES = 24
"""Example pictures of a row, each of another class."""
NO_PART = 255
"""Value of pixels without a part."""


class Pictures(NamedTuple):
    """Training images beside one of their counterfactual images."""

    index: Int64[Tensor, "batch"]
    """Their place in the training split."""
    labels: Int64[Tensor, "batch"]
    images: Images
    removed: Bool[Tensor, "batch height width"]
    """The pixels that were replaced."""
    counterfactuals: Images
    titles: list[str]
    """The class of each image."""


def example_pictures(counterfactuals: Counterfactuals, split: Split, seed: int) -> Pictures | None:
    """One counterfactual image for each of at most MOST_PICTURES classes; None if no image has any.

    They are drawn with a generator of their own, so that training is not affected.
    """
    first: dict[int, int] = {}
    for index, label in enumerate(split.labels.tolist()):
        if label not in first and counterfactuals.covers(index):
            first[label] = index
            if len(first) == MOST_PICTURES:
                break
    if not first:
        return None
    index = torch.tensor(list(first.values()))
    images, labels = split.read(index.numpy()), split.labels[index]
    replaced, _ = counterfactuals.composed(index, images, labels, torch.Generator().manual_seed(seed))
    if isinstance(counterfactuals, Removals):
        removed = counterfactuals.removed(index, torch.Generator().manual_seed(seed))  # the same draws again
    else:
        removed = (replaced != images).any(dim=1)
    return Pictures(index, labels, images, removed, replaced, [split.class_names[label] for label in first])


def decisions(classifier: Classifier, pictures: Pictures) -> list[dict[str, Any]]:
    """How a model sees each image and its counterfactual image: p of the label, and the class that it predicts."""
    found: list[dict[str, Any]] = [{} for _ in pictures.titles]
    for name in ("images", "counterfactuals"):
        probabilities = logits_of_images(classifier, getattr(pictures, name)).softmax(dim=1)
        for one, label, row in zip(found, pictures.labels.tolist(), probabilities, strict=True):
            one[name] = {"probability": float(row[label]), "class": classifier.class_names[int(row.argmax())]}
    return found


def parts_of(pictures: Pictures, data: DataParams, threads: int) -> UInt8[Tensor, "batch height width"] | None:
    """The part of the object at each pixel, NO_PART beside them; None where nobody knows the parts."""
    if data.code is None:
        return None
    birds = renderer(data, threads)
    masks = torch.from_numpy(birds.part_masks(birds.factors("train", pictures.index.numpy())))
    return torch.where(masks.any(dim=1), masks.to(torch.uint8).argmax(dim=1), NO_PART).to(torch.uint8)


def save_pictures(
    folder: Path, pictures: Pictures, models: dict[str, Classifier], data: DataParams, threads: int
) -> None:
    """Write example pictures, the parts of their objects where they are known, and what each model sees."""
    parts = parts_of(pictures, data, threads)
    tensors = {name: getattr(pictures, name) for name in ("images", "removed", "counterfactuals")}
    seen = {row: decisions(model, pictures) for row, model in models.items()}
    tensors |= {} if parts is None else {"parts": parts}
    save_tensors(folder / FILE, tensors, {"titles": pictures.titles, "seen": seen})
