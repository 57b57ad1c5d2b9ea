"""The detectors of misclassifications on the test split and on every shifted one, in one pass over each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor
from tqdm import tqdm

from everycause.data.shifts import views
from everycause.data.sources import DataParams, open_split
from everycause.evaluation.predictions import EvaluationParams
from everycause.explanation.filters import FilterBank, FilterGenerator, FilterParams, confident, permuted, random_like
from everycause.explanation.heads import LastLayer
from everycause.inference import readout_of
from everycause.models import Classifier, Readout
from everycause.params import Section
from everycause.shapes import Bool, Float, Int64

# MERGED DOC: """Misclassifications found by the filters an image uses: do they agree with those of the class it is given?
#
#     accept when p(c) > 0.9; otherwise flag when agreement(l, G_c) is below its mean over the class's kept training images,
#     with l the local filters of the image for the predicted class c, and agreement |l ∩ G| / |G| (recall) by default
#
# Beside it stand what anybody would try first: the gate alone, the largest softmax probability, the entropy; and what the
# filters must beat to have said anything: random filters, as many, and the filters of another class.
#
# Paper: arXiv 2501.11087, section on detection.
# """


Agreement = Literal["recall", "precision", "f1", "l1"]
RULE = "filters"
"""The paper's detector."""


class DetectionParams(Section):
    """When a prediction is doubted."""

    accept_above: float = Field(ge=0, le=1)
    """Predictions with a larger probability are never doubted."""
    agreement: Agreement
    """How local filters are held against the class's: the share of the class's that the image uses (`recall`, the paper's), the share of the
    image's that are the class's (`precision`), their harmonic mean (`f1`), or minus the distance of the activations (`l1`)."""
    candidates: int = Field(ge=2)
    """Classes among which a doubted image is given a new label: those with the largest logits. The paper: 5."""


@dataclass(frozen=True)
class Detector:
    """The filters of every class, and how well the class's own images agree with them."""

    local: FilterGenerator
    filters: Bool[Tensor, "classes filters"]
    magnitude: Float[Tensor, "classes filters"]
    """Mean activation of each class's images on its filters."""
    measure: Agreement
    threshold: Float[Tensor, "classes"]
    """Mean agreement of the kept training images."""

    def deviation(
        self, activations: Float[Tensor, "images filters"], classes: Int64[Tensor, "images"]
    ) -> Float[Tensor, "images"]:
        """By how much each image agrees less with a class's filters than the class's own images do."""
        return self.threshold[classes] - self.agreement(activations, classes)

    def agreement(
        self, activations: Float[Tensor, "images filters"], classes: Int64[Tensor, "images"]
    ) -> Float[Tensor, "images"]:
        """How well the filters that an image needs for a class are those that the class needs."""
        used, own = self.local.minimum_correct(activations, classes), self.filters[classes]
        if self.measure == "l1":
            return -(activations * used - self.magnitude[classes]).abs().mul(own | used).sum(dim=1)
        both = (used & own).sum(dim=1)
        recall, precision = (both / some.sum(dim=1).clamp_min(1) for some in (own, used))
        match self.measure:
            case "recall":
                return recall
            case "precision":
                return precision
        return 2 * recall * precision / (recall + precision).clamp_min(1e-12)


def detector(
    bank: FilterBank,
    filters: Bool[Tensor, "classes filters"],
    head: LastLayer,
    seen: Readout,
    labels: Int64[Tensor, "images"],
    threshold: float,
    measure: Agreement,
) -> Detector:
    """A detector from a training split's readout; images count as in the bank: correct, confident, and kept by their local filters."""
    rows = confident(seen, labels, threshold).nonzero()[:, 0]
    kept = (
        head.predictions(seen.activations[rows] * bank.local.minimum_correct(seen.activations[rows], labels[rows]))
        == labels[rows]
    )
    activations, own = seen.activations[rows][kept], labels[rows][kept]
    blank = Detector(bank.local, filters, bank.magnitude / bank.support[:, None], measure, torch.zeros(len(filters)))
    sums = torch.zeros(len(filters)).index_add_(0, own, blank.agreement(activations, own))
    return replace(blank, threshold=sums / torch.bincount(own, minlength=len(filters)).clamp_min(1))


class Detection(NamedTuple):
    """What a detector says of some images."""

    flagged: Bool[Tensor, "images"]
    score: Float[Tensor, "images"]
    """Larger is more suspicious."""


