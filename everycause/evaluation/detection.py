"""Detection of misclassifications: do the filters that an image uses agree with those of the class it is given?

    accept when p(c) > 0.9; otherwise flag when agreement(l, G_c) is below its mean over the kept training images of c,
    with c the predicted class, l the local filters of the image for c, G_c the global filters of c,
    and agreement |l ∩ G_c| / |G_c| (recall) by default

The rule is compared with what anybody would try first: the confidence gate alone, the largest softmax probability, the
entropy. Its controls use as many random filters, and the filters of another class.

Paper: arXiv 2501.11087, section on detection.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor
from tqdm import tqdm

from everycause.artifacts import fingerprint
from everycause.data.shifts import View
from everycause.data.split import Split
from everycause.explanation.filters import FilterBank, FilterGenerator, FilterParams, confident, permuted, random_like
from everycause.explanation.heads import LastLayer
from everycause.inference import check_fits, readouts
from everycause.models import Classifier, Readout
from everycause.params import Section
from everycause.shapes import Bool, Float, Int64
from everycause.unfinished import kept

Agreement = Literal["recall", "precision", "f1", "l1"]
RULE, RANDOM, PERMUTED = "filters", "filters_random", "filters_permuted"
"""The paper's rule, and its two controls."""


class DetectionParams(Section):
    """When a prediction is flagged as a likely error."""

    accept_above: float = Field(ge=0, le=1)
    """Predictions with a larger probability are never flagged."""
    agreement: Agreement
    """How the filters that an image uses are compared with those of the class: the share of the class's filters that
    the image uses (`recall`, the paper's), the share of the image's filters that are the class's (`precision`), their
    harmonic mean (`f1`), or minus the L1 distance of the activations (`l1`)."""
    candidates: int = Field(ge=2, le=100_000)
    """Classes among which a flagged image is given a new label: those with the largest logits. The paper: 5."""


@dataclass(frozen=True)
class FilterAgreement:
    """The filters of every class, and how well the class's own training images agree with them."""

    local: FilterGenerator
    """Gives the filters that one image uses for a class."""
    filters: Bool[Tensor, "classes filters"]
    """The filters of each class."""
    magnitude: Float[Tensor, "classes filters"]
    """Mean activation of each class's images on its filters."""
    measure: Agreement
    threshold: Float[Tensor, "classes"]
    """Mean agreement of the kept training images of each class."""

    def deviation(
        self, activations: Float[Tensor, "images filters"], classes: Int64[Tensor, "images"]
    ) -> Float[Tensor, "images"]:
        """By how much each image agrees less with the filters of a class than the class's own images do."""
        return self.threshold[classes] - self.agreement(activations, classes)

    def agreement(
        self, activations: Float[Tensor, "images filters"], classes: Int64[Tensor, "images"]
    ) -> Float[Tensor, "images"]:
        """How well the filters that each image uses for a class agree with the filters of that class."""
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


Readouts = Iterable[tuple[Readout, Int64[Tensor, "images"]]]
"""Readouts of some images with their labels, block by block."""


def filter_agreements(
    bank: FilterBank,
    sets: dict[str, Bool[Tensor, "classes filters"]],
    head: LastLayer,
    seen: Readouts,
    threshold: float,
    measure: Agreement,
) -> dict[str, FilterAgreement]:
    """The agreement with several choices of filters, with thresholds from the readouts of a training split.

    Images count as in the bank: those that are predicted correctly and confidently, and still are when only the local
    filters remain.
    """
    magnitude, support = bank.magnitude / bank.support.clamp_min(1)[:, None], torch.zeros(len(bank.support)).long()
    blank = {
        name: FilterAgreement(bank.local, filters, magnitude, measure, torch.zeros(len(filters)))
        for name, filters in sets.items()
    }
    for readout, labels in seen:
        rows = confident(readout, labels, threshold).nonzero()[:, 0]
        activations, own = readout.activations[rows], labels[rows]
        kept = head.predictions(activations * bank.local.minimum_correct(activations, own)) == own
        activations, own = activations[kept], own[kept]
        support += torch.bincount(own, minlength=len(support))
        for one in blank.values():
            one.threshold.index_add_(0, own, one.agreement(activations, own))
    return {name: replace(one, threshold=one.threshold / support.clamp_min(1)) for name, one in blank.items()}


class Detection(NamedTuple):
    """The outcome of a detector on some images."""

    flagged: Bool[Tensor, "images"]
    """Whether the prediction is flagged as a likely error."""
    score: Float[Tensor, "images"]
    """Larger is more suspicious."""


