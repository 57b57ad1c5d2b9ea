"""Evaluation on the test split and on every shifted split: one pass, which stores the logits of all views."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from tqdm import tqdm

from codebirds.glyphs import CUES
from everycause import ranks
from everycause.artifacts import save_tensors
from everycause.data.corruptions import check
from everycause.data.images import Images
from everycause.data.shifts import View
from everycause.data.sources import DataParams
from everycause.data.split import Split
from everycause.evaluation.predictions import Predictions
from everycause.inference import logits_of
from everycause.models import Classifier
from everycause.networks import folded
from everycause.params import Section
from everycause.precision import Precision, in_precision
from everycause.shapes import Float

PICTURES = "pictures.safetensors"
SHOWN = 16
"""Images of each view on the contact sheet."""


class EvaluationParams(Section):
    """Which corruptions of the test split are evaluated."""

    corruptions: list[str]
    """Names from data.corruptions."""
    severities: list[int] = Field(min_length=1)
    """From 1 to 5."""
    keep_corrupted: bool
    """Whether images corrupted here are kept on disk for the next row, or made anew. All 75 combinations of corruption
    and severity of 480 images at 64 pixels take 0.4 GiB."""

    precision: Precision
    """Of the network; 16 bits are faster on a GPU, and move logits by about 0.01."""

    @model_validator(mode="after")
    def _exist(self) -> "EvaluationParams":
        for name in self.corruptions:
            for severity in self.severities:
                check(name, severity)
        return self


def predictions(views: Iterator[View], predict: Callable[[View], Float[Tensor, "images classes"]]) -> Predictions:
    """The logits of every view by any predictor."""
    stored = Predictions({}, {}, None)
    conforms, groups, released = None, None, False
    for view in tqdm(views, desc="evaluating", disable=ranks.without_progress()):
        stored.logits[view.name], stored.labels[view.name] = predict(view), view.split.labels
        released |= view.released
        if view.among is not None:
            stored.among[view.name] = view.among
        if view.name == "test":
            groups = view.groups
            if view.factors is not None:
                conforms = torch.from_numpy(view.factors.conforms(view.split.num_classes))
    return Predictions(stored.logits, stored.labels, conforms, groups, stored.among, released)


def evaluate(
    classifier: Classifier,
    views: Iterator[View],
    sheet: "ContactSheet | None" = None,
    precision: Precision = "float32",
) -> Predictions:
    """The logits of a classifier on every view.

    The network runs with batch normalization folded into its convolutions: the same logits up to rounding, about 1.4
    times as fast on a CPU. Several processes divide the views among them: each next one goes to the process that has
    the fewest images so far.

    Args:
        classifier: The model.
        views: What to evaluate it on.
        sheet: Collects pictures of the views.
        precision: Of the network.

    Raises:
        UserError: the images or the classes of a view are not those that the classifier was made for.
    """
    network, images = in_precision(folded(classifier.network), precision), [0] * ranks.count()
    evaluated: dict[str, Tensor] = {}

    def predict(view: View) -> Tensor:
        turn = images.index(min(images))
        images[turn] += len(view.split)
        own = turn == ranks.number()
        if sheet is not None:
            sheet.see(view, own)
        if own:
            evaluated[view.name] = logits_of(classifier, view.split, network)
        unknown = torch.zeros(len(view.split), len(classifier.class_names))  # until its process tells
        return evaluated.get(view.name, unknown)

    stored = predictions(views, predict)
    for part in ranks.gathered(evaluated):
        stored.logits.update(part)
    return stored


def data_description(data: DataParams, test: Split) -> dict[str, Any]:
    """What tables and figures must know of the data: class names, and the code of rendered images with its parts."""
    described: dict[str, Any] = {
        "class_names": list(test.class_names),
        "image_size": test.image_size,
        "cues": [],
        "code": None,
    }
    if (code := data.code) is not None:
        described["cues"] = [cue.name for cue in CUES[: code.length]]
        described["code"] = {
            "length": code.length,
            "dimension": code.dimension,
            "order": code.order,
            "distance": code.distance,
            "num_classes": code.num_classes,
            "words": code.words.tolist(),
        }
    return described


class ContactSheet:
    """The first images of the training split and of a choice of views, collected while the views are evaluated.

    Of the erasures one view per number of erased parts is shown, of each corruption the middle severity.
    """

    def __init__(self, train: Split, severities: list[int]) -> None:
        self._lines: dict[str, Images | None] = {"train": _first_images(train)}
        self._severity = str(sorted(severities)[(len(severities) - 1) // 2])
        self._sizes: set[int] = set()

    def see(self, view: View, own: bool = True) -> None:
        """Take the first images of a view, if it is shown; `own` says whether this process is the one to read it."""
        if (line := self._line(view.name)) is not None:
            self._lines[line] = _first_images(view.split) if own else None

    def save(self, folder: Path) -> None:
        """Write the images into a folder, as one file. All processes must call this; the first one writes."""
        for part in ranks.gathered({line: images for line, images in self._lines.items() if images is not None}):
            self._lines.update(part)
        if not ranks.is_first():
            return
        tensors = {f"{number:03d}": images for number, images in enumerate(self._lines.values())}
        save_tensors(folder / PICTURES, tensors, {"names": list(self._lines)})

    def _line(self, name: str) -> str | None:
        """The label of a view's line, None for a view that is not shown."""
        family, _, member = name.partition("/")
        if family == "erasures":
            size = member.count("-") + 1
            if size in self._sizes:
                return None
            self._sizes.add(size)
            member = f"{size} part{'s' if size > 1 else ''}"
        elif family == "corruptions":
            member, _, severity = member.partition("/")
            if severity != self._severity:
                return None
        return family.replace("_", " ") + (f": {member.replace('_', ' ')}" if member else "")


def _first_images(split: Split) -> Images:
    return split.read(np.arange(min(SHOWN, len(split))))
