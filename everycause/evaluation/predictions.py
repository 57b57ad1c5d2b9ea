"""Stored predictions: what a classifier answers to every test image of every view.

A view is one set of images to evaluate on: the test split, or one shifted split. Views of a family share the part of
their name before the slash, as corruptions/fog/3 and corruptions/snow/1 do. Metrics, tables and intervals are all
computed from what is stored here. Logits are not: 75 corruptions of the 50,000 images of ImageNet have 15 GB of them,
and four numbers per image say all that is asked.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from everycause.artifacts import load_tensors, save_tensors
from everycause.errors import UserError
from everycause.shapes import Bool, Float, Int64

FILE = "predictions.safetensors"


class Answers(NamedTuple):
    """What a classifier answers to the images of a view."""

    labels: Int64[Tensor, "images"]
    """The true classes."""
    predicted: Int64[Tensor, "images"]
    """The classes with the largest logit."""
    confidence: Float[Tensor, "images"]
    """The softmax probability of the prediction, in float64."""
    rank: Int64[Tensor, "images"]
    """How many classes have a larger logit than the true one; of equal logits that of the later class counts as larger,
    as in scikit-learn's top-k accuracy."""

    @property
    def correct(self) -> Bool[Tensor, "images"]:
        """Which images are classified correctly."""
        return self.predicted == self.labels

    @classmethod
    def joined(cls, parts: list["Answers"]) -> "Answers":
        """The answers to several batches of images."""
        return cls(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def answers(scores: Float[Tensor, "images classes"], labels: Int64[Tensor, "images"]) -> Answers:
    """What the logits of some images say; minus infinity stands for a class that is no possible answer."""
    own = scores.gather(1, labels[:, None])
    later = torch.arange(scores.shape[1]) > labels[:, None]
    rank = ((scores > own) | (scores == own) & later).sum(dim=1)
    return Answers(labels, scores.argmax(dim=1), scores.double().softmax(dim=1).amax(dim=1), rank)


def restricted(
    logits: Float[Tensor, "images classes"], among: Int64[Tensor, "answers"] | None
) -> Float[Tensor, "images classes"]:
    """Logits in which classes that are no possible answer have minus infinity; None allows all classes."""
    if among is None:
        return logits
    return torch.full_like(logits, -torch.inf).index_copy_(1, among, logits[:, among])


@dataclass(frozen=True)
class Predictions:
    """The answers of a classifier on every view."""

    views: Mapping[str, Answers]
    """By view, in the order in which the views were evaluated."""
    classes: int
    """Number of classes of the data."""
    conforms: Bool[Tensor, "images"] | None = None
    """Whether the scene of each test image is its class's own; None where that is not known."""
    groups: Int64[Tensor, "images"] | None = None
    """The group of each test image, where the data set names groups."""
    among: dict[str, Int64[Tensor, "answers"]] = field(default_factory=dict)
    """By view, the classes among which the answer is sought, where they are not all."""
    compared: Int64[Tensor, "images"] | None = None
    """The prediction of each test image among the classes of a view that knows these alone, where there is one."""
    released: bool = False
    """Whether the corrupted images are the published ones, not made here."""

    def labels(self, view: str) -> Int64[Tensor, "images"]:
        """The true class of each image of a view."""
        return self.views[view].labels

    def correct(self, view: str) -> Bool[Tensor, "images"]:
        """Which images of a view are classified correctly."""
        return self.views[view].correct

    def accuracy(self, view: str) -> float:
        """The share of a view's images that are classified correctly."""
        return float(self.correct(view).double().mean())

    def family(self, name: str) -> list[str]:
        """The views of a family: the view of that name, or those whose names begin with it and a slash."""
        return [view for view in self.views if view == name or view.startswith(name + "/")]

    def correctness(self, family: str) -> Float[np.ndarray, "images"]:
        """For each image the share of a family's views in which it is classified correctly."""
        views = self.family(family)
        total = sum((self.correct(view).double() for view in views[1:]), self.correct(views[0]).double())
        return (total / len(views)).numpy()

    def recalls(self, family: str) -> Float[np.ndarray, "classes"]:
        """For each class the share of its images that is classified correctly, over all views of a family.

        A class without images gets NaN.
        """
        hits, images = torch.zeros(self.classes, dtype=torch.float64), torch.zeros(self.classes, dtype=torch.int64)
        for view in self.family(family):
            answered = self.views[view]
            hits.index_add_(0, answered.labels, answered.correct.double())
            images += torch.bincount(answered.labels, minlength=self.classes)
        return (hits / images).numpy()

    def save(self, folder: Path) -> None:
        """Write everything into a folder, as one file."""
        tensors = {
            f"views/{name}/{kind}": value if value.is_floating_point() else value.int()
            for name, answered in self.views.items()
            for kind, value in answered._asdict().items()
        }
        tensors |= {f"among/{name}": value for name, value in self.among.items()}
        known = {"conforms": self.conforms, "groups": self.groups, "compared": self.compared}
        tensors |= {name: value for name, value in known.items() if value is not None}
        described = {"views": list(self.views), "classes": self.classes, "released": self.released}
        save_tensors(folder / FILE, tensors, described)

    @classmethod
    def load(cls, folder: Path) -> "Predictions":
        """Saved predictions. The answers on a view are read when they are asked for, and not kept.

        Raises:
            UserError: there are none, or they are damaged.
        """
        file, present = folder / FILE, set[str]()

        def is_small(name: str) -> bool:
            present.add(name)
            return not name.startswith(("views/", "logits/"))

        tensors, description = load_tensors(file, "evaluate_ood", is_small)
        if set(description) == {"views", "released"}:
            raise UserError(
                f"{file} holds logits, which this version does not read: run the stage evaluate_ood again "
                "(`dvc repro evaluate_ood`)"
            )
        try:
            names, classes, released = (description[key] for key in ("views", "classes", "released"))
            needed = {f"views/{name}/{kind}" for name in names for kind in Answers._fields}
            if not needed <= present:
                raise KeyError(min(needed - present))
        except KeyError as error:
            raise UserError(f"{file} is damaged ({error} is missing): run the stage evaluate_ood again") from error
        among = {name: tensors[f"among/{name}"] for name in names if f"among/{name}" in tensors}
        known = {name: tensors[name] for name in ("conforms", "groups", "compared") if name in tensors}
        return cls(StoredAnswers(file, tuple(names)), classes, **known, among=among, released=released)


class StoredAnswers(Mapping[str, Answers]):
    """The answers on every view of a file, each read when it is asked for: a report reads those of many models."""

    def __init__(self, file: Path, names: tuple[str, ...]) -> None:
        self._file, self._names = file, names

    def __getitem__(self, view: str) -> Answers:
        if view not in self._names:
            raise KeyError(view)
        inside = f"views/{view}"
        tensors, _ = load_tensors(self._file, "evaluate_ood", lambda name: name.rpartition("/")[0] == inside)
        found = [tensors[f"{inside}/{kind}"] for kind in Answers._fields]
        return Answers(*(value if value.is_floating_point() else value.long() for value in found))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