DetectionFunction = Callable[[Readout], Detection]


def detection_functions(bank: FilterBank, head: LastLayer, seen: Readout, labels: Int64[Tensor, "images"], validation: Readout, params: DetectionParams, frequency_threshold: float, confidence_threshold: float, seed: int) -> dict[str, DetectionFunction]:  # fmt: skip
    """The paper's detector, its controls and the usual scores, by name.

    Softmax and entropy flag from the value at which they flag as many validation images as the paper's rule does.
    """
    own = bank.global_filters(frequency_threshold)
    made = {
        name: detector(bank, filters, head, seen, labels, confidence_threshold, params.agreement)
        for name, filters in (
            (RULE, own),
            ("filters_random", random_like(own, seed)),
            ("filters_permuted", permuted(own, seed)),
        )
    }
    found: dict[str, DetectionFunction] = {
        name: lambda shown, one=one: gated(one, shown, params.accept_above) for name, one in made.items()
    }
    found["filters_ungated"] = lambda shown: gated(made[RULE], shown, 1.0)
    found["gate"] = lambda shown: Detection(largest(shown) <= params.accept_above, -largest(shown))
    rate = float(found[RULE](validation).flagged.double().mean())
    for name, score in (("max_softmax", lambda shown: -largest(shown)), ("entropy", entropy)):
        level = score(validation).double().quantile(1 - rate)
        found[name] = lambda shown, score=score, level=level: Detection(score(shown) > level, score(shown))
    return found


def gated(one: Detector, shown: Readout, accept_above: float) -> Detection:
    """The paper's rule; accepted predictions are the least suspicious, all alike."""
    deviation = one.deviation(shown.activations, shown.logits.argmax(dim=1))
    doubted = largest(shown) <= accept_above
    return Detection(doubted & (deviation > 0), torch.where(doubted, deviation, deviation.min() - 1))


def largest(shown: Readout) -> Float[Tensor, "images"]:
    """The probability of each prediction."""
    return shown.logits.softmax(dim=1).amax(dim=1)


def entropy(shown: Readout) -> Float[Tensor, "images"]:
    """The entropy of each prediction, in nats."""
    return torch.special.entr(shown.logits.softmax(dim=1)).sum(dim=1)


def measures(detection_of: Detection, wrong: Bool[Tensor, "images"]) -> dict[str, float]:
    """How well errors are found: at the flag, and over all thresholds where there are both errors and correct predictions."""
    hits, flagged, errors = (int(some.sum()) for some in (detection_of.flagged & wrong, detection_of.flagged, wrong))
    result = {
        "flagged": float(flagged),
        "recall": hits / max(errors, 1),
        "precision": hits / max(flagged, 1),
        "f1": 2 * hits / max(flagged + errors, 1),
    }
    if 0 < errors < len(wrong):
        truth, score = wrong.numpy(), detection_of.score.double().numpy()
        false, true, _ = roc_curve(truth, score)
        result |= {
            "auroc": float(roc_auc_score(truth, score)),
            "aupr": float(average_precision_score(truth, score)),
            "fpr_at_95": float(false[(true >= 0.95).argmax()]),
        }
    return result


def relabelled(
    one: Detector, shown: Readout, flagged: Bool[Tensor, "images"], candidates: int
) -> Int64[Tensor, "images"]:
    """New labels: a flagged image gets that of its likeliest classes whose filters it agrees with best, relative to the class's own images."""
    labels = shown.logits.argmax(dim=1)
    rows = flagged.nonzero()[:, 0]
    if len(rows) == 0:
        return labels
    likely = shown.logits[rows].topk(min(candidates, shown.logits.shape[1]), dim=1).indices
    activations = shown.activations[rows]
    deviation = torch.stack([one.deviation(activations, likely[:, place]) for place in range(likely.shape[1])], dim=1)
    labels[rows] = likely.gather(1, deviation.argmin(dim=1, keepdim=True))[:, 0]
    return labels


