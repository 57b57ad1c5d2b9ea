"""Heads trained together against torch.optim.SGD, one head after the other, step by step, in double precision."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from everycause.errors import UserError
from everycause.explanation import heads as module
from everycause.explanation.heads import (
    MOMENTUM,
    PENALTY,
    FilterHeads,
    HeadParams,
    LastLayer,
    Variant,
    descend,
    train_heads,
    train_incorrect_heads,
)
from everycause.unfinished import SECONDS, Unfinished

CLASSES, FILTERS, IMAGES = 4, 12, 53
PARAMS = HeadParams(sparsity=20.0, learning_rate=0.02, epochs=4, batch_size=8)


@pytest.fixture
def problem() -> tuple[Tensor, Tensor, LastLayer]:
    generator = torch.Generator().manual_seed(0)
    activations = 2 * torch.rand(IMAGES, FILTERS, generator=generator, dtype=torch.float64)
    weight = 0.3 * torch.randn(CLASSES, FILTERS, generator=generator, dtype=torch.float64)
    return (
        activations,
        torch.arange(IMAGES) % CLASSES,
        LastLayer(weight, torch.tensor([0.1, 0.0, -0.1, 0.2], dtype=torch.float64)),
    )


def correct_loss(outputs: Tensor, a: Tensor, target: Tensor, head: LastLayer, through: bool) -> Tensor:
    gate = torch.sigmoid(outputs)
    mask = torch.where(gate > 0.5, gate, torch.zeros_like(gate))
    if through:
        mask = gate + (mask - gate).detach()
    logits = (a * mask) @ head.weight.T + head.bias
    return (
        cross_entropy(logits, target)
        + PARAMS.sparsity * PENALTY * mask.sum()
        - PENALTY * logits.gather(1, target[:, None]).sum()
    )


def incorrect_loss(outputs: Tensor, a: Tensor, target: Tensor, head: LastLayer, _through: bool) -> Tensor:
    added = outputs.relu()
    return cross_entropy((a + added) @ head.weight.T + head.bias, target) + PENALTY * added.abs().sum()


def one_after_the_other(
    problem: tuple[Tensor, Tensor, LastLayer], variant: Variant, loss_of: Callable[..., Tensor]
) -> FilterHeads:
    """The same draws, then autograd and torch.optim.SGD for each head alone."""
    activations, labels, head = problem
    generator, count = torch.Generator().manual_seed(0), 1 if variant == "singular" else CLASSES
    begin = (
        torch.empty(count, FILTERS, FILTERS + 1).uniform_(-(FILTERS**-0.5), FILTERS**-0.5, generator=generator).double()
    )
    steps = [index for epoch in module._orders(labels, CLASSES, PARAMS, variant, generator) for index in epoch]
    trained = []
    for number in range(count):
        weight, bias = begin[number, :, :-1].clone().requires_grad_(), begin[number, :, -1].clone().requires_grad_()
        optimizer = torch.optim.SGD([weight, bias], lr=PARAMS.learning_rate, momentum=0.9)
        for step in steps:
            index = step[number if len(step) > 1 else 0]
            a = activations[index]
            target = labels[index] if variant == "singular" else torch.full_like(index, number)
            optimizer.zero_grad()
            loss_of(a @ weight.T + bias, a, target, head, variant == "straight_through").backward()
            optimizer.step()
        trained.append((weight.detach(), bias.detach()))
    return FilterHeads(torch.stack([weight for weight, _ in trained]), torch.stack([bias for _, bias in trained]))


@pytest.mark.parametrize("variant", get_args(Variant))
def test_heads_trained_together_are_those_trained_one_after_the_other(
    problem: tuple[Tensor, Tensor, LastLayer], variant: Variant
) -> None:
    slow, fast = one_after_the_other(problem, variant, correct_loss), train_heads(*problem, PARAMS, 0, variant)
    assert torch.allclose(fast.weight, slow.weight, rtol=0, atol=1e-12) and torch.allclose(
        fast.bias, slow.bias, rtol=0, atol=1e-12
    )
    assert (slow.weight - slow.weight[:1]).abs().max() > 1e-3 or variant == "singular"


def test_minimum_incorrect_heads_too(problem: tuple[Tensor, Tensor, LastLayer]) -> None:
    slow, fast = one_after_the_other(problem, "all_classes", incorrect_loss), train_incorrect_heads(*problem, PARAMS, 0)
    assert torch.allclose(fast.weight, slow.weight, rtol=0, atol=1e-12) and torch.allclose(
        fast.bias, slow.bias, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("variant", get_args(Variant))
def test_heads_trained_in_blocks_are_those_trained_together(
    problem: tuple[Tensor, Tensor, LastLayer], variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_heads(*problem, PARAMS, 0, variant)
    monkeypatch.setattr(module, "MOST_BYTES", 3 * 4 * FILTERS * (FILTERS + 1))
    blocks = list(module.head_blocks(*problem, PARAMS, 0, variant))
    assert [one.count for one in blocks] == ([1] if variant == "singular" else [3, 1])
    parts = module.together(blocks)
    assert torch.allclose(parts.weight, whole.weight, rtol=0, atol=1e-12)
    assert torch.allclose(parts.bias, whole.bias, rtol=0, atol=1e-12)


def test_two_trainings_from_one_seed_are_equal_to_the_last_bit(problem: tuple[Tensor, Tensor, LastLayer]) -> None:
    first, second, other = (train_heads(*problem, PARAMS, seed) for seed in (0, 0, 1))
    assert torch.equal(first.weight, second.weight) and not torch.equal(first.weight, other.weight)


@pytest.mark.parametrize("variant", get_args(Variant))
def test_a_training_that_is_killed_after_any_epoch_goes_on_to_the_same_bytes(
    problem: tuple[Tensor, Tensor, LastLayer], variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECONDS, "0")
    whole, save = train_heads(*problem, PARAMS, 0, variant), Unfinished.save
    assert PARAMS.epochs >= 2
    for killed in (1, PARAMS.epochs):
        folder = tmp_path / str(killed)
        folder.mkdir()

        def dies(self: Unfinished, state: dict, killed: int = killed) -> None:
            save(self, state)
            if state["epochs"] == killed:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(module.Unfinished, "due", lambda self: self.file is not None)
            patched.setattr(module.Unfinished, "save", dies)
            train_heads(*problem, PARAMS, 0, variant, folder)
        resumed = train_heads(*problem, PARAMS, 0, variant, folder)
        assert torch.equal(whole.weight, resumed.weight) and torch.equal(whole.bias, resumed.bias)


def test_a_head_does_not_see_the_others_and_steps_are_those_of_the_optimizer() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(3, FILTERS, FILTERS + 1, generator=generator, dtype=torch.float64) - 0.5
    velocity, alone = torch.zeros_like(weight), weight[1].clone().requires_grad_()
    optimizer = torch.optim.SGD([alone], lr=0.01, momentum=MOMENTUM)
    for _ in range(6):
        images = torch.rand(1, 5, FILTERS + 1, generator=generator, dtype=torch.float64).expand(3, -1, -1)
        descend(weight, velocity, images.bmm(weight.transpose(1, 2)).sin(), images, 0.01)
        optimizer.zero_grad()
        (-(images[1] @ alone.T).cos().sum()).backward()
        optimizer.step()
    assert torch.allclose(weight[1], alone.detach(), rtol=0, atol=1e-12)


def test_without_a_gradient_a_head_only_coasts() -> None:
    weight, velocity = torch.rand(2, 3, 4, dtype=torch.float64), torch.ones(2, 3, 4, dtype=torch.float64)
    begin, images = weight.clone(), torch.rand(2, 2, 4, dtype=torch.float64)
    for _ in range(7):
        descend(weight, velocity, torch.zeros(2, 2, 3, dtype=torch.float64), images, 0.1)
    assert torch.allclose(weight, begin - 0.1 * sum(0.9**step for step in range(1, 8)))
    assert torch.allclose(velocity, torch.full_like(velocity, 0.9**7))


def test_every_class_takes_part_in_only_class_with_its_own_images_alone(
    problem: tuple[Tensor, Tensor, LastLayer],
) -> None:
    _, labels, _ = problem
    epochs = list(module._orders(labels, CLASSES, PARAMS, "only_class", torch.Generator().manual_seed(0)))
    assert len(epochs) == PARAMS.epochs and {len(epoch) for epoch in epochs} == {
        IMAGES // (CLASSES * PARAMS.batch_size)
    }
    for step in (step for epoch in epochs for step in epoch):
        assert torch.equal(labels[step], torch.arange(CLASSES)[:, None].expand_as(step))
    with pytest.raises(ValueError, match="class number 4 has none"):
        list(module._orders(labels, CLASSES + 1, PARAMS, "only_class", torch.Generator()))


def test_the_mask_at_use_is_where_the_gate_exceeds_one_half_with_each_images_own_head() -> None:
    generator = torch.Generator().manual_seed(0)
    activations, classes = (
        torch.rand(20, FILTERS, generator=generator),
        torch.randint(CLASSES, (20,), generator=generator),
    )
    heads = FilterHeads(
        torch.randn(CLASSES, FILTERS, FILTERS, generator=generator), torch.randn(CLASSES, FILTERS, generator=generator)
    )
    found = heads.minimum_correct(activations, classes)
    for row, label in enumerate(classes.tolist()):
        gate = torch.sigmoid(heads.weight[label] @ activations[row] + heads.bias[label])
        assert torch.equal(found[row], gate > 0.5)
    single = FilterHeads(heads.weight[:1], heads.bias[:1])
    assert torch.equal(
        single.minimum_correct(activations, classes), activations @ heads.weight[0].T + heads.bias[0] > 0
    )


def test_a_loss_that_is_not_finite_names_its_epoch_and_batch(
    problem: tuple[Tensor, Tensor, LastLayer], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = [], module._logit_gradient

    def broken(logits: Tensor, target: Tensor, reward: float) -> Tensor:
        calls.append(1)
        return real(logits, target, reward) * (torch.nan if len(calls) == 10 else 1.0)

    monkeypatch.setattr(module, "_logit_gradient", broken)
    steps = -(-IMAGES // PARAMS.batch_size)  # 7: the tenth step is the third of the second epoch
    with pytest.raises(UserError, match=rf"epoch 2, batch {10 - steps}: lower filters.heads.learning_rate"):
        train_heads(*problem, PARAMS, 0)
