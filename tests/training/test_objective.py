import math

import pytest
import torch

from everycause.training.loss import PAPER_BATCH, LossParams, accuracy, filter_terms, joint_terms

BATCH, CLASSES, FILTERS = 12, 4, 6


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(BATCH, CLASSES, generator=generator)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    activations = torch.randn(BATCH, FILTERS, generator=generator).relu()
    filters = torch.rand(CLASSES, FILTERS, generator=generator) > 0.5
    return logits, labels, activations, filters


def weights(augment: float, mc: float, nonmc: float) -> LossParams:
    return LossParams(lambda_augment=augment, lambda_mc=mc, lambda_nonmc=nonmc, surrogate="sigmoid_threshold")


def test_the_joint_loss_is_that_of_the_papers() -> None:
    logits, labels, activations, filters = example()
    terms = joint_terms(
        logits, labels, logits[:5] * 2, labels[:5], filter_terms(activations, labels, filters), weights(0.7, 1e-2, 2e-2)
    )
    expected = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        expected += (math.log(sum(map(math.exp, row))) - row[label]) / BATCH
    for row, label in zip((logits[:5] * 2).tolist(), labels[:5].tolist(), strict=True):
        expected += 0.7 * (math.log(sum(map(math.exp, row))) - row[label]) / 5
    for row, label in zip(activations.tolist(), labels.tolist(), strict=True):
        for k, value in enumerate(row):
            m = 1 / (1 + math.exp(-value))
            m = m if m > 0.5 else 0.0
            expected += (-1e-2 if filters[label, k] else 2e-2) * m * PAPER_BATCH / BATCH
    assert float(terms["loss"]) == pytest.approx(expected, rel=1e-5)


def test_with_all_weights_zero_it_is_cross_entropy_to_the_last_bit() -> None:
    logits, labels, activations, filters = example()
    terms = joint_terms(
        logits, labels, logits, labels, filter_terms(activations, labels, filters), weights(0.0, 0.0, 0.0)
    )
    assert torch.equal(terms["loss"], torch.nn.functional.cross_entropy(logits, labels))
    none = torch.zeros(0, dtype=torch.int64)
    assert torch.equal(
        joint_terms(logits, labels, logits[:0], none, None, weights(1.0, 1.0, 1.0))["loss"], terms["cross_entropy"]
    )


def test_the_weight_of_an_image_does_not_depend_on_the_batch() -> None:
    _, labels, activations, filters = example()
    once = filter_terms(activations, labels, filters)
    twice = filter_terms(activations.repeat(2, 1), labels.repeat(2), filters)
    assert torch.allclose(once.mc, twice.mc) and torch.allclose(once.nonmc, twice.nonmc)
    paper = filter_terms(activations[:1].repeat(PAPER_BATCH, 1), labels[:1].repeat(PAPER_BATCH), filters)
    active = activations[0].sigmoid() * (activations[0] > 0)
    assert torch.allclose(paper.mc, PAPER_BATCH * (active * filters[labels[0]]).sum())


def test_more_activity_on_own_filters_lowers_the_loss_and_dead_filters_get_no_gradient() -> None:
    _, labels, activations, filters = example()
    activations = activations.clone().requires_grad_()
    terms = filter_terms(activations, labels, filters)
    (-terms.mc + terms.nonmc).backward()
    own = filters[labels]
    assert (activations.grad[own & (activations > 0)] < 0).all() and (
        activations.grad[~own & (activations > 0)] > 0
    ).all()
    assert (activations.grad[activations == 0] == 0).all()


def test_accuracy_counts_exactly() -> None:
    assert accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])) == 0.75


def slow_terms(
    activations: torch.Tensor, labels: torch.Tensor, filters: torch.Tensor, surrogate: str
) -> tuple[float, float, float]:
    mc = nonmc = active = 0.0
    for row, label in zip(activations.tolist(), labels.tolist(), strict=True):
        positive = [max(value, 0.0) for value in row]
        active += sum(value > 0 for value in row) / len(labels)
        if surrogate == "share":
            share = (
                sum(value for k, value in enumerate(positive) if filters[label, k]) / sum(positive)
                if sum(positive)
                else 1.0
            )
            share = max(share, 1e-6)
            mc += math.log(share) * PAPER_BATCH / len(labels)
            nonmc += (1 - share) * PAPER_BATCH / len(labels)
            continue
        for k, value in enumerate(positive):
            m = value if surrogate == "raw" else (1 / (1 + math.exp(-value)) if value > 0 else 0.0)
            if filters[label, k]:
                mc += m * PAPER_BATCH / len(labels)
            else:
                nonmc += m * PAPER_BATCH / len(labels)
    return mc, nonmc, active


@pytest.mark.parametrize("surrogate", ["sigmoid_threshold", "raw", "share"])
def test_every_surrogate_is_that_of_its_slow_reference_and_its_gradient_is_finite(surrogate: str) -> None:
    _, labels, activations, filters = example()
    activations = activations.clone().requires_grad_()
    terms = filter_terms(activations, labels, filters, surrogate)
    assert [float(term) for term in terms] == pytest.approx(
        slow_terms(activations.detach(), labels, filters, surrogate), rel=1e-5
    )
    (terms.nonmc - terms.mc).backward()
    assert activations.grad.isfinite().all() and (activations.grad != 0).any()


@pytest.mark.parametrize("surrogate", ["sigmoid_threshold", "raw", "share"])
def test_images_of_a_class_without_filters_take_no_part_in_the_terms(surrogate: str) -> None:
    _, labels, activations, filters = example()
    filters[labels[0]] = False
    others = labels != labels[0]
    assert bool(others.any())
    activations = activations.clone().requires_grad_()
    terms = filter_terms(activations, labels, filters, surrogate)
    alone = filter_terms(activations[others], labels[others], filters, surrogate)
    share = float(others.double().mean())
    assert float(terms.mc) == pytest.approx(float(alone.mc) * share, rel=1e-5)
    assert float(terms.nonmc) == pytest.approx(float(alone.nonmc) * share, rel=1e-5)
    (terms.nonmc - terms.mc).backward()
    assert not bool(activations.grad[~others].any()) and bool(activations.grad[others].any())


def test_a_share_does_not_change_with_the_scale_and_survives_an_image_without_activity() -> None:
    _, labels, activations, filters = example()
    once, thousandfold = (filter_terms(activations * scale, labels, filters, "share") for scale in (1.0, 1e3))
    assert torch.allclose(once.mc, thousandfold.mc, rtol=1e-4) and torch.allclose(
        once.nonmc, thousandfold.nonmc, rtol=1e-4
    )
    dark = torch.zeros_like(activations).requires_grad_()
    filter_terms(dark, labels, filters, "share").mc.backward()
    assert dark.grad.isfinite().all()
    everything = filter_terms(activations, labels, torch.ones_like(filters), "share")
    assert float(everything.mc) == 0 and float(everything.nonmc) == pytest.approx(0, abs=1e-5)


def test_watching_the_terms_with_weight_zero_does_not_change_the_loss() -> None:
    logits, labels, activations, filters = example()
    watched = joint_terms(
        logits, labels, logits[:0], labels[:0], filter_terms(activations, labels, filters), weights(1.0, 0.0, 0.0)
    )
    assert torch.equal(watched["loss"], watched["cross_entropy"]) and {"mc", "nonmc", "active"} <= set(watched)
