"""Rendering of Codebirds, from factors to bytes, with the default settings (64 pixels)."""

from collections.abc import Iterator
from functools import partial

import numpy as np

from benchmarks.timing import median_seconds
from codebirds.birds import Codebirds
from codebirds.factors import Settings

IMAGES = 1024


def draw(birds: Codebirds, index: np.ndarray) -> None:
    """Factors and images of some indices."""
    birds.images(birds.factors("train", index))


def measures() -> Iterator[tuple[str, float]]:
    """Images per second on one and two threads, and the gain of the second."""
    index = np.arange(IMAGES)
    seconds = {n: median_seconds(partial(draw, Codebirds(Settings(), threads=n), index)) for n in (1, 2)}
    yield "render.images_per_second", IMAGES / seconds[2]
    yield "render.images_per_second_one_core", IMAGES / seconds[1]
    yield "render.two_thread_speedup", seconds[1] / seconds[2]
