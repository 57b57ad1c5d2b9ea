"""Intervals and tests for differences between rows, paired by seed and by test image."""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.stats import permutation_test

from everycause.shapes import Float, Int64

RESAMPLES = 2000
"""Bootstrap samples of an interval."""
BLOCK, MOST_KEPT = 100, 20_000_000
"""Resamples at a time, and the most numbers of a draw that is kept for the next interval."""


class Interval(NamedTuple):
    """A mean difference and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def paired_interval(
    differences: Float[np.ndarray, "seeds images"], clusters: Int64[np.ndarray, "images"] | None = None, seed: int = 0
) -> Interval:
    """The mean of per-image differences with a hierarchical bootstrap interval.

    Each resample draws seeds with replacement, then images with replacement. The images are the same for all seeds, so
    one draw of images serves every drawn seed. With a single seed the interval covers the choice of test images alone,
    not the noise of training.

    Args:
        differences: For each seed and test image, the difference in correctness, from −1 to 1.
        clusters: A group number for each image; whole groups are drawn instead of single images. For sets whose images
            are not independent, such as the near-duplicates within a class of ImageNet-Sketch.
        seed: Of the random draws.
    """
    seeds, images = differences.shape
    members = np.arange(images) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    count = int(members.max()) + 1
    sizes = np.bincount(members, minlength=count)
    sums = np.stack([np.bincount(members, weights=line, minlength=count) for line in differences])
    draws = _kept_draws(seeds, count, seed) if count * RESAMPLES <= MOST_KEPT else _draws(seeds, count, seed)
    means = np.concatenate(
        [
            ((by_seed @ sums) * by_group).sum(axis=1) / (seeds * np.maximum(by_group @ sizes, 1))
            for by_seed, by_group in draws
        ]
    )
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(differences.mean()), float(low), float(high))


def _draws(seeds: int, count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """How often each resample draws each seed and each group of images, in blocks of resamples."""
    generator = np.random.default_rng(seed)
    for start in range(0, RESAMPLES, BLOCK):
        some = min(BLOCK, RESAMPLES - start)
        by_seed, by_group = np.empty((some, seeds)), np.empty((some, count), dtype=np.uint16)
        for line in range(some):
            by_seed[line] = np.bincount(generator.integers(seeds, size=seeds), minlength=seeds)
            by_group[line] = np.bincount(generator.integers(count, size=count), minlength=count)
        yield by_seed, by_group


@lru_cache(maxsize=4)
def _kept_draws(seeds: int, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The same, kept: a report asks for hundreds of intervals over the same images."""
    return list(_draws(seeds, count, seed))


def sign_flip_p(differences: Float[np.ndarray, "seeds"]) -> float:
    """The exact two-sided p-value of a mean difference under random signs, over all 2^seeds combinations of signs.

    With five seeds it cannot fall below 0.0625, with six not below 0.031: with fewer than six, report intervals.
    """

    def size(values: np.ndarray, axis: int) -> np.ndarray | np.float64:
        # rounded, because sums of the same numbers in another order differ in their last digits and must count as equal
        return np.abs(values.sum(axis=axis)).round(12)

    tested = permutation_test(
        (differences,), size, permutation_type="samples", n_resamples=np.inf, alternative="greater", vectorized=True
    )
    return float(tested.pvalue)


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """p-values adjusted for several comparisons by Holm's method."""
    adjusted, largest = {}, 0.0
    for rank, (name, value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * value))
        adjusted[name] = largest
    return adjusted