def relabelling(
    detection_of: Detection,
    relabels: dict[str, Int64[Tensor, "images"]],
    shown: Readout,
    labels: Int64[Tensor, "images"],
) -> dict[str, float]:
    """Accuracy before and after, and how many flagged predictions each way of relabelling corrects and breaks."""
    before = shown.logits.argmax(dim=1) == labels
    result = {"accuracy": float(before.double().mean()), "flagged": float(detection_of.flagged.sum())}
    for name, new in relabels.items():
        after = new == labels
        result[f"{name}/accuracy"] = float(after.double().mean())
        result[f"{name}/corrected"], result[f"{name}/broken"] = (
            float((after & ~before).sum()),
            float((before & ~after).sum()),
        )
    return result


def by_class(
    detection_of: Detection, shown: Readout, labels: Int64[Tensor, "images"], class_names: tuple[str, ...]
) -> Iterator[dict[str, str | int]]:
    """For each predicted class how many of its predictions are wrong, flagged, and rightly flagged."""
    prediction = shown.logits.argmax(dim=1)
    wrong = prediction != labels
    for number, name in enumerate(class_names):
        given = prediction == number
        counts = (given, given & wrong, given & detection_of.flagged, given & wrong & detection_of.flagged)
        yield {
            "class": name,
            **{
                key: int(some.sum())
                for key, some in zip(("predicted", "errors", "flagged", "found"), counts, strict=True)
            },
        }


Report = dict[str, dict]
"""Split → images, errors, detectors, relabelling; for the test split also by_class."""


def detection(
    classifier: Classifier,
    bank: FilterBank,
    data: DataParams,
    filters: FilterParams,
    params: DetectionParams,
    evaluation: EvaluationParams,
    threads: int,
    seed: int,
    cache: Path | None = None,
) -> Report:
    """Every detector on every split. Erasures are left out: they ask what a model needs, not whether it errs."""
    train, validation = (open_split(data, name, threads) for name in ("train", "validation"))
    head = LastLayer(*classifier.head()).to("cpu")
    seen, held_out = readout_of(classifier, train), readout_of(classifier, validation)
    frequency, confidence = filters.detection_frequency_threshold, filters.confidence_threshold
    found = detection_functions(bank, head, seen, train.labels, held_out, params, frequency, confidence, seed)
    own = bank.global_filters(frequency)
    judges = {
        name: detector(bank, some, head, seen, train.labels, confidence, params.agreement)
        for name, some in ((RULE, own), ("filters_random", random_like(own, seed)))
    }
    report: Report = {}
    for name, shown, labels in _splits(classifier, data, evaluation, threads, cache):
        wrong = shown.logits.argmax(dim=1) != labels
        detections = {doubter: find(shown) for doubter, find in found.items()}
        new = {
            judge: relabelled(one, shown, detections[RULE].flagged, params.candidates) for judge, one in judges.items()
        }
        new["runner_up"] = torch.where(
            detections[RULE].flagged, shown.logits.topk(2, dim=1).indices[:, 1], shown.logits.argmax(dim=1)
        )
        report[name] = {
            "images": len(labels), "errors": int(wrong.sum()), "detectors": {doubter: measures(detection_of, wrong) for doubter, detection_of in detections.items()},
            "relabelling": relabelling(detections[RULE], new, shown, labels),
        }  # fmt: skip
        if name == "test":
            report[name]["by_class"] = list(by_class(detections[RULE], shown, labels, classifier.class_names))
    return report


def flat(report: Report) -> dict[str, float]:
    """The detectors' measures under one name each, for records."""
    return {
        f"detection/{split}/{name}/{measure}": value
        for split, content in report.items()
        for name, measured in content["detectors"].items()
        for measure, value in measured.items()
    }


def _splits(
    classifier: Classifier, data: DataParams, evaluation: EvaluationParams, threads: int, cache: Path | None
) -> Iterator[tuple[str, Readout, torch.Tensor]]:
    """The readout and labels of every split; all corruptions together."""
    corrupted: list[tuple[Readout, torch.Tensor]] = []
    for view in tqdm(
        views(
            data, evaluation.corruptions, evaluation.severities, threads, cache if evaluation.keep_corrupted else None
        ),
        desc="detecting",
        disable=None,
    ):
        if view.name.startswith("erasures/"):
            continue
        shown = readout_of(classifier, view.split)
        if view.name.startswith("corruptions/"):
            corrupted.append((shown, view.split.labels))
        else:
            yield view.name, shown, view.split.labels
    if corrupted:
        together = Readout(*(torch.cat([getattr(shown, field) for shown, _ in corrupted]) for field in Readout._fields))
        yield "corruptions", together, torch.cat([labels for _, labels in corrupted])