class Evidence(NamedTuple):
    """What detectors are told of some images: a few numbers of each, not its logits and activations."""

    labels: Int64[Tensor, "images"]
    """The true classes, by which detectors are judged."""
    prediction: Int64[Tensor, "images"]
    probability: Float[Tensor, "images"]
    """The softmax probability of each prediction."""
    entropy: Float[Tensor, "images"]
    """The entropy of each prediction, in nats."""
    deviation: dict[str, Float[Tensor, "images"]]
    """By choice of filters, by how much each image agrees less with those of its prediction than the class's own."""
    relabels: dict[str, Int64[Tensor, "images"]]
    """By way of relabelling, the label of each image after predictions that the paper's rule flags have new ones."""

    @classmethod
    def joined(cls, parts: list["Evidence"]) -> "Evidence":
        """The evidence of several blocks of images."""
        *plain, deviation, relabels = zip(*parts, strict=True)
        named = ({name: torch.cat([one[name] for one in some]) for name in some[0]} for some in (deviation, relabels))
        return cls(*map(torch.cat, plain), *named)


def evidence(
    shown: Readout, labels: Int64[Tensor, "images"], agreements: dict[str, FilterAgreement], params: DetectionParams
) -> Evidence:
    """The evidence of the images of one readout."""
    prediction, probability = shown.logits.argmax(dim=1), largest(shown)
    deviation = {name: one.deviation(shown.activations, prediction) for name, one in agreements.items()}
    flagged = (probability <= params.accept_above) & (deviation[RULE] > 0)
    new = {judge: relabelled(agreements[judge], shown, flagged, params.candidates) for judge in (RULE, RANDOM)}
    new["runner_up"] = torch.where(flagged, shown.logits.topk(2, dim=1).indices[:, 1], prediction)
    return Evidence(labels, prediction, probability, entropy(shown), deviation, new)


Detector = Callable[[Evidence], Detection]


def detectors(validation: Evidence, accept_above: float) -> dict[str, Detector]:
    """The paper's rule, its controls and the usual scores, by name.

    Softmax and entropy flag from the value at which they flag as many validation images as the paper's rule does.
    """
    found: dict[str, Detector] = {
        name: lambda seen, name=name: gated(seen, name, accept_above) for name in validation.deviation
    }
    found["filters_ungated"] = lambda seen: gated(seen, RULE, 1.0)
    found["gate"] = lambda seen: Detection(seen.probability <= accept_above, -seen.probability)
    rate = float(found[RULE](validation).flagged.double().mean())
    found["max_softmax"] = flagging_share(lambda seen: -seen.probability, validation, rate)
    found["entropy"] = flagging_share(lambda seen: seen.entropy, validation, rate)
    return found


def gated(seen: Evidence, filters: str, accept_above: float) -> Detection:
    """The paper's rule with some filters. Accepted predictions all get one score, below that of every other."""
    deviation, doubted = seen.deviation[filters], seen.probability <= accept_above
    return Detection(doubted & (deviation > 0), torch.where(doubted, deviation, deviation.min() - 1))


def flagging_share(score: Callable[[Evidence], Tensor], validation: Evidence, share: float) -> Detector:
    """A detector by a score, with the threshold at which it flags this share of the validation images."""
    threshold = score(validation).double().quantile(1 - share)

    def detect(seen: Evidence) -> Detection:
        scores = score(seen)
        return Detection(scores > threshold, scores)

    return detect


def largest(shown: Readout) -> Float[Tensor, "images"]:
    """The softmax probability of each prediction."""
    return shown.logits.softmax(dim=1).amax(dim=1)


def entropy(shown: Readout) -> Float[Tensor, "images"]:
    """The entropy of each prediction, in nats."""
    return torch.special.entr(shown.logits.softmax(dim=1)).sum(dim=1)


def detection_measures(detection: Detection, wrong: Bool[Tensor, "images"]) -> dict[str, float]:
    """How well a detector finds errors: at its threshold, and over all thresholds where some predictions are wrong.

    `fpr_at_95` is the share of correct predictions that are flagged where 95 % of the wrong ones are.
    """
    hits, flagged, errors = (int(some.sum()) for some in (detection.flagged & wrong, detection.flagged, wrong))
    result = {
        "flagged": float(flagged),
        "recall": hits / max(errors, 1),
        "precision": hits / max(flagged, 1),
        "f1": 2 * hits / max(flagged + errors, 1),
    }
    if 0 < errors < len(wrong):
        truth, score = wrong.numpy(), detection.score.double().numpy()
        false, true, _ = roc_curve(truth, score)
        result["auroc"] = float(roc_auc_score(truth, score))
        result["aupr"] = float(average_precision_score(truth, score))
        result["fpr_at_95"] = float(false[(true >= 0.95).argmax()])
    return result


