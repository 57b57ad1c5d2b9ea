"""Stored predictions: the logits of a classifier on every view of the test images.

A view is one set of images to evaluate on: the test split, or one shifted split. Views of a family share the part of
their name before the slash, as corruptions/fog/3 and corruptions/snow/1 do. Metrics, tables and intervals are all
computed from what is stored here.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from everycause.artifacts import load_tensors, save_tensors
from everycause.errors import UserError
from everycause.shapes import Bool, Float, Int64

FILE = "predictions.safetensors"


@dataclass(frozen=True)
class Predictions:
    """The logits of a classifier on every view, with the true labels."""

    logits: dict[str, Float[Tensor, "images classes"]]
    """By view, in the order in which the views were evaluated."""
    labels: dict[str, Int64[Tensor, "images"]]
    """By view."""
    conforms: Bool[Tensor, "images"] | None
    """Whether the scene of each test image is its class's own; None where that is not known."""
    groups: Int64[Tensor, "images"] | None = None
    """The group of each test image, where the data set names groups."""
    among: dict[str, Int64[Tensor, "answers"]] = field(default_factory=dict)
    """By view, the classes among which the answer is sought, where they are not all."""
    released: bool = False
    """Whether the corrupted images are the published ones, not made here."""

    def scores(self, view: str) -> Float[Tensor, "images classes"]:
        """The logits of a view. Classes that are no possible answer get minus infinity."""
        if view not in self.among:
            return self.logits[view]
        answers = self.among[view]
        nothing = torch.full_like(self.logits[view], -torch.inf)
        return nothing.index_copy_(1, answers, self.logits[view][:, answers])

    def predicted(self, view: str) -> Int64[Tensor, "images"]:
        """The predicted class of each image of a view."""
        return self.scores(view).argmax(dim=1)

    def correct(self, view: str) -> Bool[Tensor, "images"]:
        """Which images of a view are classified correctly."""
        return self.predicted(view) == self.labels[view]

    def accuracy(self, view: str) -> float:
        """The share of a view's images that are classified correctly."""
        return float(self.correct(view).double().mean())

    def family(self, name: str) -> list[str]:
        """The views of a family: the view of that name, or those whose names begin with it and a slash."""
        return [view for view in self.logits if view == name or view.startswith(name + "/")]

    def correctness(self, family: str) -> Float[np.ndarray, "images"]:
        """For each image the share of a family's views in which it is classified correctly."""
        return torch.stack([self.correct(view).double() for view in self.family(family)]).mean(dim=0).numpy()

    def recalls(self, family: str) -> Float[np.ndarray, "classes"]:
        """For each class the share of its images that is classified correctly, over all views of a family.

        A class without images gets NaN.
        """
        views = self.family(family)
        labels = torch.cat([self.labels[view] for view in views])
        correct = torch.cat([self.correct(view) for view in views]).double()
        classes = self.logits[views[0]].shape[1]
        hits = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, correct)
        return (hits / torch.bincount(labels, minlength=classes)).numpy()

    def save(self, folder: Path) -> None:
        """Write everything into a folder, as one file."""
        tensors = {f"logits/{name}": value for name, value in self.logits.items()}
        tensors |= {f"labels/{name}": value for name, value in self.labels.items()}
        tensors |= {f"among/{name}": value for name, value in self.among.items()}
        known = {"conforms": self.conforms, "groups": self.groups}
        tensors |= {name: value for name, value in known.items() if value is not None}
        save_tensors(folder / FILE, tensors, {"views": list(self.logits), "released": self.released})

    @classmethod
    def load(cls, folder: Path) -> "Predictions":
        """Saved predictions.

        Raises:
            UserError: there are none, or they are damaged.
        """
        tensors, description = load_tensors(folder / FILE, "evaluate_ood")
        try:
            views, released = description["views"], description["released"]
            logits, labels = ({name: tensors[f"{kind}/{name}"] for name in views} for kind in ("logits", "labels"))
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{folder / FILE} is damaged ({error} is missing): run the stage evaluate_ood again"
            ) from error
        among = {name: tensors[f"among/{name}"] for name in views if f"among/{name}" in tensors}
        return cls(logits, labels, tensors.get("conforms"), tensors.get("groups"), among, released)
