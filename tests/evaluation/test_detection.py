"""Detection held against slow references, planted classifiers and limiting cases."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from everycause.evaluation.detection import (
    PERMUTED,
    RANDOM,
    RULE,
    Detection,
    DetectionParams,
    Evidence,
    FilterAgreement,
    by_class,
    detection_measures,
    detectors,
    entropy,
    evidence,
    filter_agreements,
    flagging_share,
    gated,
    largest,
    relabelled,
    relabelling,
)
from everycause.explanation.exact_filters import ExactFilters
from everycause.explanation.filters import FilterBank, accumulate, permuted, random_like
from everycause.explanation.heads import LastLayer
from everycause.models import Readout

CLASSES, FILTERS = 3, 9
HEAD = LastLayer(torch.eye(CLASSES).repeat_interleave(3, dim=1) * 2.0, torch.zeros(CLASSES))


def readout(count: int, seed: int, noise: float = 0.3) -> tuple[Readout, Tensor]:
    """Each class uses three filters of its own, all of them; noise makes some predictions wrong."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    activations = (
        torch.eye(CLASSES).repeat_interleave(3, dim=1)[labels] * 0.6
        + noise * torch.randn(count, FILTERS, generator=generator)
    ).relu()
    return Readout(activations @ HEAD.weight.T + HEAD.bias, activations), labels


@pytest.fixture
def bank() -> FilterBank:
    seen, labels = readout(300, 0)
    return accumulate(ExactFilters("necessary", HEAD), HEAD, seen, labels, 0.5, "model")


def made(bank: FilterBank, measure: str) -> FilterAgreement:
    return filter_agreements(bank, {RULE: bank.global_filters(0.15)}, HEAD, [readout(300, 0)], 0.5, measure)[RULE]


def told(bank: FilterBank, shown: Readout, labels: Tensor, size: int = 1000) -> Evidence:
    """The evidence by the paper's rule and its controls, gathered from blocks of `size` images."""
    own, params = bank.global_filters(0.15), DetectionParams(accept_above=0.9, agreement="recall", candidates=2)
    sets = {RULE: own, RANDOM: random_like(own, 0), PERMUTED: permuted(own, 0)}
    seen, known = readout(300, 0)
    blocks = zip(seen.logits.split(size), seen.activations.split(size), known.split(size), strict=True)
    train = [(Readout(logits, activations), some) for logits, activations, some in blocks]
    agreements = filter_agreements(bank, sets, HEAD, train, 0.5, "recall")
    parts = zip(shown.logits.split(size), shown.activations.split(size), labels.split(size), strict=True)
    return Evidence.joined([evidence(Readout(*both), some, agreements, params) for *both, some in parts])


@pytest.mark.parametrize("measure", ["recall", "precision", "f1", "l1"])
def test_agreement_and_thresholds_are_those_of_the_slow_reference(bank: FilterBank, measure: str) -> None:
    one, (seen, labels) = made(bank, measure), readout(300, 0)

    def slow(activation: Tensor, label: int) -> float:
        used = bank.local.minimum_correct(activation[None], torch.tensor([label]))[0].tolist()
        own = bank.global_filters(0.15)[label].tolist()
        both = sum(u and o for u, o in zip(used, own, strict=True))
        recall, precision = both / sum(own), both / max(sum(used), 1)
        if measure == "l1":
            mean = (bank.magnitude[label] / bank.support[label]).tolist()
            return -sum(abs(float(a) * u - m) for a, u, o, m in zip(activation, used, own, mean, strict=True) if u or o)
        return {"recall": recall, "precision": precision, "f1": 2 * both / (sum(own) + sum(used)) if both else 0.0}[
            measure
        ]

    agreements: dict[int, list[float]] = {label: [] for label in range(CLASSES)}
    for activation, logits, label in zip(seen.activations, seen.logits, labels.tolist(), strict=True):
        mask = bank.local.minimum_correct(activation[None], torch.tensor([label]))[0]
        kept = int((activation * mask @ HEAD.weight.T + HEAD.bias).argmax()) == label
        if int(logits.argmax()) == label and float(logits.softmax(0)[label]) >= 0.5 and kept:
            agreements[label].append(slow(activation, label))
    assert one.threshold.tolist() == pytest.approx(
        [sum(values) / len(values) for values in agreements.values()], abs=1e-5
    )
    shown, _ = readout(20, 5)
    predicted = shown.logits.argmax(dim=1)
    expected = [
        slow(activation, label) for activation, label in zip(shown.activations, predicted.tolist(), strict=True)
    ]
    assert one.agreement(shown.activations, predicted).tolist() == pytest.approx(expected, abs=1e-5)