def relabelled(
    agreement: FilterAgreement, shown: Readout, flagged: Bool[Tensor, "images"], candidates: int
) -> Int64[Tensor, "images"]:
    """New labels: a flagged image gets the one of its likeliest classes with which its filters agree best.

    Agreement is compared with that of each class's own images. Images that are not flagged keep their prediction.
    """
    labels = shown.logits.argmax(dim=1)
    rows = flagged.nonzero()[:, 0]
    if len(rows) == 0:
        return labels
    likely = shown.logits[rows].topk(min(candidates, shown.logits.shape[1]), dim=1).indices
    activations = shown.activations[rows]
    deviation = torch.stack([agreement.deviation(activations, candidate) for candidate in likely.T], dim=1)
    labels[rows] = likely.gather(1, deviation.argmin(dim=1, keepdim=True))[:, 0]
    return labels


def relabelling(detection: Detection, seen: Evidence) -> dict[str, float]:
    """Accuracy before and after, and how many predictions each way of relabelling corrects and breaks."""
    before = seen.prediction == seen.labels
    result = {"accuracy": float(before.double().mean()), "flagged": float(detection.flagged.sum())}
    for name, new in seen.relabels.items():
        after = new == seen.labels
        result[f"{name}/accuracy"] = float(after.double().mean())
        result[f"{name}/corrected"] = float((after & ~before).sum())
        result[f"{name}/broken"] = float((before & ~after).sum())
    return result


def by_class(detection: Detection, seen: Evidence, class_names: tuple[str, ...]) -> Iterator[dict[str, str | int]]:
    """For each predicted class how many of its predictions are wrong, flagged, and both."""
    wrong = seen.prediction != seen.labels
    for number, name in enumerate(class_names):
        given = seen.prediction == number
        yield {
            "class": name,
            "predicted": int(given.sum()),
            "errors": int((given & wrong).sum()),
            "flagged": int((given & detection.flagged).sum()),
            "found": int((given & wrong & detection.flagged).sum()),
        }


DetectionReport = dict[str, dict[str, Any]]
"""Split → images, errors, detectors, relabelling; for the test split also by_class."""


class Explained(NamedTuple):
    """A classifier with its filter bank, and the unshifted splits that thresholds are taken from."""

    classifier: Classifier
    bank: FilterBank
    train: Split
    validation: Split


def detect(
    explained: Explained,
    views: Iterator[View],
    filters: FilterParams,
    params: DetectionParams,
    seed: int,
    folder: Path | None = None,
) -> DetectionReport:
    """The measures of every detector, and of relabelling by filters, on every split.

    Erasures are left out: they ask what a model needs, not whether it errs. With the folder of an unfinished artifact,
    splits that were judged before are not judged again.

    Raises:
        UserError: the images or classes of a split are not those that the classifier was made for.
    """
    classifier, bank, train, validation = explained
    check_fits(classifier, train)
    head = LastLayer(*classifier.head()).to("cpu")
    own = bank.global_filters(filters.detection_frequency_threshold)
    sets = {RULE: own, RANDOM: random_like(own, seed), PERMUTED: permuted(own, seed)}
    seen = readouts(classifier, train)
    agreements = filter_agreements(bank, sets, head, seen, filters.confidence_threshold, params.agreement)

    def told(split: Split) -> Evidence:
        return Evidence.joined([evidence(*block, agreements, params) for block in readouts(classifier, split)])

    found = detectors(told(validation), params.accept_above)

    def judged(name: str, parts: list[View]) -> dict[str, Any]:
        known = Evidence.joined([told(view.split) for view in parts])
        detections = {detector: find(known) for detector, find in found.items()}
        wrong = known.prediction != known.labels
        outcome: dict[str, Any] = {
            "images": len(known.labels),
            "errors": int(wrong.sum()),
            "detectors": {detector: detection_measures(one, wrong) for detector, one in detections.items()},
            "relabelling": relabelling(detections[RULE], known),
        }
        if name == "test":
            outcome["by_class"] = list(by_class(detections[RULE], known, classifier.class_names))
        return outcome

    def judged_once(name: str, parts: list[View]) -> dict[str, Any]:
        file = f"{name.replace('/', '-')}-{fingerprint(*(view.split.identity for view in parts))}"
        return kept(folder, file, partial(judged, name, parts))

    return {name: judged_once(name, parts) for name, parts in _splits(views)}


def _splits(views: Iterator[View]) -> Iterator[tuple[str, list[View]]]:
    corrupted: list[View] = []  # judged together, at the end
    for view in tqdm(views, desc="detecting", disable=None):
        if view.name.startswith("corruptions/"):
            corrupted.append(view)
        elif not view.name.startswith("erasures/"):
            yield view.name, [view]
    if corrupted:
        yield "corruptions", corrupted
