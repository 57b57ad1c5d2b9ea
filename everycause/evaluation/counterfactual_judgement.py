"""One table of all methods that make counterfactual images: quality, truth where it is known, and intervals."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from codebirds.birds import Codebirds
from codebirds.factors import Factors
from everycause.data.images import Images
from everycause.data.split import Split
from everycause.evaluation.counterfactual_images import (
    frechet_distance,
    image_measures,
    mean_with_interval,
    pooled_features,
    split_distance,
)
from everycause.evaluation.counterfactual_truth import Drawings, drawings, ideal, image_truth, other_scene
from everycause.inference import logits_of_images
from everycause.models import Classifier
from everycause.shapes import Float, Int64

COLUMNS = ["method", "measure", "value", "low", "high"]
REFERENCE = "ace"
"""The method that the others are compared with."""
IDEAL, OTHER_SCENE = "target_parts_rendered", "target_scene_rendered"
"""Rows of images that the renderer makes: the ideal, and the same birds in the scene that the target mostly has."""


class Row(NamedTuple):
    """One number of the table."""

    method: str
    measure: str
    value: float
    low: float = float("nan")
    """Lower end of the 95 % interval over images; NaN for distances between sets of images."""
    high: float = float("nan")


class Subject(NamedTuple):
    """The images that all methods have changed."""

    index: Int64[Tensor, "images"]
    """In the validation split."""
    prediction: Int64[Tensor, "images"]
    """What the explained classifier sees in the originals."""
    target: Int64[Tensor, "images"]
    """What it was to see."""


@dataclass(frozen=True)
class Judge:
    """What counterfactual images are judged by."""

    classifier: Classifier
    """The explained one."""
    decoder: Classifier
    """An independent one: it gives the features of the Fréchet distances, and says whether it sees the target."""
    split: Split
    """Of the originals."""
    birds: Codebirds | None
    """The renderer, where the truth is known."""

    def drawn(self, subject: Subject) -> Drawings | None:
        """What the renderer can show in the place of the originals, where the truth is known."""
        return None if self.birds is None else drawings(self.birds, self.factors(subject))

    def measures(
        self, subject: Subject, changed: Images, drawn: Drawings | None
    ) -> dict[str, Float[np.ndarray, "images"]]:
        """Every measure of each image; NaN where it has no meaning."""
        originals = self.split.read(subject.index.numpy())
        found = image_measures(self.classifier, originals, changed, subject.prediction, subject.target)
        seen = logits_of_images(self.decoder, changed).argmax(dim=1)
        found["decoder_flip"] = (seen == subject.target).double().numpy()
        if drawn is not None:
            truth = image_truth(drawn, changed.numpy(), subject.target.numpy())
            stayed, flipped = truth["scene_stayed"] == 1, found["flip"] == 1
            found |= truth | {"flip_without_decoding": (flipped & (truth["decodes"] == 0)).astype(float)}
            found["scene_changed_of_flips"] = np.where(flipped, (~stayed).astype(float), np.nan)
        return found

    def distances(self, subject: Subject, changed: Images) -> dict[str, float]:
        """The Fréchet distances of the whole set."""
        originals = pooled_features(self.decoder, self.split.read(subject.index.numpy()))
        features = pooled_features(self.decoder, changed)
        if len(features) < 4:  # a covariance needs two images in each half
            return {}
        return {"fid": frechet_distance(originals, features), "sfid": split_distance(originals, features)}

    def factors(self, subject: Subject) -> Factors:
        """What the originals are drawn from."""
        assert self.birds is not None
        return self.birds.factors("validation", subject.index.numpy())

    def rendered(self, subject: Subject) -> dict[str, Images]:
        """The images of the reference rows, where they can be drawn."""
        if self.birds is None:
            return {}
        factors, target = self.factors(subject), subject.target.numpy()
        pictures = {IDEAL: ideal(self.birds, factors, target), OTHER_SCENE: other_scene(self.birds, factors, target)}
        return {name: torch.from_numpy(images) for name, images in pictures.items()}


def table(judge: Judge, subject: Subject, changed: dict[str, Images]) -> Iterator[Row]:
    """Every measure of every method, and its difference from ACE, image by image.

    Args:
        judge: What they are judged by.
        subject: The images that all methods have changed.
        changed: Method → its counterfactual images.
    """
    everything, drawn = changed | judge.rendered(subject), judge.drawn(subject)
    found = {method: judge.measures(subject, images, drawn) for method, images in everything.items()}
    for method, measures in found.items():
        for name, values in measures.items():
            yield Row(method, name, *mean_with_interval(values))
            if method in changed and method != REFERENCE and REFERENCE in found:
                yield Row(method, f"{name}/less_{REFERENCE}", *mean_with_interval(values - found[REFERENCE][name]))
        for name, value in judge.distances(subject, everything[method]).items():
            yield Row(method, name, value)
