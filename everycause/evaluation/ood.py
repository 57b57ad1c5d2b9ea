"""Accuracy on the test split and on every shifted one: predictions are stored once, metrics are computed from them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, model_validator
from torch import Tensor
from tqdm import tqdm

from everycause.artifact import load_tensors, save_tensors
from everycause.data.corruptions import check
from everycause.data.dataset import DataParams
from everycause.data.shifts import View, views
from everycause.inference import logits_of
from everycause.model import Classifier
from everycause.section import Section

FILE = "predictions.safetensors"


class EvaluationParams(Section):
    """Which corruptions of the test split."""

    corruptions: list[str]
    """Names from data.corruptions."""
    severities: list[int] = Field(min_length=1)
    """From 1 to 5."""

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

    def correct(self, view: str) -> Bool[Tensor, "images"]:
        """Which images of a view are classified correctly."""
        return self.logits[view].argmax(dim=1) == self.labels[view]

    def family(self, name: str) -> list[str]:
        """The views of a family: itself, or its members."""
        return [view for view in self.logits if view == name or view.startswith(name + "/")]

    def correctness(self, family: str) -> Float[np.ndarray, "images"]:
        """For each test image the share of a family's views in which it is classified correctly."""
        return torch.stack([self.correct(view).double() for view in self.family(family)]).mean(dim=0).numpy()

    def save(self, folder: Path) -> None:
        """Write everything into a folder, as one file."""
        tensors = {f"logits/{name}": value for name, value in self.logits.items()}
        tensors |= {f"labels/{name}": value for name, value in self.labels.items()}
        if self.conforms is not None:
            tensors["conforms"] = self.conforms
        save_tensors(folder / FILE, tensors, {"views": list(self.logits)})

    @classmethod
    def load(cls, folder: Path) -> "Predictions":
        """Saved predictions.

        Raises:
            ValueError: there are none.
        """
        tensors, description = load_tensors(folder / FILE, "evaluate_ood")
        order = description["views"]
        return cls({name: tensors[f"logits/{name}"] for name in order}, {name: tensors[f"labels/{name}"] for name in order}, tensors.get("conforms"))


def predictions(opened: Iterator[View], predict: Callable[[View], Float[Tensor, "images classes"]]) -> Predictions:
    """The logits of every view by any predictor."""
    logits, labels, conforms = {}, {}, None
    for view in tqdm(opened, desc="evaluating", disable=None):
        logits[view.name], labels[view.name] = predict(view), view.split.labels
        if view.name == "test" and view.factors is not None:
            conforms = torch.from_numpy(view.factors.conforms(view.split.num_classes))
    return Predictions(logits, labels, conforms)


def evaluate(classifier: Classifier, data: DataParams, params: EvaluationParams, threads: int) -> Predictions:
    """The classifier's predictions on the test split and on every shifted one.

    Raises:
        ValueError: the classifier has other classes than the data.
    """

    def predict(view: View) -> Float[Tensor, "images classes"]:
        if view.split.class_names != classifier.class_names:
            raise ValueError(
                f"the model knows {len(classifier.class_names)} classes that are not those of the data ({view.split.num_classes}): retrain it, or evaluate it on its own data"
            )
        return logits_of(classifier, view.split)

    return predictions(views(data, params.corruptions, params.severities, threads), predict)
