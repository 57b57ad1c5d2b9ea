"""Planted models: predictors that read the factors, so that their causes are known."""

import dataclasses
import math
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch

from codebirds.birds import Codebirds, erasure_name, variations
from codebirds.factors import WORLDS, Settings
from everycause.artifacts import save_tensors
from everycause.data.split import Split, View
from everycause.errors import UserError
from everycause.evaluation.completeness import (
    completeness_score,
    completeness_weights,
    effective_causes,
    profile,
    reliance,
    shapley,
)
from everycause.evaluation.metrics import counter_gap, metrics
from everycause.evaluation.ood import predictions
from everycause.evaluation.predictions import Predictions
from tests.evaluation.answered import predictions_of

Reader = Callable[[View], np.ndarray]


def evaluated(birds: Codebirds, reader: Reader) -> dict[str, float]:
    """All metrics of a predictor that sees the factors instead of the pixels."""
    views = []
    for name, factors in variations(birds):
        labels = torch.from_numpy(factors.label)
        names = tuple(map(str, range(birds.num_classes)))
        views.append(
            View(
                Split(name, labels, names, 64, lambda index: torch.zeros(len(index), 3, 64, 64, dtype=torch.uint8), ""),
                factors,
            )
        )
    stored = predictions(
        iter(views),
        lambda view: iter([torch.nn.functional.one_hot(torch.from_numpy(reader(view)), birds.num_classes).float()]),
    )
    return metrics(stored, birds.code)


def decoder(birds: Codebirds, parts: tuple[int, ...]) -> Reader:
    """Votes of the given parts for every codeword; ties and silence go to a class drawn from the image."""

    def read(view: View) -> np.ndarray:
        factors = view.factors
        agree = (factors.variants[:, None, :] == birds.code.words[None]) & (factors.present & factors.bird[:, None])[
            :, None
        ]
        votes = agree[:, :, list(parts)].sum(axis=2)
        return (votes + 0.5 * np.random.default_rng(0).random(votes.shape)).argmax(axis=1)

    return read


def test_a_reader_of_all_parts_is_complete(default_birds: Codebirds) -> None:
    measures = evaluated(default_birds, decoder(default_birds, (0, 1, 2, 3, 4)))
    assert all(measures[f"erasures/{e}/worst"] == 1 for e in range(4))
    assert measures["completeness"] == pytest.approx(1, abs=0.01)
    assert measures["effective_causes"] == pytest.approx(5, abs=0.05)
    assert measures["scene_gap"] == 0 and measures["accuracy/swaps/1"] == 1 and measures["accuracy/sketch"] == 1
    assert measures["accuracy/swaps/2"] <= measures["optimum/swaps/2"] + 0.05


@pytest.mark.parametrize("part", (0, 3))
def test_a_reader_of_one_part_relies_on_it_alone(default_birds: Codebirds, part: int) -> None:
    measures = evaluated(default_birds, decoder(default_birds, (part,)))
    assert measures[f"reliance/{part}"] > 0.9 and measures["effective_causes"] < 1.6
    assert measures["accuracy/test"] == pytest.approx(1 / 4, abs=0.06)
    chance = [(5 - e) / 5 * 0.25 + e / 5 / 16 for e in range(5)]
    optimum = [1, 1, 1, 1, 0.25]
    expected = (sum(chance) - 5 / 16) / (sum(optimum) - 5 / 16)
    assert measures["completeness"] == pytest.approx(expected, abs=0.05)


def test_a_reader_of_two_parts_is_perfect_and_dies_with_either(default_birds: Codebirds) -> None:
    measures = evaluated(default_birds, decoder(default_birds, (1, 2)))
    assert measures["accuracy/test"] == 1 and measures["accuracy/scene_shift/opposed"] == 1
    assert measures["erasures/1/worst"] < 0.35 and measures["erasures/3/mean"] < 0.4
    assert measures["reliance/1"] == pytest.approx(0.5, abs=0.05) and measures["effective_causes"] < 2.6


def test_a_reader_of_the_scene_has_the_full_scene_gap_and_no_completeness() -> None:
    confounded = Codebirds(Settings(world="confounded", **WORLDS["confounded"]))
    measures = evaluated(confounded, lambda view: np.maximum(view.factors.scene, 0))
    assert measures["accuracy/scene_shift/scene_only"] == 1 and measures["accuracy/scene_shift/opposed"] == 0
    expected = confounded.settings.scene_correlation * 15 / 16
    assert measures["scene_gap"] == pytest.approx(expected, abs=0.04)
    assert abs(measures["completeness"]) < 0.03 and measures["worst_group"] == 0 and measures["effective_causes"] == 0


