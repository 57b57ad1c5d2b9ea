"""The detectors of misclassifications on the test split and on every shifted one, in one pass over each."""

from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from everycause.data.dataset import DataParams, open_split
from everycause.data.shifts import views
from everycause.evaluation.misclassification import RULE, DetectionParams, by_class, detector, doubters, measures, relabelled, relabelling
from everycause.evaluation.ood import EvaluationParams
from everycause.explanation.filters import FilterBank, FilterParams, random_like
from everycause.explanation.heads import LinearHead
from everycause.inference import readout_of
from everycause.model import Classifier, Readout

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
    head = LinearHead(*classifier.head()).to("cpu")
    seen, held_out = readout_of(classifier, train), readout_of(classifier, validation)
    frequency, confidence = filters.detection_frequency_threshold, filters.confidence_threshold
    found = doubters(bank, head, seen, train.labels, held_out, params, frequency, confidence, seed)
    own = bank.global_filters(frequency)
    judges = {
        name: detector(bank, some, head, seen, train.labels, confidence, params.agreement)
        for name, some in ((RULE, own), ("filters_random", random_like(own, seed)))
    }
    report: Report = {}
    for name, shown, labels in _splits(classifier, data, evaluation, threads, cache):
        wrong = shown.logits.argmax(dim=1) != labels
        doubts = {doubter: find(shown) for doubter, find in found.items()}
        new = {judge: relabelled(one, shown, doubts[RULE].flagged, params.candidates) for judge, one in judges.items()}
        new["runner_up"] = torch.where(doubts[RULE].flagged, shown.logits.topk(2, dim=1).indices[:, 1], shown.logits.argmax(dim=1))
        report[name] = {
            "images": len(labels), "errors": int(wrong.sum()), "detectors": {doubter: measures(doubt, wrong) for doubter, doubt in doubts.items()},
            "relabelling": relabelling(doubts[RULE], new, shown, labels),
        }  # fmt: skip
        if name == "test":
            report[name]["by_class"] = list(by_class(doubts[RULE], shown, labels, classifier.class_names))
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
        views(data, evaluation.corruptions, evaluation.severities, threads, cache if evaluation.keep_corrupted else None), desc="detecting", disable=None
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
