"""Corruptions of the group weather: something stands between the camera and the scene.

Source: Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261. Frost is procedural here: the photographs of the original
may not be redistributed.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from everycause.data.distortions.operations import Generators, corruption, drawn, enlargement, moved

ICE_MEAN, ICE_SPREAD = 0.6, 0.2
"""Mean and standard deviation of the ice, in units of white: those that the published distortions imply."""


@corruption(
    "weather",
    {
        32: (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        64: (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ),
        224: (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    },
)
def snow(images: Tensor, level: Sequence[float], generators: Generators) -> Tensor:
    """Snowflakes that fall at an angle, in front of a whitened image.

    Levels: mean and deviation of the flakes, zoom, threshold, radius and deviation of their motion in pixels,
        share of the image that stays.
    """
    mean, deviation, zoom, threshold, radius, spread, share = level
    side = images.shape[-1]
    flakes = drawn(generators, lambda one: one.normal(mean, deviation, (1, side, side)).astype(np.float32))
    matrix = enlargement(side, zoom)
    flakes = matrix @ flakes @ matrix.T
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    angles = np.array([one.uniform(-135, -45) for one in generators])
    flakes = (moved((flakes * 255).to(torch.uint8).float() / 255, int(radius), spread, angles) * 255).round() / 255
    white = (images * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True) * 1.5 + 0.5
    return share * images + (1 - share) * torch.maximum(images, white) + flakes + flakes.rot90(2, dims=(2, 3))


@corruption(
    "weather",
    {
        32: ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        64: ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
        224: ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    },
)
def frost(images: Tensor, level: Sequence[float], generators: Generators) -> Tensor:
    """Ice crystals, made procedurally, in front of the image.

    Levels: weight of the image and weight of the ice.
    """
    return level[0] * images + level[1] * ice(images.shape[-1], generators)


@corruption(
    "weather",
    {
        32: ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        64: ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
        224: ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    },
)
def fog(images: Tensor, level: Sequence[float], generators: Generators) -> Tensor:
    """A fractal cloud in front of the image; the brightest value stays as it was.

    Levels: strength of the fog, decay of the fractal.
    """
    brightest = images.amax(dim=(1, 2, 3), keepdim=True)
    return (images + level[0] * plasma(images.shape[-1], level[1], generators)) * brightest / (brightest + level[0])


@corruption(
    "weather",
    {
        32: ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
        64: ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
        224: ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
    },
)
def brightness(images: Tensor, level: Sequence[float], _generators: Generators) -> Tensor:
    """The value of HSV is raised: all channels by one factor, black to gray.

    Levels: what is added to the value.
    """
    value = images.amax(dim=1, keepdim=True)
    return torch.where(value > 0, images * ((value + level[0]).clamp_max(1) / value.clamp_min(1e-6)), level[0])


def plasma(side: int, decay: float, generators: Generators) -> Tensor:
    """Diamond-square fractals in [0, 1], batch × 1 × side × side."""
    size = 1 << (side - 1).bit_length()
    draws = drawn(generators, lambda one: one.random(size * size * 2, dtype=np.float32)) * 2 - 1
    cloud, used, step, wobble = torch.zeros(len(generators), size, size), 0, size, 100.0

    def wobbled(total: Tensor) -> Tensor:
        nonlocal used
        count = total[0].numel()
        noise = draws[:, used : used + count].view_as(total)
        used += count
        return total / 4 + wobble * wobble * noise

    while step >= 2:
        half = step // 2
        corners = cloud[:, ::step, ::step]
        across = corners + corners.roll(-1, 1)
        cloud[:, half::step, half::step] = wobbled(across + across.roll(-1, 2))
        middles = cloud[:, half::step, half::step]
        up_and_down = middles + middles.roll(1, 1)
        left_and_right = corners + corners.roll(-1, 2)
        cloud[:, ::step, half::step] = wobbled(up_and_down + left_and_right)
        beside = middles + middles.roll(1, 2)
        over_and_under = corners + corners.roll(-1, 1)
        cloud[:, half::step, ::step] = wobbled(beside + over_and_under)
        step, wobble = half, wobble / decay
    cloud -= cloud.amin(dim=(1, 2), keepdim=True)
    return (cloud / cloud.amax(dim=(1, 2), keepdim=True))[:, None, :side, :side]


def ice(side: int, generators: Generators) -> Tensor:
    """Bluish ice needles on a cloudy pane, batch × 3 × side × side."""
    cloud = plasma(side, 1.9, generators)
    grain = drawn(generators, lambda one: one.standard_normal((1, side, side), dtype=np.float32))
    needles = torch.stack(
        [
            moved(grain, max(2, side // 10), side / 20, np.array([one.uniform(-180, 180) for one in generators]))
            for _ in range(3)
        ]
    ).amax(dim=0)
    pane = cloud + 0.8 * needles / needles.std(dim=(2, 3), keepdim=True).clamp_min(1e-6) * cloud.std(
        dim=(2, 3), keepdim=True
    )
    pane = (pane - pane.mean(dim=(2, 3), keepdim=True)) / pane.std(dim=(2, 3), keepdim=True)
    return (ICE_MEAN + ICE_SPREAD * pane + torch.tensor([-0.04, 0.0, 0.04])[:, None, None]).clamp(0, 1)