def test_shapley_values_are_the_mean_marginals_over_all_orders() -> None:
    generator = np.random.default_rng(0)
    accuracies = {
        tuple(sorted(parts)): float(generator.random())
        for size in range(5)
        for parts in {tuple(sorted(p[:size])) for p in permutations(range(4))}
    }
    slow = np.zeros(4)
    orders = list(permutations(range(4)))
    for order in orders:
        for step, part in enumerate(order):
            absent_before, absent_after = tuple(sorted(order[step:])), tuple(sorted(order[step + 1 :]))
            slow[part] += (accuracies[absent_after] - accuracies[absent_before]) / len(orders)
    fast = shapley(accuracies, 4)
    assert np.allclose(fast, slow) and sum(fast) == pytest.approx(accuracies[()] - accuracies[(0, 1, 2, 3)])


def test_reliance_and_its_limits() -> None:
    even = {parts: 1 - len(parts) / 3 for parts in [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]}
    assert reliance(even, 3) == pytest.approx((1 / 3,) * 3) and effective_causes(reliance(even, 3)) == pytest.approx(3)
    blind = dict.fromkeys(even, 0.25)
    assert reliance(blind, 3) == (0.0, 0.0, 0.0) and effective_causes((0.0, 0.0, 0.0)) == 0
    assert effective_causes((1.0, 0.0, 0.0)) == pytest.approx(1)


def test_the_score_is_a_weighted_sum_of_accuracies(default_birds: Codebirds) -> None:
    code, generator = default_birds.code, np.random.default_rng(0)
    accuracies = {parts: float(generator.random()) for size in range(6) for parts in code.subsets(size)}
    weights, offset = completeness_weights(code)
    named = {erasure_name(parts): value for parts, value in accuracies.items()}
    weighted = sum(weight * named[view] for view, weight in weights.items()) - offset
    assert weighted == pytest.approx(completeness_score(profile(accuracies, code), 16))


def test_chance_has_score_zero_and_the_optimum_one(default_birds: Codebirds) -> None:
    code = default_birds.code
    subsets = [parts for size in range(6) for parts in code.subsets(size)]
    assert completeness_score(profile(dict.fromkeys(subsets, 1 / 16), code), 16) == pytest.approx(0)
    assert completeness_score(
        profile({parts: code.erasure_optimum(parts) for parts in subsets}, code), 16
    ) == pytest.approx(1)


def test_predictions_are_stored_whole(tmp_path, default_birds: Codebirds) -> None:
    stored = predictions_of(
        {"test": torch.eye(3), "shift/a": torch.eye(3)},
        {"test": torch.arange(3), "shift/a": torch.tensor([0, 0, 2])},
        torch.tensor([True, False, True]),
    )
    stored.save(tmp_path)
    loaded = Predictions.load(tmp_path)
    assert (
        list(loaded.views) == ["test", "shift/a"]
        and loaded.correctness("shift").tolist() == [1, 0, 1]
        and torch.equal(loaded.conforms, stored.conforms)
    )
    with pytest.raises(ValueError, match="run the stage evaluate_ood first"):
        Predictions.load(tmp_path / "nowhere")
    described = {"views": ["test"], "classes": 3, "released": False}
    for tensors, description in (
        ({}, described),
        ({"views/test/labels": torch.arange(3)}, described),
        ({}, {"released": False}),
        ({}, {"views": []}),
    ):
        save_tensors(tmp_path / "predictions.safetensors", tensors, description)
        with pytest.raises(
            UserError, match="predictions.safetensors is damaged .* is missing.: run the stage evaluate_"
        ):
            Predictions.load(tmp_path)
    save_tensors(tmp_path / "predictions.safetensors", {"logits/test": torch.eye(3)}, {"views": [], "released": False})
    with pytest.raises(UserError, match="holds logits, which this version does not read: run the stage evaluate_ood"):
        Predictions.load(tmp_path)


def test_the_counter_gap_is_the_mean_over_classes_of_what_the_same_birds_lose() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    conforms = torch.tensor([True, True, False, True, False, False])
    right, wrong = torch.eye(3)[labels], torch.eye(3)[(labels + 1) % 3]
    opposed = torch.where(torch.tensor([1, 0, 0, 0, 1, 1]).bool()[:, None], right, wrong)
    views = ("test", "scene_shift/opposed")
    stored = predictions_of(dict(zip(views, (right, opposed), strict=True)), dict.fromkeys(views, labels), conforms)
    assert counter_gap(stored) == pytest.approx((0.5 + 1.0) / 2)  # class 2 never shows its own scene
    assert math.isnan(counter_gap(dataclasses.replace(stored, conforms=torch.zeros(6, dtype=torch.bool))))
