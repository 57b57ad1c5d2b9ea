import numpy as np
import pytest

from everycause.evaluation.statistics import paired_interval


def test_identical_predictions_give_an_interval_of_zero_width() -> None:
    assert paired_interval(np.zeros((3, 50))) == (0, 0, 0)


def test_one_seed_agrees_with_the_binomial_error() -> None:
    generator = np.random.default_rng(0)
    differences = (generator.random((1, 400)) < 0.3).astype(float)
    interval = paired_interval(differences)
    half = 1.96 * differences.std() / 20
    assert interval.mean == pytest.approx(differences.mean())
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.12)


def test_seeds_that_disagree_widen_the_interval() -> None:
    images = np.random.default_rng(0).normal(size=(1, 300)) * 0.1
    agreeing, disagreeing = np.repeat(images, 6, axis=0), images + np.linspace(-0.3, 0.3, 6)[:, None]
    widths = [interval.high - interval.low for interval in map(paired_interval, (agreeing, disagreeing))]
    assert widths[1] > 5 * widths[0]


def test_it_is_the_interval_of_a_slow_reference_in_distribution() -> None:
    differences = np.random.default_rng(1).normal(0.1, 1, size=(4, 60))
    generator, means = np.random.default_rng(2), []
    for _ in range(2000):
        seeds, images = generator.integers(4, size=4), generator.integers(60, size=60)
        means.append(np.mean([[differences[seed, image] for image in images] for seed in seeds]))
    low, high = np.quantile(means, (0.025, 0.975))
    interval = paired_interval(differences)
    assert interval.low == pytest.approx(low, abs=0.04) and interval.high == pytest.approx(high, abs=0.04)
