"""Intervals for differences between rows, paired by seed and by test image."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

RESAMPLES = 2000


class Interval(NamedTuple):
    """A mean difference and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def paired_interval(differences: Float[np.ndarray, "seeds images"], seed: int = 0) -> Interval:
    """Hierarchical bootstrap of per-image differences: seeds are drawn with replacement, then images.

    The images are the same for all seeds, so one draw of images serves every drawn seed. With one seed the interval
    speaks of the test images only, not of training noise.
    """
    generator = np.random.default_rng(seed)
    seeds, images = differences.shape
    means = np.empty(RESAMPLES)
    for resample in range(RESAMPLES):
        chosen = differences[generator.integers(seeds, size=seeds)]
        weights = np.bincount(generator.integers(images, size=images), minlength=images)
        means[resample] = (chosen @ weights).mean() / images
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(differences.mean()), float(low), float(high))