def test_confident_predictions_are_accepted_and_never_the_most_suspicious(bank: FilterBank) -> None:
    shown, labels = readout(200, 1, noise=0.6)
    seen = told(bank, shown, labels)
    detection = gated(seen, RULE, 0.9)
    sure = largest(shown) > 0.9
    assert sure.any() and not detection.flagged[sure].any() and detection.flagged.any()
    assert detection.score[sure].unique().numel() == 1 and detection.score[sure].max() < detection.score[~sure].min()
    assert not gated(seen, RULE, 0.0).flagged.any()


def test_the_evidence_does_not_depend_on_the_blocks_in_which_it_is_gathered(bank: FilterBank) -> None:
    shown, labels = readout(200, 1, noise=0.6)
    whole, parts = (told(bank, shown, labels, size) for size in (1000, 7))
    assert torch.equal(whole.labels, labels) and torch.equal(whole.prediction, shown.logits.argmax(dim=1))
    for kind in ("labels", "prediction", "probability", "entropy"):
        assert torch.equal(getattr(whole, kind), getattr(parts, kind))
    for name, new in whole.relabels.items():
        assert torch.equal(new, parts.relabels[name])
    for name, deviation in whole.deviation.items():
        assert torch.allclose(deviation, parts.deviation[name], atol=1e-6)
    flagged = gated(whole, RULE, 0.9).flagged
    expected = relabelled(made(bank, "recall"), shown, flagged, 2)
    assert torch.equal(whole.relabels[RULE], expected)
    assert torch.equal(whole.relabels["runner_up"] != whole.prediction, flagged)


def test_measures_agree_with_counting_every_threshold() -> None:
    generator = torch.Generator().manual_seed(0)
    wrong, score = torch.rand(40, generator=generator) > 0.7, torch.rand(40, generator=generator).mul(10).round()
    found = detection_measures(Detection(score > 6, score), wrong)
    hits = int(((score > 6) & wrong).sum())
    assert found["recall"] == hits / int(wrong.sum()) and found["precision"] == hits / int((score > 6).sum())
    assert found["f1"] == pytest.approx(
        2 * found["recall"] * found["precision"] / (found["recall"] + found["precision"])
    )
    pairs = [(float(a > b) + 0.5 * float(a == b)) for a in score[wrong] for b in score[~wrong]]
    assert found["auroc"] == pytest.approx(sum(pairs) / len(pairs))
    levels = sorted(set(score.tolist()), reverse=True)
    rates = [
        (
            float(((score >= level) & wrong).sum() / wrong.sum()),
            float(((score >= level) & ~wrong).sum() / (~wrong).sum()),
        )
        for level in levels
    ]
    assert found["fpr_at_95"] == pytest.approx(min(false for true, false in rates if true >= 0.95))
    aupr, before = 0.0, 0.0
    for level, (true, _) in zip(levels, rates, strict=True):
        aupr += (true - before) * float(((score >= level) & wrong).sum() / (score >= level).sum())
        before = true
    assert found["aupr"] == pytest.approx(aupr)


