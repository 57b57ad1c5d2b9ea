"""ACE and CECAS: the loss against its formulas, α = 0, no steps, what is kept, targets, and bad input."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from everycause.errors import UserError
from everycause.explanation.latent_factors import FactorModel, FactorParams
from everycause.explanation.prior import DiffusionPrior, ImageNoise, LowPassPrior
from everycause.explanation.prior_training import training_scheduler
from everycause.explanation.steering import (
    Attack,
    CounterfactualParams,
    attack_loss,
    chosen_targets,
    counterfactuals,
    dilation_width,
    kept_places,
    read,
    steering_weight,
)
from everycause.inference import logits_of_images
from everycause.models import Classifier

CPU = torch.device("cpu")
FACTORS = FactorParams(causal=3, spurious=4, hidden=8, beta=1.0, epochs=1, batch_size=8, learning_rate=0.001)


class Shrinking(nn.Module):
    """A denoiser that takes a share of the image for noise."""

    def forward(self, images: torch.Tensor, _step: torch.Tensor) -> torch.Tensor:
        return 0.5 * images


@pytest.fixture
def params(raw: dict) -> CounterfactualParams:
    return CounterfactualParams(**raw["counterfactuals"] | {"iterations": 4, "tau": 2, "chain": 50})


@pytest.fixture
def attack(classifier: Classifier, params: CounterfactualParams) -> Attack:
    return Attack(classifier, DiffusionPrior(Shrinking(), training_scheduler(), 50, 2, 1.0), params)


def factor_model(classifier: Classifier) -> FactorModel:
    features = classifier.readout(torch.zeros(1, 3, 32, 32)).activations.shape[1]
    torch.manual_seed(0)
    model = FactorModel(features, 4, FACTORS).eval().requires_grad_(False)
    model.imitation.weight.mul_(200)
    return model


def images(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def targets(classifier: Classifier, shown: torch.Tensor) -> torch.Tensor:
    return (logits_of_images(classifier, shown).argmax(dim=1) + 1) % 4


@pytest.mark.parametrize(("distance", "alpha"), (("l1", 0.0), ("l2", 0.0), ("l1", 0.7)))
def test_the_loss_is_its_formula_written_image_by_image(attack: Attack, distance: str, alpha: float) -> None:
    settings = attack.params.model_copy(update={"distance": distance, "distance_weight": 0.01})
    model = factor_model(attack.classifier)
    attack = replace(attack, params=settings, factors=model, alpha=alpha)
    originals = images() / 255
    changed = (originals + 0.05 * torch.randn(originals.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    wanted = targets(attack.classifier, images())
    before = read(attack, originals)
    found = attack_loss(attack, changed, originals, wanted, before, ImageNoise([0, 1, 2], 32, CPU))
    seen = attack.prior.filtered(changed, originals, ImageNoise([0, 1, 2], 32, CPU))
    mean, deviation = (torch.tensor(values)[:, None, None] for values in attack.classifier.statistics)
    for image in range(3):
        readout = attack.classifier.readout(((seen[image] - mean) / deviation)[None])
        expected = -readout.logits[0].log_softmax(dim=0)[wanted[image]]
        differences = (changed[image] - originals[image]).flatten()
        size = sum(abs(float(d)) if distance == "l1" else float(d) ** 2 for d in differences)
        expected = expected + 0.01 * size
        if alpha:
            reading = model.spurious_reading(readout.activations)[0]
            own = attack.classifier.readout(((originals[image] - mean) / deviation)[None])
            first = model.spurious_reading(own.activations)[0]
            penalty = sum(float(a - b) ** 2 for a, b in zip(reading, first, strict=True))
            assert penalty > 1e-3
            expected = expected + alpha * penalty
        assert float(found[image]) == pytest.approx(float(expected), rel=1e-4)


def test_steering_with_alpha_0_is_ace_bit_by_bit_and_with_alpha_10_is_not(attack: Attack) -> None:
    model, shown = factor_model(attack.classifier), images()
    wanted = targets(attack.classifier, shown)
    ace = counterfactuals(attack, shown, wanted, [0, 1, 2])
    zero, ten = (
        counterfactuals(replace(attack, factors=model, alpha=alpha), shown, wanted, [0, 1, 2]) for alpha in (0.0, 10.0)
    )
    assert all(torch.equal(one, other) for one, other in zip(ace, zero, strict=True))
    assert not torch.equal(ace.attacked, ten.attacked)


def test_no_steps_change_nothing(attack: Attack) -> None:
    still = replace(attack, params=attack.params.model_copy(update={"iterations": 0}))
    found = counterfactuals(still, images(), targets(attack.classifier, images()), [0, 1, 2])
    assert torch.equal(found.images, images()) and torch.equal(found.attacked, images()) and bool(found.kept.all())


def test_a_counterfactual_is_the_original_outside_of_what_changed(attack: Attack) -> None:
    narrow = replace(attack, params=attack.params.model_copy(update={"threshold": 0.9, "dilation": 1}))
    found = counterfactuals(narrow, images(), targets(attack.classifier, images()), [0, 1, 2])
    kept = found.kept[:, None].expand(-1, 3, -1, -1)
    assert 0.05 < float(kept.double().mean()) < 0.95
    assert torch.equal(found.images[kept], images()[kept])
    assert not torch.equal(found.images[~kept], images()[~kept])


def test_no_color_moves_further_than_the_steps_allow(attack: Attack) -> None:
    found = counterfactuals(attack, images(), targets(attack.classifier, images()), [0, 1, 2])
    change = (found.attacked.int() - images().int()).abs()
    assert 0 < int(change.max()) <= attack.params.iterations * attack.params.step


@pytest.mark.parametrize("low_pass", (True, False))
def test_the_attack_makes_the_target_more_probable(attack: Attack, low_pass: bool) -> None:
    longer = replace(attack, params=attack.params.model_copy(update={"iterations": 20, "distance_weight": 0.0}))
    longer = replace(longer, prior=LowPassPrior()) if low_pass else longer
    wanted = targets(attack.classifier, images())
    found = counterfactuals(longer, images(), wanted, [0, 1, 2])
    before, after = (
        logits_of_images(attack.classifier, shown).softmax(dim=1).gather(1, wanted[:, None])
        for shown in (images(), found.images)
    )
    assert bool((after > before).all())


def test_an_image_becomes_the_same_whatever_is_changed_with_it(attack: Attack) -> None:
    wanted = targets(attack.classifier, images())
    together = counterfactuals(attack, images(), wanted, [0, 1, 2])
    alone = counterfactuals(attack, images()[1:2], wanted[1:2], [1])
    apart = (together.images[1].int() - alone.images[0].int()).abs()
    assert float((apart > 0).double().mean()) < 0.01  # signs of gradients near 0 may differ in their last digits


def test_modes_weights_and_hooks_of_the_classifier_are_as_before(attack: Attack) -> None:
    network = attack.classifier.network.train()
    required = [value.requires_grad for value in network.parameters()]
    counterfactuals(attack, images(), targets(attack.classifier, images()), [0, 1, 2])
    assert network.training and not any(module._forward_hooks for module in network.modules())
    assert [value.requires_grad for value in network.parameters()] == required
    assert all(value.grad is None for value in network.parameters())


def test_kept_places_are_those_far_from_any_large_change(params: CounterfactualParams) -> None:
    generator = torch.Generator().manual_seed(0)
    originals = torch.rand(2, 3, 64, 64, generator=generator)
    changed = (originals + 0.2 * torch.rand(2, 3, 64, 64, generator=generator) ** 40).clamp(0, 1)
    settings = params.model_copy(update={"dilation": 15, "threshold": 0.15})
    kept, reach = kept_places(originals, changed, settings), dilation_width(15, 64) // 2
    assert dilation_width(15, 64) == 3 and dilation_width(15, 256) == 15 and dilation_width(1, 64) == 1
    for image in range(2):
        change = (changed[image] - originals[image]).abs().sum(dim=0)
        share = change / change.max()
        for row in range(64):
            for column in range(64):
                around = share[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1]
                assert bool(kept[image, row, column]) == (float(around.max()) < 0.15)
    assert 0.05 < float(kept.double().mean()) < 0.95


LOGITS = torch.tensor([[3.0, 2.0, 0.0], [3.0, 0.0, 2.0], [0.0, 3.0, 2.0], [0.0, 1.0, 3.0]])
LABELS = torch.tensor([0, 2, 1, 2])
NAMES = ("crow", "finch", "owl")


def test_targets_are_the_runner_up_the_true_label_or_a_class() -> None:
    found = {name: chosen_targets(LOGITS, LABELS, name, NAMES) for name in ("runner_up", "true_label", "owl")}
    assert {name: (one.rows.tolist(), one.classes.tolist()) for name, one in found.items()} == {
        "runner_up": ([0, 2, 3], [1, 2, 1]),
        "true_label": ([1], [2]),
        "owl": ([0, 1, 2], [2, 2, 2]),
    }


def test_a_target_that_does_not_exist_or_that_no_image_has_is_refused() -> None:
    with pytest.raises(UserError, match="target is 'kiwi': name runner_up, true_label or a class"):
        chosen_targets(LOGITS, LABELS, "kiwi", NAMES)
    with pytest.raises(UserError, match="no validation image can become the target 'true_label'"):
        chosen_targets(LOGITS[:1], LABELS[:1], "true_label", NAMES)


def test_a_target_that_is_the_prediction_is_refused(attack: Attack) -> None:
    wanted = targets(attack.classifier, images())
    wanted[1] -= 1
    with pytest.raises(UserError, match="of image 1 is already its prediction"):
        counterfactuals(attack, images(), wanted % 4, [0, 1, 2])


@pytest.mark.parametrize(
    ("method", "alpha"), (("pixel_attack", 0.0), ("ace", 0.0), ("cecas-0.1", 0.1), ("cecas-10", 10))
)
def test_a_method_says_its_alpha(method: str, alpha: float) -> None:
    assert steering_weight(method) == alpha


@pytest.mark.parametrize(
    ("mistake", "message"),
    (
        ({"methods": ["cecas-much"]}, "'cecas-much' is no method"),
        ({"tau": 51}, "tau is 51, and the chain has 10 steps"),
        ({"distance": "l3"}, "l1"),
    ),
)
def test_params_that_make_no_sense_are_refused(raw: dict, mistake: dict, message: str) -> None:
    with pytest.raises((ValidationError, UserError), match=message):
        CounterfactualParams(**raw["counterfactuals"] | mistake)
