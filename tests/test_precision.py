"""16 bits where params ask for them, and nothing changed where they do not; steps that are drawn ahead."""

import threading
from collections.abc import Iterator
from dataclasses import fields

import pytest
import torch

from everycause.data.images import normalized
from everycause.data.shifts import View
from everycause.data.split import Split
from everycause.evaluation.ood import evaluate
from everycause.explanation.prior import LowPassPrior
from everycause.explanation.steering import Attack, CounterfactualParams, counterfactuals
from everycause.inference import logits_of, logits_of_images
from everycause.models import Classifier
from everycause.precision import autocast, in_precision
from everycause.training.fit import Training, fit
from everycause.training.optimizer import optimizer
from everycause.training.prefetch import ahead, prefetched
from everycause.training.steps import Drawn, Step, training_steps
from tests.conftest import make_classifier
from tests.training.invented import AUGMENTATION, OPTIMIZER, PARAMS, known

CPU = torch.device("cpu")


@pytest.fixture
def small(train: Split) -> Split:
    return known(train.subset(torch.arange(64).numpy()).kept_in_memory(100))


def test_a_network_in_float32_is_itself_and_16_bits_are_near_it(classifier: Classifier, small: Split) -> None:
    assert in_precision(classifier.network, "float32") is classifier.network
    images = normalized(small.all(), classifier.statistics, CPU)
    with torch.no_grad(), autocast(CPU, "float32"):
        exact = classifier(images)
    assert torch.equal(exact, classifier.network(images).detach())
    reduced = in_precision(classifier.network, "bfloat16")
    with torch.no_grad():
        found = reduced(images)
    assert found.dtype == torch.float32 and not torch.equal(found, exact)
    assert (found - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_training_in_16_bits_keeps_float32_weights_and_learns_as_well(small: Split, precision: str) -> None:
    losses, weights = {}, {}
    for one in ("float32", precision):
        classifier = make_classifier()
        epochs = list(fit(classifier, small, small, PARAMS.model_copy(update={"precision": one}), 0))
        losses[one] = [epoch.measures["train/loss"] for epoch in epochs]
        weights[one] = classifier.state_dict()
    assert losses[precision] != losses["float32"] and losses[precision] == pytest.approx(losses["float32"], rel=0.05)
    assert {value.dtype for value in weights[precision].values()} == {torch.float32, torch.int64}


def test_the_scale_of_the_loss_is_part_of_the_state(small: Split) -> None:
    params = PARAMS.model_copy(update={"precision": "float16"})
    first, second = (Training(make_classifier(), small, small, params, 0, "base") for _ in range(2))
    first.scaler.scale(torch.zeros(1))
    first.scaler.update(new_scale=8.0)
    second.load_state(first.state())
    assert second.scaler.get_scale() == 8.0
    plain = Training(make_classifier(), small, small, PARAMS, 0, "base")
    assert plain.state()["scaler"] == {} and plain.scaler.scale(torch.tensor(3.0)) == 3


def test_evaluation_in_bfloat16_reads_the_same_images(classifier: Classifier, small: Split) -> None:
    found = evaluate(classifier, iter([View(small)]), precision="bfloat16").views["train"]
    exact = logits_of(classifier, small).double().softmax(dim=1).amax(dim=1)
    assert torch.equal(found.labels, small.labels)
    assert not torch.equal(found.confidence, exact) and (found.confidence - exact).abs().max() < 0.05


def test_counterfactual_images_in_bfloat16_reach_their_targets_too(classifier: Classifier, raw: dict) -> None:
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    targets = (logits_of_images(classifier, images).argmax(dim=1) + 1) % 4
    found = {}
    for precision in ("float32", "bfloat16"):
        settings = raw["counterfactuals"] | {"iterations": 20, "precision": precision}
        attack = Attack(classifier, LowPassPrior(), CounterfactualParams(**settings))
        attacked = counterfactuals(attack, images, targets, [0, 1, 2]).attacked
        found[precision] = logits_of_images(classifier, attacked).softmax(dim=1).gather(1, targets[:, None])
    before = logits_of_images(classifier, images).softmax(dim=1).gather(1, targets[:, None])
    assert (found["float32"] > before).all() and (found["bfloat16"] > before).all()


def steps(split: Split, generator: torch.Generator) -> Iterator[Step]:
    return training_steps(split, 16, AUGMENTATION, None, generator)


def test_steps_drawn_ahead_are_the_same_and_no_number_more_is_drawn(small: Split) -> None:
    plain, other = (torch.Generator().manual_seed(3) for _ in range(2))
    expected = list(prefetched(steps(small, plain), 7, CPU, lambda: Drawn([], 0, plain.get_state())))
    found = list(ahead(steps(small, other), 7, lambda step: step))
    assert len(found) == len(expected) == 7 and torch.equal(expected[-1][1].generator, plain.get_state())
    for one, (two, _) in zip(found, expected, strict=True):
        assert all(torch.equal(getattr(one, field.name), getattr(two, field.name)) for field in fields(Step))
    assert torch.equal(plain.get_state(), other.get_state())


def test_what_goes_wrong_in_the_thread_is_raised_and_the_thread_ends(small: Split) -> None:
    def broken() -> Iterator[Step]:
        yield next(steps(small, torch.Generator()))
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(ahead(broken(), 5, lambda step: step))
    drawn = ahead(steps(small, torch.Generator()), 50, lambda step: step)
    next(drawn)
    drawn.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_an_optimizer_on_a_cpu_is_torchs_own_choice() -> None:
    made = optimizer(make_classifier().network, OPTIMIZER)
    assert made.defaults["fused"] is None and made.defaults["foreach"] is None
