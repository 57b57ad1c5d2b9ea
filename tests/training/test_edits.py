"""Edited training images: their losses and steps against slow references, their labels, and their controls."""

import dataclasses

import pytest
import torch

from everycause.data.sources import DataParams
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.explanation.latent_factors import FactorModel
from everycause.inference import logits_of, logits_of_images
from everycause.models import Classifier, Readout
from everycause.training import edits
from everycause.training.edits import EditedImages, SpuriousLoss, cause_loss, edited, randomly_changed, shown
from everycause.training.rows import ROWS, retrain
from tests.explanation.searching import always_right, undecided
from tests.training.invented import PARAMS, ROUNDS, invented_upstream, recipe

EDITS = ("counterfactual_images", "counterfactual_pairs", "counterfactual_images_random", "counterfactual_pairs_random")


@pytest.fixture
def base(train: Split) -> Classifier:
    return undecided(train)


@pytest.fixture
def small(train: Split, base: Classifier) -> Split:
    return always_right(train, base)


@pytest.fixture
def factors(base: Classifier) -> FactorModel:
    torch.manual_seed(0)
    features = base.network.get_classifier().in_features
    return FactorModel(features, 4, edits.FACTORS).requires_grad_(False).eval()


def made(name: str, small: Split, base: Classifier, data_params: DataParams) -> EditedImages:
    upstream = dataclasses.replace(invented_upstream(small), base=base)
    found = ROWS[name].augments(upstream, recipe(data_params), 0)
    assert isinstance(found, EditedImages)
    return found


def test_the_losses_are_their_formulas(factors: FactorModel) -> None:
    torch.manual_seed(1)
    width = factors.mean.shape[0]
    seen, before = (Readout(torch.randn(3, 4), torch.randn(3, width)) for _ in range(2))
    labels = torch.tensor([2, 0, 3])
    for row in range(3):
        own = -float(seen.logits[row].softmax(dim=0)[labels[row]].log())
        assert float(cause_loss(seen, before, labels)[row]) == pytest.approx(own, rel=1e-5)
        suggested = [
            factors.imitation(factors.encoder(one.activations[row : row + 1])[:, 32:64]) for one in (seen, before)
        ]
        moved = sum(float(a - b) ** 2 for a, b in zip(*(one[0] for one in suggested), strict=True))
        assert float(SpuriousLoss(factors)(seen, before, labels)[row]) == pytest.approx(own - moved, rel=1e-4, abs=1e-5)


def test_steps_go_against_the_sign_of_the_gradient(base: Classifier, small: Split) -> None:
    images = small.read(torch.arange(3).numpy())
    labels = (small.labels[:3] + 1) % 4
    mean, deviation = (torch.tensor(values)[:, None, None] for values in base.statistics)
    changed = originals = images / 255
    for _ in range(2):
        leaf = changed.clone().requires_grad_()
        logits = base((shown(leaf, originals) - mean) / deviation)
        loss = -sum(logits[row].log_softmax(dim=0)[int(labels[row])] for row in range(3))
        (gradient,) = torch.autograd.grad(loss, leaf)
        changed = (changed - 2 / 255 * gradient.sign()).clamp(0, 1)
    slow = (shown(changed, originals) * 255).round().clamp(0, 255)
    fast = edited(base, images, labels, cause_loss, steps=2)
    assert ((fast - slow).abs() <= 1).float().mean() > 0.999


def test_the_gradient_of_the_spurious_loss_is_that_of_finite_differences(
    base: Classifier, small: Split, factors: FactorModel
) -> None:
    double, loss = base.double(), SpuriousLoss(factors.double())
    torch.manual_seed(0)
    originals = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    changed = (originals + 0.1 * torch.rand_like(originals)).requires_grad_()
    before = double.readout(originals)

    def value(pixels: torch.Tensor) -> torch.Tensor:
        return loss(double.readout(pixels), before, torch.tensor([1])).sum()

    before = Readout(*(value.detach() for value in before))
    (gradient,) = torch.autograd.grad(value(changed), changed)
    step = 1e-5 * torch.randn_like(originals)
    ends = [float(value(changed.detach() + sign * step).detach()) for sign in (1, -1)]
    assert float((gradient * step).sum()) == pytest.approx((ends[0] - ends[1]) / 2, rel=1e-3)


def test_no_steps_change_nothing(base: Classifier, small: Split) -> None:
    images = small.read(torch.arange(4).numpy())
    assert torch.equal(edited(base, images, small.labels[:4], cause_loss, steps=0), images)


@pytest.mark.parametrize("name", EDITS)
def test_edits_show_the_base_what_their_labels_say(
    base: Classifier, small: Split, data_params: DataParams, name: str
) -> None:
    found = made(name, small, base, data_params)
    index = torch.tensor([image for image in range(len(small)) if found.covers(image)])
    assert len(index) > 3
    images, labels = found.composed(index, small.read(index.numpy()), small.labels[index], torch.Generator())
    own, runner_up = logits_of(base, small)[index].topk(2, dim=1).indices.T
    assert torch.equal(labels, runner_up if "pairs" in name else own)
    if "random" not in name:
        assert torch.equal(logits_of_images(base, images).argmax(dim=1), labels)
    assert (images != small.read(index.numpy())).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("name", EDITS[:2])
def test_the_control_changes_the_same_images_as_much_and_elsewhere(
    base: Classifier, small: Split, data_params: DataParams, name: str
) -> None:
    edits_, control = (made(one, small, base, data_params) for one in (name, f"{name}_random"))
    assert edits_.place == control.place and torch.equal(edits_.labels, control.labels)
    index = torch.tensor(list(edits_.place))
    originals = small.read(index.numpy()).float()
    sizes = [(one.images - originals).flatten(1).norm(dim=1) for one in (edits_, control)]
    assert torch.allclose(*sizes, rtol=0.25) and not torch.equal(edits_.images, control.images)


def test_random_changes_depend_on_the_image_alone(small: Split) -> None:
    images = small.read(torch.arange(3).numpy())
    edits_ = (images.int() + 9).clamp(0, 255).to(torch.uint8)
    together = randomly_changed(images, edits_, [4, 5, 6])
    assert torch.equal(together[1:2], randomly_changed(images[1:2], edits_[1:2], [5]))


def test_edits_are_the_same_twice_and_leave_the_base_alone(
    base: Classifier, small: Split, data_params: DataParams
) -> None:
    before = {key: value.clone() for key, value in base.state_dict().items()}
    one, other = (made("counterfactual_images", small, base.train(), data_params) for _ in range(2))
    assert torch.equal(one.images, other.images) and base.training
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())
    assert all(value.grad is None for value in base.parameters())


def test_a_row_trains_on_edits_and_says_when_none_succeeds(
    base: Classifier, small: Split, data_params: DataParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = dataclasses.replace(invented_upstream(small, small), base=base)
    epochs = list(retrain("counterfactual_pairs", upstream, recipe(data_params), PARAMS, ROUNDS, 0))
    assert all(epoch.measures["train/augment"] > 0 for epoch in epochs)
    monkeypatch.setattr(edits, "edited", lambda _base, images, *_: images)
    upstream = dataclasses.replace(upstream, base=undecided(small), train=small)
    with pytest.raises(UserError, match="the row 'counterfactual_pairs' needs edited images"):
        retrain("counterfactual_pairs", upstream, recipe(data_params), PARAMS, ROUNDS, 0)