@pytest.mark.parametrize("wrong", [torch.zeros(5, dtype=torch.bool), torch.ones(5, dtype=torch.bool)])
def test_without_errors_or_with_errors_alone_there_are_no_curves(wrong: Tensor) -> None:
    assert set(detection_measures(Detection(torch.ones(5, dtype=torch.bool), torch.rand(5)), wrong)) == {
        "flagged",
        "recall",
        "precision",
        "f1",
    }


def test_the_rivals_flag_as_many_validation_images_and_the_controls_differ_from_the_rule(bank: FilterBank) -> None:
    validation, shown = (told(bank, *readout(300, seed, noise)) for seed, noise in ((2, 0.5), (3, 0.6)))
    found = detectors(validation, 0.9)
    assert set(found) == {RULE, RANDOM, PERMUTED, "filters_ungated", "gate", "max_softmax", "entropy"}
    flagged = {name: int(find(validation).flagged.sum()) for name, find in found.items()}
    assert flagged[RULE] > 0
    assert abs(flagged["max_softmax"] - flagged[RULE]) <= 1 and abs(flagged["entropy"] - flagged[RULE]) <= 1
    wrong = shown.prediction != shown.labels
    scores = {name: detection_measures(find(shown), wrong)["auroc"] for name, find in found.items()}
    assert scores["max_softmax"] == scores["gate"] and scores[RULE] != scores[PERMUTED] and min(scores.values()) > 0.2


def test_a_score_flags_the_asked_share_of_its_validation_images(bank: FilterBank) -> None:
    validation = told(bank, *readout(200, 2, noise=0.5))
    for share in (0.0, 0.25, 1.0):
        flagged = flagging_share(lambda seen: seen.entropy, validation, share)(validation).flagged
        assert flagged.double().mean() == pytest.approx(share, abs=1.5 / 200)


def test_entropy_and_softmax_are_extreme_for_the_undecided() -> None:
    shown = Readout(torch.tensor([[0.0, 0.0, 0.0], [50.0, 0.0, 0.0]]), torch.zeros(2, FILTERS))
    assert entropy(shown).tolist() == pytest.approx([math.log(3), 0.0], abs=1e-6) and largest(
        shown
    ).tolist() == pytest.approx([1 / 3, 1.0])


def test_a_flagged_image_gets_the_class_whose_filters_it_uses_and_the_others_keep_theirs(bank: FilterBank) -> None:
    one = replace(made(bank, "recall"), local=ExactFilters("sufficient", HEAD))
    activations = torch.zeros(2, FILTERS)
    activations[:, 3:6] = 0.5  # the filters of class 1
    logits = torch.tensor([[3.0, 2.9, 0.0], [3.0, 2.9, 0.0]])
    flagged = torch.tensor([True, False])
    assert relabelled(one, Readout(logits, activations), flagged, 2).tolist() == [1, 0]
    assert relabelled(one, Readout(logits, activations), torch.zeros(2, dtype=torch.bool), 5).tolist() == [0, 0]
    old, new, none = torch.tensor([0, 0]), torch.tensor([1, 0]), torch.zeros(2)
    found = relabelling(Detection(flagged, flagged.float()), Evidence(new, old, none, none, {}, {"new": new}))
    assert found == {"accuracy": 0.5, "flagged": 1.0, "new/accuracy": 1.0, "new/corrected": 1.0, "new/broken": 0.0}


def test_the_class_table_counts_every_prediction_once(bank: FilterBank) -> None:
    shown, labels = readout(90, 4, noise=0.6)
    seen = told(bank, shown, labels)
    detection = gated(seen, RULE, 0.9)
    rows = list(by_class(detection, seen, ("a", "b", "c")))
    totals = {key: sum(row[key] for row in rows) for key in ("predicted", "errors", "flagged", "found")}
    wrong = shown.logits.argmax(dim=1) != labels
    assert totals == {
        "predicted": 90,
        "errors": int(wrong.sum()),
        "flagged": int(detection.flagged.sum()),
        "found": int((detection.flagged & wrong).sum()),
    }
