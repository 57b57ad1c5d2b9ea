"""Global minimum-correct filters: the channels that a class's confident images need, accumulated over training.

    histogram_c = Σ M(x),  magnitude_c = Σ a(x)·M(x)   over the x of class c with argmax f = c, p(c) ≥ τ,
                                                       whose masked prediction is still c
    G_c = {k : histogram_ck > frequency_threshold · max_k histogram_ck}

Paper: arXiv 2501.11087, section 4.1.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor

from everycause.artifact import load_explanation, save_tensors
from everycause.explanation.heads import HeadParams, Heads
from everycause.model import Readout
from everycause.section import Section

FILE = "filters.safetensors"


class FilterParams(Section):
    """Which filters count for a class."""

    confidence_threshold: float = Field(ge=0, lt=1)
    """τ: images below this probability of their class do not count."""
    frequency_threshold: float = Field(ge=0, lt=1)
    """Share of the most frequent filter's count above which a filter is global, for debugging (0: the union)."""
    detection_frequency_threshold: float = Field(ge=0, lt=1)
    """The same, for the detection of misclassifications."""
    heads: HeadParams


@dataclass(frozen=True)
class FilterBank:
    """The counts of one model; thresholds are views of them."""

    histogram: Int64[Tensor, "classes filters"]
    """How many images of the class need the filter."""
    magnitude: Float[Tensor, "classes filters"]
    """Their summed activations."""
    support: Int64[Tensor, "classes"]
    """How many images of the class counted."""
    heads: Heads
    model: str
    """Fingerprint of the explained model."""

    def global_filters(self, frequency_threshold: float) -> Bool[Tensor, "classes filters"]:
        """G: the filters above a share of each class's most frequent one."""
        return self.histogram > frequency_threshold * self.histogram.max(dim=1, keepdim=True).values

    def summary(self, params: FilterParams) -> dict[str, float]:
        """The bank in a few numbers, at both frequency thresholds."""
        thresholds = {"filters_per_class": params.frequency_threshold, "filters_per_class_detection": params.detection_frequency_threshold}
        sizes = {name: float(self.global_filters(threshold).sum(dim=1).double().mean()) for name, threshold in thresholds.items()}
        return sizes | {"smallest_support": float(self.support.min()), "filters": float(self.histogram.shape[1])}

    def save(self, folder: Path) -> None:
        """Write everything into a folder, as one file."""
        tensors = {"histogram": self.histogram, "magnitude": self.magnitude, "support": self.support, "weight": self.heads.weight, "bias": self.heads.bias}
        save_tensors(folder / FILE, tensors, {"model": self.model})

    @classmethod
    def load(cls, folder: Path, model: str) -> "FilterBank":
        """A saved bank of the model with this fingerprint.

        Raises:
            ValueError: there is none, or it belongs to another model.
        """
        tensors = load_explanation(folder / FILE, "accumulate_filters", model)
        heads = Heads(tensors.pop("weight"), tensors.pop("bias"))
        return cls(**tensors, heads=heads, model=model)


@dataclass(frozen=True)
class LinearHead:
    """The classifier's last layer."""

    weight: Float[Tensor, "classes filters"]
    bias: Float[Tensor, "classes"]

    def predictions(self, activations: Float[Tensor, "batch filters"]) -> Int64[Tensor, "batch"]:
        """The class of pooled activations."""
        return torch.nn.functional.linear(activations, self.weight, self.bias).argmax(dim=1)


def accumulate(
    heads: Heads, head: LinearHead, seen: Readout, labels: Int64[Tensor, "images"], class_names: tuple[str, ...], threshold: float, model: str
) -> FilterBank:
    """The bank over a split's readout.

    Raises:
        ValueError: a class has no image that counts; the sentence names it and the threshold.
    """
    local = heads.minimum_correct(seen.activations, labels)
    counts = confident(seen, labels, threshold) & (head.predictions(seen.activations * local) == labels)
    classes, filters = head.weight.shape
    histogram = torch.zeros(classes, filters, dtype=torch.int64).index_add_(0, labels[counts], local[counts].long())
    magnitude = torch.zeros(classes, filters).index_add_(0, labels[counts], (seen.activations * local)[counts])
    support = torch.bincount(labels[counts], minlength=classes)
    if bool((support == 0).any()):
        name = class_names[int((support == 0).nonzero()[0])]
        raise ValueError(
            f"the class '{name}' has no training image that is predicted correctly with p ≥ {threshold} and keeps its prediction on its "
            "minimum correct filters: lower filters.confidence_threshold or train longer"
        )
    return FilterBank(histogram, magnitude, support, heads, model)


def confident(seen: Readout, labels: Int64[Tensor, "images"], threshold: float) -> Bool[Tensor, "images"]:
    """Correct predictions with at least this probability."""
    probability, prediction = seen.logits.softmax(dim=1).max(dim=1)
    return (prediction == labels) & (probability >= threshold)


def quality(heads: Heads, head: LinearHead, seen: Readout, labels: Int64[Tensor, "images"], threshold: float, seed: int) -> dict[str, float]:
    """Are the local sets sufficient (keep rate) and necessary (flip rate when disabled), against random sets of equal size?"""
    rows = confident(seen, labels, threshold)
    activations, own = seen.activations[rows], labels[rows]
    local = heads.minimum_correct(activations, own)
    keys = torch.rand(local.shape, generator=torch.Generator().manual_seed(seed))
    random = keys.argsort(dim=1).argsort(dim=1) < local.sum(dim=1, keepdim=True)
    result = {"filters_per_image": float(local.sum(dim=1).double().mean())}
    for name, sets in (("mc", local), ("random", random)):
        result[f"{name}_keep_rate"] = float((head.predictions(activations * sets) == own).double().mean())
        result[f"{name}_disable_flip_rate"] = float((head.predictions(activations * ~sets) != own).double().mean())
    return result
