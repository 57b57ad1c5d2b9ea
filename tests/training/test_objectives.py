"""Objectives of other work against their formulas, written slowly."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from everycause.errors import UserError
from everycause.models import Classifier
from everycause.training.objectives import (
    DECOUPLING,
    DISTILLATION,
    GROUP_STEP,
    GroupRobust,
    MaskedDistillation,
    SelfChallenging,
    SpectralDecoupling,
    features_of,
    kept_features,
)
from everycause.training.steps import Step
from tests.conftest import make_classifier

COUNT = 9


@pytest.fixture
def classifier() -> Classifier:
    return make_classifier().eval()


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(COUNT, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def step(originals: int, others: int = 0) -> Step:
    images = torch.zeros(originals, 3, 32, 32, dtype=torch.uint8)
    labels = torch.arange(originals) % 4
    return Step(torch.arange(originals), images, labels, images[:others], labels[:others])


def test_features_are_what_the_last_layer_reads(classifier: Classifier, inputs: torch.Tensor) -> None:
    features, logits, head = features_of(classifier, inputs)
    assert torch.allclose(features @ head.weight.T + head.bias, logits, atol=1e-5)
    assert torch.allclose(logits, classifier(inputs)) and not head._forward_pre_hooks


def test_a_network_without_a_linear_last_layer_is_refused(classifier: Classifier, inputs: torch.Tensor) -> None:
    classifier.network.get_classifier = lambda: torch.nn.Identity()
    with pytest.raises(UserError, match="one linear last layer, which test_resnet has not"):
        features_of(classifier, inputs)


def test_self_challenging_mutes_the_third_of_the_features_in_the_third_of_the_images(
    classifier: Classifier, inputs: torch.Tensor
) -> None:
    labels = torch.arange(COUNT) % 4
    with torch.no_grad():
        features, logits, head = features_of(classifier, inputs)
        keep = kept_features(features, logits, labels, head)
        lost, muted = [], []
        for row, label in enumerate(labels.tolist()):
            weights = head.weight[label]
            threshold = sorted(weights.tolist())[math.ceil((len(weights) - 1) * 2 / 3)]
            mask = (weights < threshold).float()
            muted.append(mask)
            after = (features[row] * mask) @ head.weight.T + head.bias
            lost.append(float(logits[row].softmax(0)[label] - after.softmax(0)[label]))
        hit = sorted(range(COUNT), key=lambda row: -lost[row])[:3]
        for row in range(COUNT):
            assert torch.equal(keep[row], muted[row] if row in hit else torch.ones_like(muted[row]))
        terms = SelfChallenging().terms(classifier, inputs, step(COUNT), cross_entropy)
        expected = cross_entropy((features * keep) @ head.weight.T + head.bias, labels)
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_spectral_decoupling_adds_half_lambda_times_the_squared_length_of_the_logits(
    classifier: Classifier, inputs: torch.Tensor
) -> None:
    terms = SpectralDecoupling().terms(classifier, inputs, step(COUNT), cross_entropy)
    logits, total = classifier(inputs), 0.0
    for row in range(COUNT):
        total += -float(logits[row].detach().log_softmax(0)[row % 4]) + DECOUPLING / 2 * sum(
            float(v) ** 2 for v in logits[row].detach()
        )
    assert terms["loss"].item() == pytest.approx(total / COUNT, rel=1e-5)


def test_distillation_is_zero_while_the_student_is_the_teacher(classifier: Classifier, inputs: torch.Tensor) -> None:
    objective = MaskedDistillation(classifier)
    terms = objective.terms(classifier, inputs, step(6, 3), cross_entropy)
    assert terms["distillation"].item() == 0.0
    assert terms["loss"].item() == pytest.approx(cross_entropy(classifier(inputs)[:6], step(6).labels).item())
    assert objective.terms(classifier, inputs[:6], step(6), cross_entropy).keys() == {"cross_entropy", "loss"}


def test_distillation_is_the_mean_squared_distance_of_the_features_of_masked_images(
    classifier: Classifier, inputs: torch.Tensor
) -> None:
    objective, before = MaskedDistillation(classifier), features_of(classifier, inputs).features.detach()
    with torch.no_grad():
        for value in classifier.parameters():
            value.mul_(1.1)
    terms = objective.terms(classifier, inputs, step(6, 3), cross_entropy)
    after = features_of(classifier, inputs).features
    expected = float(((after[6:] - before[6:]) ** 2).mean())
    assert terms["distillation"].item() == pytest.approx(expected, rel=1e-4) and expected > 0
    total = cross_entropy(classifier(inputs)[:6], step(6).labels).item() + DISTILLATION * expected
    assert terms["loss"].item() == pytest.approx(total, rel=1e-4)


def test_group_weights_grow_with_the_loss_of_their_group(classifier: Classifier, inputs: torch.Tensor) -> None:
    groups = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2, 3])  # group 3 is not in the batch
    objective = GroupRobust(groups)
    terms = objective.terms(classifier, inputs, step(COUNT), cross_entropy)
    logits, labels = classifier(inputs), torch.arange(COUNT) % 4
    mean = {}
    for group in range(3):
        rows = [row for row in range(COUNT) if groups[row] == group]
        mean[group] = sum(-float(logits[row].log_softmax(0)[labels[row]]) for row in rows) / len(rows)
    grown = [0.25 * math.exp(GROUP_STEP * mean.get(group, 0.0)) for group in range(4)]
    weights = [value / sum(grown) for value in grown]
    assert objective.weights.tolist() == pytest.approx(weights, rel=1e-5)
    assert terms["loss"].item() == pytest.approx(sum(weights[group] * mean[group] for group in range(3)), rel=1e-5)
    assert terms["worst_group"].item() == pytest.approx(max(mean.values()), rel=1e-5)
