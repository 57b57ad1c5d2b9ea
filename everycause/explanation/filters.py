"""Global minimum-correct filters: the channels that the confident images of a class need, counted over a split.

    histogram_c = Σ M(x),  magnitude_c = Σ a(x)·M(x)   over the x of class c with argmax f = c, p(c) ≥ τ,
                                                       whose masked prediction is still c
    G_c = {k : histogram_ck > frequency_threshold · max_k histogram_ck}

Paper: arXiv 2501.11087, section 4.1.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from everycause.artifacts import load_explanation, save_tensors
from everycause.errors import UserError
from everycause.explanation.exact_filters import ExactFilters
from everycause.explanation.filter_heads import FilterHeads, Heads, StoredHeads
from everycause.explanation.heads import HeadParams, LastLayer, Variant, head_blocks, together
from everycause.models import Readout
from everycause.params import Section
from everycause.shapes import Bool, Float, Int64

FILE = "filters.safetensors"
COUNTED_TOGETHER = 4096
"""Images whose filters are held at once."""
GeneratorName = Variant | Literal["exact_sufficient", "exact_necessary"]


class FilterParams(Section):
    """How the filters of each class are found."""

    generator: GeneratorName
    """How the filters of one image are found: by trained heads (`all_classes` is the paper's), or exactly from the
    linear head."""
    compared: list[GeneratorName]
    """Generators that are trained and measured for comparison; nothing else uses them."""
    confidence_threshold: float = Field(ge=0, lt=1)
    """τ: images below this probability of their class do not count."""
    frequency_threshold: float = Field(ge=0, lt=1)
    """Share of the most frequent filter's count above which a filter is global, for retraining (0: the union)."""
    detection_frequency_threshold: float = Field(ge=0, lt=1)
    """The same, for the detection of misclassifications."""
    heads: HeadParams


@runtime_checkable
class FilterGenerator(Protocol):
    """Finds the filters that an image needs in order to be a class."""

    def minimum_correct(
        self, activations: Float[Tensor, "batch filters"], classes: Int64[Tensor, "batch"]
    ) -> Bool[Tensor, "batch filters"]:
        """The filters of each image for the given class."""


def filter_generator(
    name: GeneratorName,
    readout: Readout,
    labels: Int64[Tensor, "images"],
    head: LastLayer,
    params: HeadParams,
    seed: int,
    device: torch.device,
    kept: tuple[Path, str] | None = None,
    folder: Path | None = None,
) -> FilterGenerator:
    """A generator by name.

    Args:
        name: The generator.
        readout: Of the split that heads are trained on.
        labels: Its labels.
        head: The classifier's last layer.
        params: How heads are trained.
        seed: Of the heads.
        device: Where heads are trained.
        kept: A folder in which the heads are written as they are trained, and the fingerprint of the model; None holds
            them in memory.

    With the folder of an unfinished artifact, heads whose training was killed go on.

    Raises:
        UserError: the loss of the heads is not finite, or a class that needs images has none.
    """
    if name == "exact_sufficient":
        return ExactFilters("sufficient", head)
    if name == "exact_necessary":
        return ExactFilters("necessary", head)
    on_device = readout.activations.to(device), labels.to(device), head.to(device)
    blocks = head_blocks(*on_device, params, seed, name, folder)
    return together(blocks) if kept is None else StoredHeads.written(blocks, *kept)


@dataclass(frozen=True)
class FilterBank:
    """The counted filters of each class of one model."""

    histogram: Int64[Tensor, "classes filters"]
    """How many images of the class need the filter."""
    magnitude: Float[Tensor, "classes filters"]
    """Their summed activations."""
    support: Int64[Tensor, "classes"]
    """How many images of the class counted."""
    local: FilterGenerator
    """The generator that was counted."""
    model: str
    """Fingerprint of the explained model."""

    @property
    def shares(self) -> Float[Tensor, "classes filters"]:
        """Share of each class's counted images that need the filter, 0 to 1; 0 for a class without such images."""
        return self.histogram / self.support.clamp_min(1)[:, None]

    def global_filters(self, frequency_threshold: float) -> Bool[Tensor, "classes filters"]:
        """G: the filters counted more often than this share of each class's most frequent filter."""
        return self.histogram > frequency_threshold * self.histogram.max(dim=1, keepdim=True).values

    def summary(self, params: FilterParams) -> dict[str, float]:
        """The bank in a few numbers, at both frequency thresholds."""
        thresholds = {
            "filters_per_class": params.frequency_threshold,
            "filters_per_class_detection": params.detection_frequency_threshold,
        }
        sizes = {
            name: float(self.global_filters(threshold).sum(dim=1).double().mean())
            for name, threshold in thresholds.items()
        }
        return sizes | {"smallest_support": float(self.support.min()), "filters": float(self.histogram.shape[1])}

    def save(self, folder: Path) -> None:
        """Write everything into a folder: the counts as one file, heads as files of their own beside it.

        Heads that were written into this folder as they were trained stay as they are.
        """
        tensors = {"histogram": self.histogram, "magnitude": self.magnitude, "support": self.support}
        if isinstance(self.local, FilterHeads):
            StoredHeads.written([self.local], folder, self.model)
        elif isinstance(self.local, ExactFilters):
            kind, (weight, bias) = self.local.kind, self.local.head
            tensors |= {f"{kind}/weight": weight, f"{kind}/bias": bias}
        else:
            assert isinstance(self.local, StoredHeads) and self.local.folder == folder, "the heads lie elsewhere"
        save_tensors(folder / FILE, tensors, {"model": self.model})

    @classmethod
    def load(cls, folder: Path, model: str) -> "FilterBank":
        """A saved bank of the model with this fingerprint. Files of heads are opened when a head is asked for.

        Raises:
            UserError: there is none, it is damaged, it belongs to another model, or another version wrote it.
        """
        tensors = load_explanation(folder / FILE, "accumulate_filters", model)
        if "heads/weight" in tensors:
            raise UserError(
                f"{folder / FILE} holds heads, which now lie in files of their own: run the stage accumulate_filters "
                "again (`dvc repro accumulate_filters`)"
            )
        kind = next((name.removesuffix("/weight") for name in tensors if name.endswith("/weight")), "")
        head = {name: tensors.pop(f"{kind}/{name}") for name in ("weight", "bias") if f"{kind}/{name}" in tensors}
        if set(tensors) == {"histogram", "magnitude", "support"} and len(head) in (0, 2):
            shape = (*tensors["support"].shape, *tensors["histogram"].shape[-1:])
            if len(shape) == 2 and tensors["histogram"].shape == tensors["magnitude"].shape == shape:
                local = ExactFilters(kind, LastLayer(**head)) if head else StoredHeads(folder)
                return cls(**tensors, local=local, model=model)
        raise UserError(
            f"{folder / FILE} is damaged (its tensors do not fit together): "
            "delete it and run the stage accumulate_filters again"
        )


def accumulate(
    local: FilterGenerator,
    head: LastLayer,
    readout: Readout,
    labels: Int64[Tensor, "images"],
    threshold: float,
    model: str,
) -> FilterBank:
    """Count the filters of each class over a split's readout. A class none of whose images counts has support 0."""
    classes, filters = head.weight.shape
    sure = confident(readout, labels, threshold).nonzero()[:, 0]
    histogram, magnitude = torch.zeros(classes, filters, dtype=torch.int64), torch.zeros(classes, filters)
    support = torch.zeros(classes, dtype=torch.int64)
    for rows in sure.split(COUNTED_TOGETHER):
        activations, own = readout.activations[rows], labels[rows]
        chosen = local.minimum_correct(activations, own)
        kept = head.predictions(activations * chosen) == own
        activations, own, chosen = activations[kept], own[kept], chosen[kept]
        histogram.index_add_(0, own, chosen.long())
        magnitude.index_add_(0, own, activations * chosen)
        support += torch.bincount(own, minlength=classes)
    return FilterBank(histogram, magnitude, support, local, model)


def confident(readout: Readout, labels: Int64[Tensor, "images"], threshold: float) -> Bool[Tensor, "images"]:
    """Correct predictions with at least this probability."""
    probability, prediction = readout.logits.softmax(dim=1).max(dim=1)
    return (prediction == labels) & (probability >= threshold)


def filter_quality(
    local: FilterGenerator,
    head: LastLayer,
    readout: Readout,
    labels: Int64[Tensor, "images"],
    threshold: float,
    seed: int,
) -> dict[str, float]:
    """How often an image's filters suffice (keep rate) and are needed (flip rate when disabled), beside random filters.

    Rates from 0 to 1 over the correct and confident images of a split; nothing where there are none. The random sets
    are as large.
    """
    rows = confident(readout, labels, threshold)
    if not bool(rows.any()):
        return {}
    activations, own = readout.activations[rows], labels[rows]
    chosen = local.minimum_correct(activations, own)
    result = {"filters_per_image": float(chosen.sum(dim=1).double().mean())}
    for prefix, sets in (("", chosen), ("random/", random_like(chosen, seed))):
        result[f"{prefix}keep_rate"] = float((head.predictions(activations * sets) == own).double().mean())
        result[f"{prefix}disable_flip_rate"] = float((head.predictions(activations * ~sets) != own).double().mean())
    return result


def incorrect_filter_quality(
    heads: Heads, head: LastLayer, readout: Readout, labels: Int64[Tensor, "images"], threshold: float, seed: int
) -> dict[str, float]:
    """How often minimum-incorrect filters turn an image into its runner-up class, beside the same amounts elsewhere."""
    rows = confident(readout, labels, threshold)
    if not bool(rows.any()):
        return {}
    activations = readout.activations[rows]
    target = readout.logits[rows].topk(2, dim=1).indices[:, 1]
    added = heads.minimum_incorrect(activations, target)
    moved = added.gather(1, torch.rand(added.shape, generator=torch.Generator().manual_seed(seed)).argsort(dim=1))
    result = {"filters_per_image": float((added > 0).sum(dim=1).double().mean())}
    return result | {
        f"{prefix}reach_rate": float((head.predictions(activations + some) == target).double().mean())
        for prefix, some in (("", added), ("random/", moved))
    }


def random_like(sets: Bool[Tensor, "rows filters"], seed: int) -> Bool[Tensor, "rows filters"]:
    """Random filters, as many in each row as it has: the control of every claim about filters."""
    keys = torch.rand(sets.shape, generator=torch.Generator().manual_seed(seed))
    return keys.argsort(dim=1).argsort(dim=1) < sets.sum(dim=1, keepdim=True)


def permuted(sets: Bool[Tensor, "classes filters"], seed: int) -> Bool[Tensor, "classes filters"]:
    """The filters of another class for each class, at random."""
    order = torch.randperm(len(sets), generator=torch.Generator().manual_seed(seed))
    other = torch.empty_like(order)
    other[order] = order.roll(1)  # a cycle through all classes: none keeps its own
    return sets[other]
