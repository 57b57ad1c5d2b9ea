"""Accuracy on the test split and on every shifted one: predictions are stored once, metrics are computed from them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from tqdm import tqdm

from everycause.artifacts import load_tensors, save_tensors
from everycause.data.corruptions import check
from everycause.data.shifts import View, views
from everycause.data.sources import DataParams
from everycause.errors import UserError
from everycause.inference import logits_of
from everycause.models import Classifier
from everycause.params import Section
from everycause.shapes import Bool, Float, Int64

FILE = "predictions.safetensors"


class EvaluationParams(Section):
    """Which corruptions of the test split."""

    corruptions: list[str]
    """Names from data.corruptions."""
    severities: list[int] = Field(min_length=1)
    """From 1 to 5."""
    keep_corrupted: bool
    """Whether images corrupted here are kept on disk for the next row (all 75 cells of 480 images at 64 pixels: 0.4 GiB), or made anew."""

    @model_validator(mode="after")
    def _exist(self) -> "EvaluationParams":
        for name in self.corruptions:
            for severity in self.severities:
                check(name, severity)
        return self


@dataclass(frozen=True)
class Predictions:
    """What a classifier said about every view."""

    logits: dict[str, Float[Tensor, "images classes"]]
    """By view."""
    labels: dict[str, Int64[Tensor, "images"]]
    """By view."""
    conforms: Bool[Tensor, "images"] | None
    """Whether the scene of each test image is its class's own; None where that is not known."""
    groups: Int64[Tensor, "images"] | None = None
    """The group of each test image, where the data set names groups."""
    among: dict[str, Int64[Tensor, "answers"]] = field(default_factory=dict)
    """The classes among which a view's answer is sought, where they are not all."""
    released: bool = False
    """Whether the corruptions are the published images."""

    def scores(self, view: str) -> Float[Tensor, "images classes"]:
        """The logits, those of classes that are no answer set to minus infinity."""
        if view not in self.among:
            return self.logits[view]
        return torch.full_like(self.logits[view], -torch.inf).index_copy_(
            1, self.among[view], self.logits[view][:, self.among[view]]
        )

    def correct(self, view: str) -> Bool[Tensor, "images"]:
        """Which images of a view are classified correctly."""
        return self.scores(view).argmax(dim=1) == self.labels[view]

    def family(self, name: str) -> list[str]:
        """The views of a family: itself, or its members."""
        return [view for view in self.logits if view == name or view.startswith(name + "/")]

    def correctness(self, family: str) -> Float[np.ndarray, "images"]:
        """For each image the share of a family's views in which it is classified correctly."""
        return torch.stack([self.correct(view).double() for view in self.family(family)]).mean(dim=0).numpy()

    def save(self, folder: Path) -> None:
        """Write everything into a folder, as one file."""
        tensors = {f"logits/{name}": value for name, value in self.logits.items()}
        tensors |= {f"labels/{name}": value for name, value in self.labels.items()}
        tensors |= {f"among/{name}": value for name, value in self.among.items()}
        tensors |= {
            name: value for name, value in (("conforms", self.conforms), ("groups", self.groups)) if value is not None
        }
        save_tensors(folder / FILE, tensors, {"views": list(self.logits), "released": self.released})

    @classmethod
    def load(cls, folder: Path) -> "Predictions":
        """Saved predictions.

        Raises:
            UserError: there are none.
        """
        tensors, description = load_tensors(folder / FILE, "evaluate_ood")
        order = description["views"]
        logits, labels = ({name: tensors[f"{kind}/{name}"] for name in order} for kind in ("logits", "labels"))
        among = {name: tensors[f"among/{name}"] for name in order if f"among/{name}" in tensors}
        return cls(logits, labels, tensors.get("conforms"), tensors.get("groups"), among, description["released"])


def predictions(opened: Iterator[View], predict: Callable[[View], Float[Tensor, "images classes"]]) -> Predictions:
    """The logits of every view by any predictor."""
    logits, labels, among, conforms, groups, released = {}, {}, {}, None, None, False
    for view in tqdm(opened, desc="evaluating", disable=None):
        logits[view.name], labels[view.name] = predict(view), view.split.labels
        released |= view.released
        if view.among is not None:
            among[view.name] = view.among
        if view.name == "test":
            groups = view.groups
            conforms = (
                torch.from_numpy(view.factors.conforms(view.split.num_classes)) if view.factors is not None else None
            )
    return Predictions(logits, labels, conforms, groups, among, released)


def evaluate(
    classifier: Classifier, data: DataParams, params: EvaluationParams, threads: int, cache: Path | None = None
) -> Predictions:
    """The classifier's predictions on the test split and on every shifted one.

    Raises:
        UserError: the classifier has other classes than the data.
    """

    def predict(view: View) -> Float[Tensor, "images classes"]:
        if view.split.class_names != classifier.class_names:
            raise UserError(
                f"the model knows {len(classifier.class_names)} classes that are not those of the data ({view.split.num_classes}): retrain it, or evaluate it on its own data"
            )
        return logits_of(classifier, view.split)

    return predictions(
        views(data, params.corruptions, params.severities, threads, cache if params.keep_corrupted else None), predict
    )
