"""A step divided among processes is the step of one process."""

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from everycause.data.sources import open_split
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.training.division import (
    all_rows,
    average_gradients,
    check_divisible,
    own_rows,
    whole_batch_statistics,
)
from everycause.training.fit import Training, fit
from everycause.training.position import Position
from everycause.training.rows import retrain
from everycause.training.steps import Order
from tests.conftest import make_classifier
from tests.together import together
from tests.training.invented import PARAMS, ROUNDS, invented_upstream, known, recipe
from tests.training.test_fit import smoke_data

SGD = PARAMS.model_copy(
    update={
        "epochs": 1, "batch_size": 21,
        "optimizer": PARAMS.optimizer.model_copy(update={"name": "sgd", "learning_rate": 0.002}),
    }
)  # fmt: skip
"""Adam makes steps of equal size out of gradients that are rounding errors; plain gradients can be compared."""


@pytest.fixture
def small(train: Split) -> Split:
    return known(train.subset(torch.arange(63).numpy()).kept_in_memory(100))


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    norm = BatchNormAct2d(6) if kind == "timm" else nn.BatchNorm2d(6, affine=kind == "affine")
    return nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.Conv2d(6, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def gradients_of(kind: str, images: Tensor) -> dict[str, Tensor]:
    """Gradients of a loss that no sum over images gives, behind a layer that all processes apply to all rows."""
    made, head = network(kind), nn.Linear(2, 3)
    nn.init.constant_(head.weight, 0.3)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD([*made.parameters(), *head.parameters()], lr=0.1)
    with whole_batch_statistics():
        outputs = head(all_rows(made(own_rows(images)), len(images)))
        (outputs.square().sum(dim=1).logsumexp(dim=0) + outputs.std(dim=0).sum()).backward()
    average_gradients(optimizer)
    found = {name: value.grad for name, value in [*made.named_parameters(), *head.named_parameters()]}
    return found | dict(made.named_buffers()) | {"outputs": outputs.detach()}


@pytest.mark.parametrize("kind", ["affine", "plain", "timm"])
@pytest.mark.parametrize("processes", [2, 3])
def test_gradients_and_statistics_are_those_of_the_whole_batch(kind: str, processes: int) -> None:
    images = torch.randn(7, 3, 9, 9, generator=torch.Generator().manual_seed(1)) * 3 + 1
    expected = gradients_of(kind, images)
    results = together(gradients_of, kind, images, processes=processes)
    for found in results:
        assert list(found) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=2e-4, atol=2e-6, msg=name)
            assert torch.equal(found[name], results[0][name]), name


def test_batch_normalization_in_evaluation_mode_keeps_its_statistics() -> None:
    def evaluated() -> tuple[Tensor, Tensor]:
        layer = nn.BatchNorm2d(3).eval()
        with whole_batch_statistics():
            return layer(torch.ones(2, 3, 4, 4)).detach(), layer.running_mean

    expected = evaluated()
    for found in together(evaluated):
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def trained(row: str | None, split: Split, validation: Split) -> tuple[dict[str, Tensor], list]:
    """Weights and measures after one epoch of a row; None: of the base."""
    if row is None:
        classifier = make_classifier()
        epochs = list(fit(classifier, split, validation, SGD, 0))
    else:
        upstream = invented_upstream(split, validation)
        classifier = upstream.base
        epochs = list(retrain(row, upstream, recipe(smoke_data()), SGD, ROUNDS, 0))
    return {name: value.clone() for name, value in classifier.state_dict().items()}, epochs


@pytest.mark.parametrize(
    "row", [None, "joint", "cutmix", "oracle_parts", "self_challenging", "spectral_decoupling", "masked_distillation"]
)
def test_two_processes_train_as_one_does_and_agree_to_the_last_bit(small: Split, row: str | None) -> None:
    validation = known(open_split(smoke_data(), "validation", 1))
    weights, epochs = trained(row, small, validation)
    (first, theirs), (second, others) = together(trained, row, small, validation)
    assert theirs == others
    start = make_classifier().state_dict()
    for name, value in weights.items():
        assert torch.equal(first[name], second[name]), name
        learned = (value.double() - start[name]).norm()
        assert (first[name].double() - value).norm() <= 3e-3 * learned, name  # rounding, which ReLUs amplify
    for ours, one in zip(epochs, theirs, strict=True):
        assert one.measures == pytest.approx(ours.measures, rel=1e-3, abs=0.02)


def test_a_step_of_fewer_images_than_processes_is_refused() -> None:
    check_divisible(1)

    def refusal() -> str:
        with pytest.raises(UserError) as refused:
            check_divisible(1)
        return str(refused.value)

    assert together(refusal)[1] == "2 processes share a batch_size of 1: lower run.processes to 1 or less"


def test_dropout_differs_between_processes_and_returns_with_the_seed(small: Split) -> None:
    def drawn() -> Tensor:
        training = Training(make_classifier(), small, small, SGD, 0, "base")
        training.position = Position(Order(len(small), training.generator))
        with training._seeded():
            return torch.rand(3)

    alone = drawn()
    first, second = together(drawn)
    assert torch.equal(first, alone) and not torch.equal(first, second)
    assert all(torch.equal(*pair) for pair in zip(together(drawn), (first, second), strict=True))
