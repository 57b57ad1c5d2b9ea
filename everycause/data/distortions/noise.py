"""Corruptions of the group noise: every value changes by itself.

Source: Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261. As in their released data, impulses hit channels one by
one.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from everycause.data.distortions.operations import Generators, corruption, drawn


@corruption(
    "noise",
    {
        32: ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
        64: ((0.04,), (0.08,), (0.12,), (0.15,), (0.18,)),
        224: ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
    },
)
def gaussian_noise(images: Tensor, level: Sequence[float], generators: Generators) -> Tensor:
    """Normal noise on every value.

    Levels: standard deviation.
    """
    return images + level[0] * drawn(generators, lambda one: one.standard_normal(images.shape[1:], dtype=np.float32))


@corruption(
    "noise",
    {
        32: ((500,), (250,), (100,), (75,), (50,)),
        64: ((250,), (100,), (50,), (30,), (15,)),
        224: ((60,), (25,), (12,), (5,), (3,)),
    },
)
def shot_noise(images: Tensor, level: Sequence[float], generators: Generators) -> Tensor:
    """Poisson noise of a number of photons.

    Levels: photons at full intensity.
    """
    expected = (images * level[0]).numpy()
    return (
        torch.from_numpy(
            np.stack([one.poisson(image).astype(np.float32) for image, one in zip(expected, generators, strict=True)])
        )
        / level[0]
    )


@corruption(
    "noise",
    {
        32: ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
        64: ((0.01,), (0.02,), (0.05,), (0.08,), (0.14,)),
        224: ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
    },
)
def impulse_noise(images: Tensor, level: Sequence[float], generators: Generators) -> Tensor:
    """Single values become 0 or 1, channel by channel.

    Levels: share of the values that change.
    """
    draw = drawn(generators, lambda one: one.random(images.shape[1:], dtype=np.float32))
    return torch.where(draw < level[0] / 2, 1.0, torch.where(draw < level[0], 0.0, images))
