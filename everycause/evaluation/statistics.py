"""Intervals for differences between rows, paired by seed and by test image."""

from itertools import product
from typing import NamedTuple

import numpy as np

from everycause.shapes import Float, Int64

RESAMPLES = 2000


class Interval(NamedTuple):
    """A mean difference and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def paired_interval(
    differences: Float[np.ndarray, "seeds images"], clusters: Int64[np.ndarray, "images"] | None = None, seed: int = 0
) -> Interval:
    """Hierarchical bootstrap of per-image differences: seeds are drawn with replacement, then images, or whole clusters of them.

    The images are the same for all seeds, so one draw of images serves every drawn seed. With one seed the interval
    speaks of the test images only, not of training noise. Clusters are for sets whose images are not independent, such as the
    near-duplicates within the classes of ImageNet-Sketch.
    """
    generator = np.random.default_rng(seed)
    seeds, images = differences.shape
    members = np.arange(images) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    count = int(members.max()) + 1
    means = np.empty(RESAMPLES)
    for resample in range(RESAMPLES):
        chosen = differences[generator.integers(seeds, size=seeds)]
        weights = np.bincount(generator.integers(count, size=count), minlength=count)[members]
        means[resample] = (chosen @ weights).mean() / max(weights.sum(), 1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(differences.mean()), float(low), float(high))


def sign_flip_p(differences: Float[np.ndarray, "seeds"]) -> float:
    """The exact two-sided probability of a mean difference as far from 0 under random signs, over all 2^seeds of them.

    With five seeds it cannot fall below 0.0625, with six not below 0.031: with fewer than six, speak of intervals.
    """
    signs = np.array(list(product((-1.0, 1.0), repeat=len(differences))))
    means = np.abs(signs @ differences)
    return float((means >= np.abs(differences.sum()) - 1e-12).mean())


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Holm's adjustment for several comparisons."""
    adjusted, largest = {}, 0.0
    for rank, (name, value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * value))
        adjusted[name] = largest
    return adjusted
