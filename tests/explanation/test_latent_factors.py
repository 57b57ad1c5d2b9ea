"""The autoencoder of causal and spurious factors: its loss against its formulas, and what it tells apart."""

import pytest
import torch

from everycause.explanation.latent_factors import (
    FactorBatch,
    FactorModel,
    FactorParams,
    factor_quality,
    loss_terms,
    train_factors,
)

PARAMS = FactorParams(causal=2, spurious=3, hidden=16, beta=0.7, epochs=40, batch_size=64, learning_rate=0.005)


def some_batch(attribute: bool) -> FactorBatch:
    torch.manual_seed(0)
    labels = torch.arange(6) % 4
    return FactorBatch(torch.randn(6, 5), torch.randn(6, 4).softmax(dim=1), labels, labels % 2 if attribute else None)


@pytest.mark.parametrize("attribute", (False, True))
def test_the_loss_is_its_formula_written_image_by_image(attribute: bool) -> None:
    batch, noise = some_batch(attribute), torch.randn(6, 5)
    model = FactorModel(5, 4, PARAMS, 2 if attribute else 0)
    model.mean += 0.3
    model.deviation *= 2
    terms = loss_terms(model, batch, noise)
    expected = dict.fromkeys(terms, 0.0)
    drawn = []
    for image in range(6):
        scaled = (batch.features[image] - 0.3) / 2
        mean, log_variance = model.encoder(scaled)[:5], model.encoder(scaled)[5:]
        factors = torch.stack([mean[i] + torch.exp(log_variance[i] / 2) * noise[image, i] for i in range(5)])
        drawn.append(factors.detach())
        difference = model.decoder(factors) - scaled
        divergence = sum(-(1 + log_variance[i] - mean[i] ** 2 - log_variance[i].exp()) / 2 for i in range(5))
        spurious = model.spurious_head(factors[2:]).log_softmax(dim=0)
        wanted = batch.labels if batch.attribute is None else batch.attribute
        expected["reconstruction"] += float((difference**2).sum()) / 2 / 6
        expected["divergence"] += 0.7 * float(divergence) / 6
        expected["label"] -= float(model.label_head(factors[:2]).log_softmax(dim=0)[batch.labels[image]]) / 6
        expected["spurious"] -= float(spurious[wanted[image]]) / 6
        expected["imitation"] -= float(model.imitation(mean[2:]).log_softmax(dim=0) @ batch.probabilities[image]) / 6
    joint = torch.cov(torch.stack(drawn).T)
    expected["covariance"] = sum(float(joint[i, j]) ** 2 for i in range(2) for j in range(2, 5))
    assert {name: float(value) for name, value in terms.items()} == pytest.approx(expected, rel=1e-4)


def test_the_gradient_against_labels_is_reversed_and_that_towards_an_attribute_is_not() -> None:
    for attribute, sign in ((False, -1), (True, 1)):
        batch, model = some_batch(attribute), FactorModel(5, 4, PARAMS, 2 if attribute else 0)
        (last,) = (layer for layer in model.encoder[2:])
        (gradient,) = torch.autograd.grad(loss_terms(model, batch, torch.zeros(6, 5))["spurious"], last.weight)
        wanted = batch.labels if batch.attribute is None else batch.attribute
        plain = torch.nn.functional.cross_entropy(model.spurious_head(model.encode(batch.features).mean[:, 2:]), wanted)
        (direct,) = torch.autograd.grad(plain, last.weight)
        assert direct.abs().max() > 1e-4 and torch.allclose(gradient, sign * direct, atol=1e-7)


def test_the_imitation_teaches_the_encoder_nothing() -> None:
    model = FactorModel(5, 4, PARAMS)
    imitation = loss_terms(model, some_batch(False), torch.zeros(6, 5))["imitation"]
    gradients = torch.autograd.grad(imitation, list(model.parameters()), allow_unused=True)
    moved = {name for (name, _), one in zip(model.named_parameters(), gradients, strict=True) if one is not None}
    assert moved == {"imitation.weight", "imitation.bias"}


def worldly(attribute: bool) -> FactorBatch:
    """Features of which two say the label and two the scene, and a classifier that uses both."""
    generator = torch.Generator().manual_seed(0)
    labels, scene = (torch.randint(2, (512,), generator=generator) for _ in range(2))
    own = torch.stack([labels, labels, scene, scene], dim=1) * 2.0 - 1
    features = own + 0.2 * torch.randn(512, 4, generator=generator)
    logits = torch.stack([-own[:, 0] - 0.5 * own[:, 2], own[:, 0] + 0.5 * own[:, 2]], dim=1)
    return FactorBatch(features, logits.softmax(dim=1), labels, scene if attribute else None)


def trained(batch: FactorBatch, attributes: int) -> FactorModel:
    model, epochs = train_factors(batch, PARAMS, attributes, 0)
    for _ in epochs:
        pass
    return model


def test_factors_are_told_apart_and_training_repeats_bitwise() -> None:
    for attributes in (0, 2):
        batch = worldly(attributes > 0)
        model = trained(batch, attributes)
        quality = factor_quality(model, batch)
        assert quality["factors/label_from_causal"] > 0.95
        known = quality["factors/spurious_known"]
        assert known > 0.95 if attributes else known < 0.75
        assert not any(value.requires_grad for value in model.parameters())
        again = trained(batch, attributes).state_dict()
        assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_spurious_factors_answer_to_the_scene_more_than_to_the_label() -> None:
    batch = worldly(True)
    model = trained(batch, 2)
    start = batch.features[:64]
    moved = []
    for columns in ((0, 1), (2, 3)):
        other = start.clone()
        other[:, columns] *= -1
        change = model.spurious_reading(other) - model.spurious_reading(start)
        moved.append(float(change.square().sum(dim=1).mean()))
    label, scene = moved
    assert scene > 4 * label
