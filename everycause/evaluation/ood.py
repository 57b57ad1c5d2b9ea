"""Evaluation on the test split and on every shifted split: one pass, which keeps what is said of each image."""

from collections.abc import Callable, Iterator
from functools import partial
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
from everycause.evaluation.predictions import Answers, Predictions, answers, restricted
from everycause.inference import logit_batches
from everycause.models import Classifier
from everycause.networks import folded
from everycause.params import Section
from everycause.precision import Precision, in_precision
from everycause.shapes import Float, Int64
from everycause.unfinished import kept

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


Predict = Callable[[View], Iterator[Float[Tensor, "batch classes"]]]
"""The logits of the images of a view, in order, a batch at a time."""


def predictions(
    views: Iterator[View],
    predict: Predict,
    folder: Path | None = None,
    own: Callable[[View], bool] = lambda _view: True,
) -> Predictions:
    """What any predictor answers on every view. The logits of a batch are dropped before the next batch.

    Args:
        views: What to ask about.
        predict: The predictor.
        folder: Of an unfinished artifact: the answers on each view are kept there, and not asked for again.
        own: Whether this process asks about a view. The answers of all processes are put together.
    """
    found: dict[str, tuple[list[Tensor], Tensor | None]] = {}
    names, among, known, classes, released = [], {}, {}, 0, False
    for view in tqdm(views, desc="evaluating", disable=ranks.without_progress()):
        names.append(view.name)
        if own(view):
            name = f"{view.name.replace('/', '-')}-{view.split.identity}"
            found[view.name] = kept(folder, name, partial(_plain, view, predict))
        classes, released = view.split.num_classes, released | view.released
        if view.among is not None:
            among[view.name] = view.among
        if view.name == "test":
            conforms = None if view.factors is None else torch.from_numpy(view.factors.conforms(classes))
            known = {"groups": view.groups, "conforms": conforms}
    every = {name: one for part in ranks.gathered(found) for name, one in part.items()}
    if "test" in every:
        known["compared"] = every["test"][1]
    stored = {name: Answers(*every[name][0]) for name in names}
    return Predictions(stored, classes, **known, among=among, released=released)


def answers_on(view: View, predict: Predict) -> tuple[Answers, Int64[Tensor, "images"] | None]:
    """What a predictor answers on one view; its predictions among the classes of `compared` where the view has them."""
    parts: list[Answers] = []
    compared: list[Tensor] = []
    begin = 0
    for logits in predict(view):
        labels = view.split.labels[begin : begin + len(logits)]
        parts.append(answers(restricted(logits, view.among), labels))
        if view.compared is not None:
            compared.append(restricted(logits, view.compared).argmax(dim=1))
        begin += len(logits)
    return Answers.joined(parts), torch.cat(compared) if compared else None


def _plain(view: View, predict: Predict) -> tuple[list[Tensor], Tensor | None]:
    """Answers as a list of tensors, which is what can be kept."""
    found, compared = answers_on(view, predict)
    return list(found), compared


def evaluate(
    classifier: Classifier,
    views: Iterator[View],
    folder: Path | None = None,
    sheet: "ContactSheet | None" = None,
    precision: Precision = "float32",
) -> Predictions:
    """What a classifier answers on every view.

    The network runs with batch normalization folded into its convolutions: the same logits up to rounding, about 1.4
    times as fast on a CPU. Several processes divide the views among them: each next one goes to the process that has
    the fewest images so far.

    Args:
        classifier: The model.
        views: What to evaluate it on.
        folder: Of an unfinished artifact: no view is evaluated again.
        sheet: Collects pictures of the views.
        precision: Of the network.

    Raises:
        UserError: the images or the classes of a view are not those that the classifier was made for.
    """
    network, images = in_precision(folded(classifier.network), precision), [0] * ranks.count()

    def own(view: View) -> bool:
        turn = images.index(min(images))
        images[turn] += len(view.split)
        if sheet is not None:
            sheet.see(view, turn == ranks.number())
        return turn == ranks.number()

    return predictions(views, lambda view: logit_batches(classifier, view.split, network), folder, own)


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
