"""Published protocols: check values that need no data, slow references, and an independent implementation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from everycause.evaluation.metrics import (
    ALEXNET,
    ALEXNET_CLEAN,
    BINS,
    calibration_error,
    group_accuracies,
    mean_corruption_error,
    mean_recall,
    metrics,
    top_accuracy,
)
from everycause.evaluation.predictions import Predictions, answers, restricted
from tests.evaluation.answered import predictions_of


def scored(images: int = 200, classes: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    scores = torch.randn(images, classes, generator=generator) + 1.5 * torch.nn.functional.one_hot(labels, classes)
    return scores, labels


def test_alexnets_own_errors_are_100() -> None:
    assert mean_corruption_error(ALEXNET) == pytest.approx(100.0) and mean_corruption_error(
        ALEXNET, ALEXNET_CLEAN
    ) == pytest.approx(100.0)
    assert mean_corruption_error({name: error / 2 for name, error in ALEXNET.items()}) == pytest.approx(50.0)
    with pytest.raises(ValueError, match="fifteen corruptions of ImageNet-C, and 1 were measured"):
        mean_corruption_error({"fog": 0.5})


def test_resnet50s_published_errors_give_its_published_mce() -> None:
    # per-corruption CE of ResNet-50 in arXiv 1903.12261, table 1; their mean is published as 76.7
    published = dict(zip(ALEXNET, (80, 82, 83, 75, 89, 78, 80, 78, 75, 66, 57, 71, 85, 77, 77), strict=True))
    errors = {name: value / 100 * ALEXNET[name] for name, value in published.items()}
    assert mean_corruption_error(errors) == pytest.approx(76.7, abs=0.3)


def test_top_accuracy_counts_labels_among_the_largest_scores_also_where_classes_are_no_answer() -> None:
    scores, labels = scored()
    slow = [int(labels[i]) in sorted(range(7), key=lambda c: -float(scores[i, c]))[:5] for i in range(len(labels))]
    answered = answers(scores, labels)
    assert top_accuracy(answered, 5) == pytest.approx(sum(slow) / len(slow), abs=1e-12)
    assert top_accuracy(answered, 1) == pytest.approx(float((scores.argmax(dim=1) == labels).double().mean()))
    masked = restricted(scores, torch.tensor([5, 6]))
    assert top_accuracy(answers(masked, torch.full_like(labels, 6)), 2) == 1.0


def test_top_accuracy_is_that_of_scikit_learn_also_where_logits_are_equal() -> None:
    scores, labels = scored()
    for one in (scores, scores.round(), torch.zeros_like(scores)):
        for count in range(1, 7):
            theirs = top_k_accuracy_score(labels, one, k=count, labels=np.arange(7))
            assert top_accuracy(answers(one, labels), count) == float(theirs)


def test_the_mean_recall_is_over_the_classes_that_occur() -> None:
    scores, labels = scored()
    prediction = scores.argmax(dim=1)
    slow = [float((prediction[labels == label] == label).double().mean()) for label in range(7)]
    assert mean_recall(prediction, labels) == pytest.approx(sum(slow) / 7, abs=1e-12)
    assert mean_recall(torch.tensor([0, 3, 5]), torch.tensor([0, 0, 5])) == pytest.approx(0.75)


def test_the_calibration_error_is_that_of_the_slow_reference() -> None:
    scores, labels = scored()
    probability = scores.double().softmax(dim=1)
    expected = 0.0
    for number in range(BINS):
        inside = [i for i in range(len(labels)) if number / BINS < float(probability[i].max()) <= (number + 1) / BINS]
        if inside:
            accuracy = np.mean([int(probability[i].argmax()) == int(labels[i]) for i in inside])
            expected += (
                len(inside) / len(labels) * abs(accuracy - np.mean([float(probability[i].max()) for i in inside]))
            )
    assert calibration_error(answers(scores, labels)) == pytest.approx(expected, abs=1e-9)
    sure = torch.nn.functional.one_hot(torch.arange(6) % 3, 3) * 50.0
    assert calibration_error(answers(sure, torch.arange(6) % 3)) == pytest.approx(0)
    assert calibration_error(answers(sure, (torch.arange(6) + 1) % 3)) == pytest.approx(1)


def test_groups_are_averaged_one_by_one() -> None:
    assert group_accuracies(torch.tensor([True, False, True, True]), torch.tensor([0, 0, 2, 2])) == {0: 0.5, 2: 1.0}


def test_a_masked_view_answers_among_its_classes_and_is_compared_with_the_clean_images_of_the_same(
    tmp_path: Path,
) -> None:
    scores, labels = scored(classes=10)
    among = torch.tensor([1, 4, 8])
    rows = torch.isin(labels, among)
    stored = predictions_of(
        {"test": scores, "renditions": scores[rows]},
        {"test": labels, "renditions": labels[rows]},
        None,
        None,
        {"renditions": among},
    )
    expected = np.mean([among[scores[i, among].argmax()] == labels[i] for i in rows.nonzero()[:, 0]])
    assert float(stored.correct("renditions").double().mean()) == pytest.approx(expected)
    assert expected > float((scores[rows].argmax(dim=1) == labels[rows]).double().mean())
    measures = metrics(stored, None)
    assert measures["accuracy/test_200"] == pytest.approx(expected) and measures["rendition_gap"] == pytest.approx(0)
    stored.save(tmp_path)
    loaded = Predictions.load(tmp_path)
    assert metrics(loaded, None) == measures and torch.equal(loaded.among["renditions"], among)


@pytest.mark.parametrize("released", [True, False])
def test_only_the_published_images_have_an_mce(released: bool, tmp_path: Path) -> None:
    scores, labels = scored()
    views = {f"corruptions/{name}/{severity}": scores for name in ALEXNET for severity in range(1, 6)}
    stored = predictions_of({"test": scores} | views, dict.fromkeys(["test", *views], labels), None, released=released)
    stored.save(tmp_path)
    measures = metrics(Predictions.load(tmp_path), None)
    assert ("mce" in measures) == released and measures["corruption_group/noise"] == pytest.approx(
        measures["accuracy/test"]
    )
    if released:
        assert measures["mce"] == pytest.approx(
            mean_corruption_error(dict.fromkeys(ALEXNET, 1 - measures["accuracy/test"]))
        )


def test_the_worst_group_is_the_worst_of_those_named(tmp_path: Path) -> None:
    scores, labels = scored(classes=2)
    groups = 2 * labels + (torch.arange(200) % 2)
    stored = predictions_of({"test": scores}, {"test": labels}, None, groups)
    stored.save(tmp_path)
    measures = metrics(Predictions.load(tmp_path), None)
    assert measures["worst_group"] == min(measures[f"group/{number}"] for number in range(4))
