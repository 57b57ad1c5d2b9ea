from itertools import product

import numpy as np
import pytest

from everycause.evaluation.statistics import holm, paired_interval, sign_flip_p


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


def test_clusters_widen_the_interval_of_images_that_are_alike() -> None:
    classes = np.repeat(np.arange(20), 15)
    alike = np.random.default_rng(0).normal(size=20)[classes][None]
    single, clustered = paired_interval(alike), paired_interval(alike, classes)
    assert clustered.mean == single.mean and clustered.high - clustered.low > 2.5 * (single.high - single.low)
    everyone = np.random.default_rng(1).normal(size=(2, 100))
    assert paired_interval(everyone, np.arange(100)) == paired_interval(everyone)


def test_the_sign_flip_is_exact_and_cannot_go_below_its_number_of_seeds() -> None:
    assert sign_flip_p(np.full(5, 0.3)) == 2 / 32 and sign_flip_p(np.full(6, -0.1)) == 2 / 64
    assert sign_flip_p(np.array([1.0, -1.0])) == 1.0


def test_the_sign_flip_is_the_enumeration_of_all_signs_ties_included() -> None:
    generator = np.random.default_rng(0)
    for seeds in (2, 4, 6, 7):
        for _ in range(10):
            differences = generator.integers(-30, 30, seeds) / 480  # shares of 480 images, with many ties
            slow = [
                abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= abs(differences.sum()) - 1e-12
                for signs in product((-1, 1), repeat=seeds)
            ]
            assert sign_flip_p(differences) == pytest.approx(sum(slow) / 2**seeds, abs=1e-12)


def test_holms_adjustment_is_the_textbooks() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}
